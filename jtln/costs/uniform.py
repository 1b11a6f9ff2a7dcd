"""The uniform cost: all source classes are equally far from all target classes."""

from __future__ import annotations

import torch
from torch import Tensor

from jtln.costs.base import Cost
from jtln.names.class_set import ClassSet


class UniformCost(Cost):
    """C = 1, the uninformative control for every other cost.

    The transport loss is then 1 - eps (H(a) + H(b) + 1), a confidence penalty.
    """

    def __init__(self) -> None:
        super().__init__(scale="none")

    def distances(self, source: ClassSet, target: ClassSet) -> Tensor:
        return torch.ones(len(source), len(target))
