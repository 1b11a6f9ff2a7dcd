"""A trained network, used and exported."""

from jtln.inference.classifier import Classifier
from jtln.inference.load import load

__all__ = ["Classifier", "load"]
