"""The networks that both tasks share."""

from jtln.trunks.alexnet import alexnet
from jtln.trunks.base import Trunk
from jtln.trunks.module import from_module
from jtln.trunks.timm import efficientnet_lite, from_timm
from jtln.trunks.torchvision import from_torchvision

__all__ = ["Trunk", "alexnet", "efficientnet_lite", "from_module", "from_timm", "from_torchvision"]
