"""The cosine head: the class whose mean feature vector has the largest cosine with the image's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from jtln.distributed import accumulation_dtype, class_sums
from jtln.errors import UserError
from jtln.heads.base import Head, HeadFit, HeadInputs
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


@dataclass(frozen=True)
class Cosine(Head):
    """Nearest class mean by cosine similarity, with means of the labelled images' normalised features.

    The temperature has the least negative log-likelihood of held-out images: the validation images; without any,
    labelled images left out of their class's mean, if each class has two or more; otherwise it is ``temperature``.

    Attributes:
        temperature: > 0, for one labelled image a class and no validation image.

    Raises:
        UserError: a number is out of range.
    """

    temperature: float = 0.07

    name = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.temperature, int | float) and 0 < self.temperature < float("inf")):
            raise UserError(f"expected a number temperature > 0, but got {self.temperature!r}")

    def classifier(self, dim: int, classes: int) -> CosineClassifier:
        return CosineClassifier(dim, classes)

    @torch.no_grad()
    def fit(self, trained: nn.Linear, given: HeadInputs) -> HeadFit:
        head = self.classifier(trained.in_features, trained.out_features).to(trained.weight.device)
        features, classes = given.features, given.sizes[1]
        sums, counts = class_sums(((normalize(rows), labels) for rows, labels in features.of("target")), classes)
        head.weight.copy_(normalize(sums))
        held_out = [(head(rows), labels) for rows, labels in features.of("target", "val")]
        if not held_out and bool((counts >= 2).all()):
            held_out = [_left_out(normalize(rows), labels, sums) for rows, labels in features.of("target")]
        if not held_out:
            head.temperature.fill_(self.temperature)
            return HeadFit(head, {"temperature": self.temperature})
        fit = fit_temperature([(each.to(accumulation_dtype(each)), labels) for each, labels in held_out])
        head.temperature.fill_(fit.temperature)
        return HeadFit(head, {"temperature": fit.temperature, "nll": fit.nll})


def _left_out(rows: Tensor, labels: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines (B, T) of labelled images with the class means; an image is left out of its own class's."""
    cosines = linear(rows, normalize(sums))
    own = normalize(sums[labels] - rows)
    cosines[torch.arange(len(rows)), labels] = (rows * own).sum(1)
    return cosines, labels
