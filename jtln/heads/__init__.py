"""How the target classifier is formed, for every method alike."""

from jtln.heads.base import FeatureSource, Head, HeadFit
from jtln.heads.cosine import Cosine, CosineClassifier
from jtln.heads.discriminant import Discriminant
from jtln.heads.linear import Linear

__all__ = ["Cosine", "CosineClassifier", "Discriminant", "FeatureSource", "Head", "HeadFit", "Linear"]
