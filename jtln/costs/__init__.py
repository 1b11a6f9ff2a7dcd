"""Cost metrics: what it costs to explain a source class by a target class."""

from jtln.costs.base import Cost
from jtln.costs.centroid import CentroidCost
from jtln.costs.uniform import UniformCost
from jtln.costs.wordnet import WordNetCost

__all__ = ["CentroidCost", "Cost", "UniformCost", "WordNetCost"]
