"""The trained linear head."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from jtln.heads.base import Head, HeadFit, HeadInputs


@dataclass(frozen=True)
class Linear(Head):
    """The head that the objective trains; with a prior, the losses apply to the prediction with the prior."""

    name = "linear"
    replaces = False

    def classifier(self, dim: int, classes: int) -> nn.Linear:
        return nn.Linear(dim, classes)

    def fit(self, trained: nn.Linear, given: HeadInputs) -> HeadFit:
        return HeadFit(trained, {})
