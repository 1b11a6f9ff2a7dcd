"""Heads: the ways to form the target classifier, for every method alike."""

from jtln.heads.base import AUTO, FeatureSource, Head, HeadFit, HeadInputs, SourcePlan
from jtln.heads.cosine import Cosine, CosineClassifier
from jtln.heads.discriminant import Discriminant
from jtln.heads.free_lunch import FreeLunch, PoweredLinear
from jtln.heads.linear import Linear
from jtln.heads.logistic import Logistic, NormalizedLinear

__all__ = [
    "AUTO",
    "Cosine",
    "CosineClassifier",
    "Discriminant",
    "FeatureSource",
    "FreeLunch",
    "Head",
    "HeadFit",
    "HeadInputs",
    "Linear",
    "Logistic",
    "NormalizedLinear",
    "PoweredLinear",
    "SourcePlan",
]
