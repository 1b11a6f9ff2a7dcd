"""The linear head as training leaves it."""

from __future__ import annotations

from torch import Tensor, nn

from jtln.heads.base import FeatureSource, Head, HeadFit


class Linear(Head):
    """The head that the objective trains, in place."""

    name = "linear"
    replaces = False

    def classifier(self, dim: int, classes: int) -> nn.Linear:
        return nn.Linear(dim, classes)

    def fit(self, trained: nn.Linear, features: FeatureSource, plan: Tensor | None, sizes: tuple[int, int]) -> HeadFit:
        return HeadFit(trained, {})
