"""The cosine head: an image belongs to the class whose mean lies in the most similar direction."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from jtln.distributed import accumulation_dtype, class_sums
from jtln.heads.base import FeatureSource, Head, HeadFit
from jtln.temperature import fit_temperature


class CosineClassifier(nn.Module):
    """Logits are cosines over a temperature: (B, D) -> (B, T).

    Attributes:
        weight: (T, D) class means of length 1.
        temperature: (), > 0.
    """

    weight: Tensor
    temperature: Tensor

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(classes, dim))
        self.register_buffer("temperature", torch.tensor(1.0))

    def forward(self, features: Tensor) -> Tensor:
        return linear(normalize(features), self.weight) / self.temperature


class Cosine(Head):
    """Nearest class mean by the cosine, the means taken of the labelled images' normalised features.

    The temperature is that at which the validation images' labels are most likely; it changes no prediction, only how
    sure it is.
    """

    name = "cosine"

    def classifier(self, dim: int, classes: int) -> CosineClassifier:
        return CosineClassifier(dim, classes)

    @torch.no_grad()
    def fit(self, trained: nn.Linear, features: FeatureSource, plan: Tensor | None, sizes: tuple[int, int]) -> HeadFit:
        head = self.classifier(trained.in_features, trained.out_features).to(trained.weight.device)
        sums, _ = class_sums(((normalize(rows), labels) for rows, labels in features.of("target")), sizes[1])
        head.weight.copy_(normalize(sums))
        logits = ((head(rows), labels) for rows, labels in features.of("target", "val"))
        fit = fit_temperature([(each.to(accumulation_dtype(each)), labels) for each, labels in logits])
        head.temperature.fill_(fit.temperature)
        return HeadFit(head, {"temperature": fit.temperature, "nll": fit.nll})
