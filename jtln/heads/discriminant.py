"""The discriminant head: Gaussian classes on the trained features, at transported class means.

The labelled images have shaped the trunk and the trained head, which fits them almost perfectly: they do not tell how
far the images of one class lie apart. The source classes, with many images each, do. Let every class be a Gaussian in
feature space with the covariance W that the source classes have on average. Its mean is estimated from its n labelled
images, of mean x, and from two priors: the centre c of the classes, and p, the mean, under the plan P between the
classes, of where the source classes lie from their own centre m,

    mu_j = (n_j x_j + k (c + p_j) + u c) / (n_j + k + u),      p_j = sum_i P_ij (m_i - m) / sum_i P_ij,
    logits_j(f) = f' W^-1 mu_j - 1/2 mu_j' W^-1 mu_j.

k and u count like labelled images. c is the source's centre m, or the centre of the labelled images' class means, which
few images estimate badly, or the point between the two. k, u, c and the temperature are those at which the validation
images' labels are most likely. All classes count as equally frequent. With more labelled images the trained head knows
what W does not, and is mixed in by the same measure. Everything is linear in the features, so the outcome is a linear
head. The discriminant is Fisher's; class means carried by a transport plan between the classes are H-OT's (Guo et al.
2022) and Free Lunch's (Yang et al. 2021) too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from jtln.distributed import Batch, all_reduce_sum, class_sums
from jtln.errors import UserError
from jtln.heads.base import Head, HeadFit, HeadInputs
from jtln.temperature import TemperatureFit, fit_temperature

TRANSPORT_COUNTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # candidates for k
PRIOR_COUNTS = (1.0, 3.0, 10.0, 30.0, 100.0)  # for u
CENTRE_SHIFTS = (0.0, 0.5, 1.0)  # for how far c lies from the source's middle to the labelled images' own
SHARES = tuple(step / 10 for step in range(11))  # of the trained head


class DiscriminantFit(NamedTuple):
    """What the validation images chose."""

    transport_count: float  # k: labelled images that a class's transported mean counts for; 0 for a constant cost
    prior_count: float  # u: labelled images that the centre c counts for
    centre_shift: float  # how far c lies from the source's centre, 0, to that of the labelled images, 1
    trained_share: float  # share of the trained head's logits, in [0, 1], each part at its own best temperature
    nll: float  # mean negative log-likelihood of the validation images, in nats


@dataclass(frozen=True)
class Discriminant(Head):
    """Gaussian discriminant with the source classes' covariance and transported class means.

    Attributes:
        shrinkage: in [1e-6, 1]: the share of W that is its mean variance in all directions. From
            screening (notebooks/research_log.ipynb, section 9), where 0.4 did as well and 0.9 worse on one pair.
        mixed_from: >= 0, labelled images a class, on average, from which on the trained head may have a share.
        source_images: >= 1, about how many source images are read, evenly spread over the training set.

    Raises:
        UserError: a number is out of range.
    """

    name = "discriminant"
    reads_plan = True
    reads_source = True

    shrinkage: float = 0.7
    mixed_from: float = 10
    source_images: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1e-6 <= self.shrinkage <= 1:
            raise UserError(f"expected shrinkage in [1e-6, 1], but got {self.shrinkage}")
        if not self.mixed_from >= 0:
            raise UserError(f"expected mixed_from >= 0, but got {self.mixed_from}")
        if not self.source_images >= 1:
            raise UserError(f"expected source_images >= 1, but got {self.source_images}")

    def classifier(self, dim: int, classes: int) -> nn.Linear:
        return nn.Linear(dim, classes)

    @torch.no_grad()
    def fit(self, trained: nn.Linear, given: HeadInputs) -> HeadFit:
        """Form the discriminant; it is linear in the features.

        Raises:
            UserError: there is no source image, or features of the source, the target or its validation images are not
                finite.
        """
        features, plan, sizes = given.features, given.plan, given.sizes
        source, labelled = features.of("source", at_most=self.source_images), features.of("target")
        validation = features.of("target", "val")
        classes = _classes(source, sizes[0], self.shrinkage)
        sums, counts = (_wide(each) for each in class_sums(labelled, sizes[1]))
        seen = counts[:, None] > 0
        shifts = torch.where(seen, sums / counts.clamp_min(1)[:, None] - classes.centre, 0.0)  # (T, D)
        moved = (shifts.sum(0) / seen.sum().clamp_min(1)).expand_as(shifts)  # to the labelled images' own middle
        known = torch.zeros_like(shifts)
        if plan is not None:
            shares = _wide(plan) / _wide(plan).sum(0)
            known = shares.t() @ (classes.means - classes.centre)
        says = bool(known.abs().max() > 1e-6 * classes.means.std())  # a constant cost transports m to every class
        parts = torch.stack([shifts, known, moved])  # (3, T, D), from m on
        directions = torch.cholesky_solve(parts.flatten(0, 1).t(), classes.factor).t().view_as(parts)
        products = torch.einsum("atd,btd->abt", parts, directions)

        inner, theirs = [], []  # of the validation images: (f - m)' W^-1 of all parts, and the trained head's logits
        for batch, labels in validation:
            rows, own_logits = _wide(batch), _wide(trained(batch))
            labels = labels.to(rows.device)
            inner.append((torch.einsum("bd,atd->bat", rows - classes.centre, directions), labels))
            theirs.append((own_logits, labels))

        def offset(amounts: Tensor) -> Tensor:
            """1/2 (mu - m)' W^-1 (mu - m), (T,), of class means that are ``amounts`` (3, T) of all parts."""
            return torch.einsum("at,abt,bt->t", amounts, products, amounts) / 2

        def scores(amounts: Tensor) -> list[Batch]:
            """The logits (B, T) of these class means."""
            less = offset(amounts)
            return [((each * amounts).sum(1) - less, labels) for each, labels in inner]

        def candidates() -> Iterable[tuple[TemperatureFit, float, float, float, Tensor]]:
            for own, u, k in product(CENTRE_SHIFTS, PRIOR_COUNTS, TRANSPORT_COUNTS if says else TRANSPORT_COUNTS[:1]):
                amounts = torch.stack([counts, torch.full_like(counts, k), torch.full_like(counts, own * (k + u))])
                amounts /= counts + k + u
                yield fit_temperature(scores(amounts)), k, u, own, amounts

        fit, k, u, own, amounts = min(candidates(), key=lambda each: each[0].nll)
        if not math.isfinite(fit.nll):
            raise _not_finite("the target's images")
        weight = torch.einsum("at,atd->td", amounts, directions)
        bias = -offset(amounts) - weight @ classes.centre
        share = 0.0
        if float(counts.sum()) >= self.mixed_from * sizes[1]:
            their, ours = fit_temperature(theirs), scores(amounts)

            def mixed(share: float) -> TemperatureFit:
                a, b = (1 - share) / fit.temperature, share / their.temperature
                return fit_temperature(
                    [(a * x + b * y, labels) for (x, labels), (y, _) in zip(ours, theirs, strict=True)]
                )

            fits = {share: mixed(share) for share in SHARES}
            share = min(fits, key=lambda each: fits[each].nll)
            a, b, fit = (1 - share) / fit.temperature, share / their.temperature, fits[share]
            weight, bias = a * weight + b * _wide(trained.weight), a * bias + b * _wide(trained.bias)
        head = self.classifier(trained.in_features, trained.out_features).to(trained.weight)
        head.weight.copy_(weight / fit.temperature)
        head.bias.copy_(bias / fit.temperature)
        chosen = DiscriminantFit(k, u, own, share, fit.nll)
        return HeadFit(head, chosen._asdict())


class _Classes(NamedTuple):
    """What the source says of a class in feature space."""

    means: Tensor  # (S, D)
    centre: Tensor  # (D,): the mean of the means
    factor: Tensor  # (D, D): Cholesky's, of the covariance within a class


def _classes(batches: Iterable[Batch], classes: int, shrinkage: float) -> _Classes:
    found: list[Tensor] = []  # sums (S, D), counts (S,), and the features' products (D, D)
    for features, labels in batches:
        rows = _wide(features)
        member = one_hot(labels.to(rows.device), classes).to(rows)  # (B, S)
        more = [member.t() @ rows, member.sum(0), rows.t() @ rows]
        found = [a.add_(b) for a, b in zip(found, more, strict=True)] if found else more
    if not found:
        raise UserError("expected at least one batch of source features, but got none")
    sums, counts, squares = (all_reduce_sum(each) for each in found)
    if not bool(squares.isfinite().all()):
        raise _not_finite("the source images")
    means = sums / counts.clamp_min(1)[:, None]
    centre = means[counts > 0].mean(0)
    means[counts == 0] = centre
    within = squares.sub_((means * counts[:, None]).t() @ means).div_((counts.sum() - (counts > 0).sum()).clamp_min(1))
    mean_variance = float(within.diagonal().mean())
    if not mean_variance > 1e-12 * float(means.square().mean()):  # of one image a class: all directions are alike
        within, mean_variance = torch.zeros_like(within), 1.0
    within.mul_(1 - shrinkage).diagonal().add_(shrinkage * mean_variance)
    return _Classes(means, centre, torch.linalg.cholesky(within))


def _not_finite(images: str) -> UserError:
    return UserError(f"expected finite features of {images}, but got others: lower optimizer.lr")


def _wide(value: Tensor) -> Tensor:
    """In float64; from Apple's GPUs, which have none, on the CPU."""
    return value.cpu().double() if value.device.type == "mps" else value.double()
