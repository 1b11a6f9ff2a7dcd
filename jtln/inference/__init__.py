"""Use and export of a trained network."""

from jtln.inference.classifier import Classifier
from jtln.inference.load import load

__all__ = ["Classifier", "load"]
