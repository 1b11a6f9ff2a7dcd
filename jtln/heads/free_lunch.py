"""Free Lunch: logistic regression on features sampled around the labelled images with the source classes' covariance.

For each labelled image, of transformed feature z, let K be the k source classes whose means are nearest to it. Features
are sampled from a Gaussian of

    mu = (z + sum_{i in K} m_i) / (k + 1),        Sigma = 1/k sum_{i in K} Sigma_i + alpha 1 1',

m_i and Sigma_i the mean and the covariance of source class i, and a logistic regression is fitted to the labelled and
the sampled features. Yang, Liu & Xu, "Free Lunch for Few-shot Learning: Distribution Calibration", arXiv 2101.06395
(2021). Formulas and defaults are those of the authors' code
(github.com/ShuoYang-1998/Few_Shot_Distribution_Calibration, evaluate_DC.py), which transforms the target's features
alone, and adds alpha to every entry of Sigma; the paper was not read.

No covariance is formed: with X_i the n_i centred features of class i, X_i' g / sqrt(n_i - 1) has the covariance Sigma_i
for g ~ N(0, I), and sqrt(alpha) h 1 has alpha 1 1' for h ~ N(0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from jtln.distributed import gather_in_order
from jtln.errors import UserError
from jtln.heads.base import FeatureSource, Head, HeadFit, HeadInputs
from jtln.heads.logistic import labelled, powered, regression

GRADIENT = 1e-4  # of the regression's mean loss, at which it has converged; scikit-learn's default


class PoweredLinear(nn.Module):
    """A linear classifier on powers of the features: (B, D) -> (B, T).

    Args:
        dim, classes: D and T.
        power: in (0, 1], of every feature's size, the sign kept.
    """

    def __init__(self, dim: int, classes: int, power: float = 0.5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, dim), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(classes), requires_grad=False)
        self.power = power

    def forward(self, features: Tensor) -> Tensor:
        return linear(powered(features, self.power), self.weight, self.bias)


@dataclass(frozen=True)
class FreeLunch(Head):
    """Logistic regression on labelled and sampled features (Free Lunch, Yang et al. 2021).

    No setting is chosen by validation. The penalty and ``alpha`` are for the network's own features with a size near 1,
    such as averages after a ReLU. The objective is that of scikit-learn's ``LogisticRegression()`` in the authors'
    code, sum of cross-entropies + |W|^2 / 2C, plus |b|^2 / 2 for the bias. A sampled feature has the prior of its
    labelled image, which is our addition.

    Attributes:
        neighbours: k >= 1, source classes for each labelled image.
        alpha: >= 0, added to every entry of the covariance.
        power: in (0, 1], exponent of the size of every target feature, whose sign is kept; 0.5 is Tukey's transform.
        source_power: in (0, 1], the same of source features; 1, as in the authors' code, does not transform them.
        samples: >= 0, sampled features a class, divided among its labelled images.
        most_samples: >= 0, limit of all sampled features, which bounds memory and time (our addition); at the defaults,
            with more than 13 classes, a class has fewer than ``samples``.
        inverse_penalty: C > 0.
        source_images: >= 1, approximate number of source images, evenly spread over the training set.
        seed: >= 0, of the samples.

    Raises:
        UserError: a number is out of range.
    """

    neighbours: int = 2
    alpha: float = 0.21
    power: float = 0.5
    source_power: float = 1.0
    samples: int = 750
    most_samples: int = 10_000
    inverse_penalty: float = 1.0
    source_images: int = 10_000
    seed: int = 0

    name = "free_lunch"
    reads_source = True

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"neighbours": 1, "samples": 0, "most_samples": 0, "source_images": 1, "seed": 0}
        for key, value in least.items():
            if not (isinstance(getattr(self, key), int) and getattr(self, key) >= value):
                raise UserError(f"expected a whole number {key} >= {value}, but got {getattr(self, key)!r}")
        for key in ("power", "source_power"):
            if not (isinstance(getattr(self, key), int | float) and 0 < getattr(self, key) <= 1):
                raise UserError(f"expected {key} in (0, 1], but got {getattr(self, key)!r}")
        if not (isinstance(self.alpha, int | float) and 0 <= self.alpha < math.inf):
            raise UserError(f"expected a number alpha >= 0, but got {self.alpha!r}")
        if not (isinstance(self.inverse_penalty, int | float) and 0 < self.inverse_penalty < math.inf):
            raise UserError(f"expected a number inverse_penalty > 0, but got {self.inverse_penalty!r}")

    def classifier(self, dim: int, classes: int) -> PoweredLinear:
        return PoweredLinear(dim, classes, self.power)

    @torch.no_grad()
    def fit(self, trained: nn.Linear, given: HeadInputs) -> HeadFit:
        """Fit the regression; every process has the same samples.

        Raises:
            UserError: there is no labelled or no source image, or features are not finite.
        """
        classes = trained.out_features
        rows, labels, offset = labelled(given.features, given.prior)
        rows = powered(rows.double(), self.power)
        source = SourceClasses.of(given.features, self.source_images, self.source_power)
        per_class = min(self.samples, self.most_samples // classes)
        counts = (per_class // labels.bincount(minlength=classes).clamp_min(1))[labels]  # (N,) samples an image
        sampled = source.samples(rows, counts, self.neighbours, self.alpha, self.seed)  # (M, D)
        inputs, targets = torch.cat([rows, sampled]), torch.cat([labels, labels.repeat_interleave(counts)])
        if offset is not None:
            offset = torch.cat([offset, offset.repeat_interleave(counts, dim=0)])
        found = regression(inputs, targets, classes, offset, self.inverse_penalty, GRADIENT * len(inputs))
        head = self.classifier(trained.in_features, classes).to(trained.weight.device)
        head.weight.copy_(found.weight)
        head.bias.copy_(found.bias)
        return HeadFit(head, {"loss": found.loss, "iterations": found.iterations, "samples": len(sampled)})


class SourceClasses(NamedTuple):
    """The source classes that have images, as Gaussians in feature space."""

    means: Tensor  # (S', D)
    centred: list[Tensor]  # of each class (n_i, D), its features less their mean

    @classmethod
    def of(cls, features: FeatureSource, at_most: int, power: float) -> SourceClasses:
        """Read about ``at_most`` source images of all processes; sizes are raised to ``power``, and signs kept.

        Raises:
            UserError: there are none, or features are not finite.
        """
        batches = list(features.of("source", at_most=at_most))
        if not batches:
            raise UserError("expected at least one batch of source features, but got none")
        rows = gather_in_order(torch.cat([batch for batch, _ in batches])).cpu()
        labels = gather_in_order(torch.cat([labels for _, labels in batches])).cpu()
        if not bool(rows.isfinite().all()):
            raise UserError(
                "expected finite features of the source images, but got infinite or NaN ones: lower optimizer.lr"
            )
        groups = [powered(rows[labels == label].double(), power) for label in labels.unique().tolist()]
        means = torch.stack([group.mean(0) for group in groups])
        return cls(means, [group - mean for group, mean in zip(groups, means, strict=True)])

    def samples(self, rows: Tensor, counts: Tensor, neighbours: int, alpha: float, seed: int) -> Tensor:
        """Return ``counts`` (N,) sampled features for each of ``rows`` (N, D), in this order: (M, D) float64."""
        k = min(neighbours, len(self.means))
        nearest = torch.cdist(rows, self.means).topk(k, largest=False).indices  # (N, k)
        generator = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def around() -> Iterator[Tensor]:
            for row, among, count in zip(rows, nearest.tolist(), counts.tolist(), strict=True):
                mean = (row + self.means[among].sum(0)) / (k + 1)
                drawn = mean + math.sqrt(alpha) * noise(count, 1)  # (count, D)
                for centred in (self.centred[each] for each in among):
                    # A class of one image has no covariance.
                    drawn += noise(count, len(centred)) @ centred / math.sqrt(k * max(1, len(centred) - 1))
                yield drawn

        return torch.cat([rows[:0], *around()])
