"""Cost metrics between source and target classes."""

from jtln.costs.base import Cost, SourceHead, Unknown, is_constant
from jtln.costs.centroid import CentroidCost
from jtln.costs.file import FileCost
from jtln.costs.mmd import MMDCost
from jtln.costs.permuted import PermutedCost
from jtln.costs.posterior import PosteriorCost
from jtln.costs.taxonomy import TaxonomyCost
from jtln.costs.uniform import UniformCost
from jtln.costs.weights import WeightsCost
from jtln.costs.wordnet import WordNetCost

__all__ = [
    "CentroidCost",
    "Cost",
    "FileCost",
    "MMDCost",
    "PermutedCost",
    "PosteriorCost",
    "SourceHead",
    "TaxonomyCost",
    "UniformCost",
    "Unknown",
    "WeightsCost",
    "WordNetCost",
    "is_constant",
]
