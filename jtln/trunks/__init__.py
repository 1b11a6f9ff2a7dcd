"""The networks that both tasks share."""

from jtln.trunks.alexnet import alexnet
from jtln.trunks.base import Trunk
from jtln.trunks.torchvision import from_torchvision

__all__ = ["Trunk", "alexnet", "from_torchvision"]
