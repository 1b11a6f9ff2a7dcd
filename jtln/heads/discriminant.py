"""Where the target head ends: a Gaussian discriminant on the features that were trained, at transported class means.

The labelled images have shaped the trunk, and the trained head with it: it knows them by heart, and how far the images
of one class lie apart it has seen on a handful. The source, with images in plenty, says that. Let every class be a
Gaussian in feature space with the covariance W that the source classes have on average, and let its mean be estimated
from its n labelled images, of mean x, and from what was known before: c, the middle around which the classes lie, and
p, where a class lies from there on, which is the mean under the plan P between the classes of where the source classes
lie from their middle m on,

    mu_j = (n_j x_j + k (c + p_j) + u c) / (n_j + k + u),      p_j = sum_i P_ij (m_i - m) / sum_i P_ij,
    logits_j(f) = f' W^-1 mu_j - 1/2 mu_j' W^-1 mu_j.

k and u count like labelled images. c is the source's middle m, that of the labelled images' own class means, which a
target unlike the source needs and which few images tell badly, or the point between them. k, u, c and the temperature
are those at which the validation images' labels are most likely. All classes count as equally frequent. With more
labelled images the trained head knows what W does not say, and is mixed in by the same measure. Everything is linear in
the features, so the outcome is the target head itself, with other weights. Ours; the discriminant is Fisher's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from jtln.distributed import Batch, all_reduce_sum, class_sums
from jtln.errors import UserError
from jtln.temperature import temperature
from jtln.transport.loss import TransportLoss
from jtln.transport.plans import class_plan

TRANSPORTED = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # candidates for k
COMMON = (1.0, 3.0, 10.0, 30.0, 100.0)  # for u
OWN = (0.0, 0.5, 1.0)  # for how far c lies from the source's middle to the labelled images' own
SHARES = tuple(step / 10 for step in range(11))  # of the trained head


class Network(Protocol):
    """What of the network is read (jtln.module.JTLN)."""

    transport: TransportLoss | None
    target_head: nn.Linear
    sizes: tuple[int, int]  # S and T

    def features_of(self, side: str, part: str = "train", at_most: int | None = None) -> Iterable[Batch]: ...


class HeadEnd(NamedTuple):
    """What the validation images chose."""

    transported: float  # k: labelled images that a class's transported mean counts for; 0 where the cost says nothing
    common: float  # u: labelled images that the middle c counts for
    trained: float  # share of the trained head's logits, in [0, 1], each part at its own best temperature
    surprise: float  # mean of -log p(y) over the validation images, in nats
    own: float = 0.0  # how far c lies from the source's middle, 0, to that of the labelled images, 1


@dataclass(frozen=True)
class Discriminant:
    """Ends the target head as the discriminant.

    Attributes:
        shrinkage: in [1e-6, 1]: the share of W that is its mean variance in all directions. From
            screening (notebooks/research_log.ipynb, section 9), where 0.4 did as well and 0.9 worse on one pair.
        mixed_from: labelled images a class, on average, from which on the trained head may have a share.
        source_images: > 0: about how many source images are read, evenly spread over the training set.

    Raises:
        UserError: a number is out of range.
    """

    shrinkage: float = 0.7
    mixed_from: float = 10
    source_images: int = 5000

    def __post_init__(self) -> None:
        if not 1e-6 <= self.shrinkage <= 1:
            raise UserError(f"expected method.head_end.shrinkage in [1e-6, 1], but got {self.shrinkage}")
        if not self.mixed_from >= 0:
            raise UserError(f"expected method.head_end.mixed_from >= 0, but got {self.mixed_from}")
        if not self.source_images >= 1:
            raise UserError(f"expected method.head_end.source_images of 1 or more, but got {self.source_images}")

    def end(self, network: Network) -> HeadEnd:
        """Set the weights of the network's target head, by the images of its pair and its transport loss's plan."""
        plan = None if network.transport is None else class_plan(network.transport.cost, network.transport.epsilon)
        source = network.features_of("source", at_most=self.source_images)
        target = network.features_of("target"), network.features_of("target", "val")
        return self.fit(network.target_head, plan, network.sizes, source, *target)

    @torch.no_grad()
    def fit(
        self,
        head: nn.Linear,
        plan: Tensor | None,
        sizes: tuple[int, int],
        source: Iterable[Batch],
        labelled: Iterable[Batch],
        validation: Iterable[Batch],
    ) -> HeadEnd:
        """Set the target head's weights and bias.

        Args:
            head: the trained target head, D -> T.
            plan: (S, T) between the classes, columns of positive mass; None where no cost relates them.
            sizes: S and T.
            source, labelled, validation: features (B, D) and labels (B,) of source training images, of the target's
                training images and of its validation images, this process's share of each.

        Raises:
            UserError: there is no source image, or features of the source, the target or its validation images are not
                finite.
        """
        classes = _classes(source, sizes[0], self.shrinkage)
        sums, counts = (_wide(each) for each in class_sums(labelled, sizes[1]))
        seen = counts[:, None] > 0
        given = torch.where(seen, sums / counts.clamp_min(1)[:, None] - classes.middle, 0.0)  # (T, D)
        moved = (given.sum(0) / seen.sum().clamp_min(1)).expand_as(given)  # to the labelled images' own middle
        known = torch.zeros_like(given)
        if plan is not None:
            shares = _wide(plan) / _wide(plan).sum(0)
            known = shares.t() @ (classes.means - classes.middle)
        says = bool(known.abs().max() > 1e-6 * classes.means.std())  # a constant cost transports m to every class
        parts = torch.stack([given, known, moved])  # (3, T, D), from m on
        directions = torch.cholesky_solve(parts.flatten(0, 1).t(), classes.factor).t().view_as(parts)
        products = torch.einsum("atd,btd->abt", parts, directions)

        inner, theirs = [], []  # of the validation images: (f - m)' W^-1 of all parts, and the trained head's logits
        for features, labels in validation:
            rows, own_logits = _wide(features), _wide(head(features))
            labels = labels.to(rows.device)
            inner.append((torch.einsum("bd,atd->bat", rows - classes.middle, directions), labels))
            theirs.append((own_logits, labels))

        def offset(amounts: Tensor) -> Tensor:
            """1/2 (mu - m)' W^-1 (mu - m), (T,), of class means that are ``amounts`` (3, T) of all parts."""
            return torch.einsum("at,abt,bt->t", amounts, products, amounts) / 2

        def scores(amounts: Tensor) -> list[Batch]:
            """The logits (B, T) of these class means."""
            less = offset(amounts)
            return [((each * amounts).sum(1) - less, labels) for each, labels in inner]

        def candidates() -> Iterable[tuple[Fit, float, float, float, Tensor]]:
            for own, u, k in product(OWN, COMMON, TRANSPORTED if says else TRANSPORTED[:1]):
                amounts = torch.stack([counts, torch.full_like(counts, k), torch.full_like(counts, own * (k + u))])
                amounts /= counts + k + u
                yield fitted(scores(amounts)), k, u, own, amounts

        fit, k, u, own, amounts = min(candidates(), key=lambda each: each[0].surprise)
        if not math.isfinite(fit.surprise):
            raise _not_finite("the target's images")
        weight = torch.einsum("at,atd->td", amounts, directions)
        bias = -offset(amounts) - weight @ classes.middle
        trained = 0.0
        if float(counts.sum()) >= self.mixed_from * sizes[1]:
            their, ours = fitted(theirs), scores(amounts)

            def mixed(share: float) -> Fit:
                a, b = (1 - share) / fit.temperature, share / their.temperature
                return fitted([(a * x + b * y, labels) for (x, labels), (y, _) in zip(ours, theirs, strict=True)])

            fits = {share: mixed(share) for share in SHARES}
            trained = min(fits, key=lambda share: fits[share].surprise)
            a, b, fit = (1 - trained) / fit.temperature, trained / their.temperature, fits[trained]
            weight, bias = a * weight + b * _wide(head.weight), a * bias + b * _wide(head.bias)
        head.weight.copy_(weight / fit.temperature)
        head.bias.copy_(bias / fit.temperature)
        return HeadEnd(k, u, trained, fit.surprise, own)


class Fit(NamedTuple):
    """How likely logits make the labels at their best temperature."""

    temperature: float
    surprise: float  # mean of -log p(y), in nats


def fitted(batches: list[Batch]) -> Fit:
    """Of logits (B, T) of any size, float64, and labels (B,), this process's share of them."""
    batches = [(z - z.mean(1, keepdim=True), labels) for z, labels in batches]  # what all classes share is of no effect

    def summed(values: Iterable[Tensor]) -> float:
        return float(all_reduce_sum(torch.stack(list(values)).sum()))

    numbers = summed(z.new_tensor(float(z.numel())) for z, _ in batches)
    scale = max(math.sqrt(summed(z.square().sum() for z, _ in batches) / numbers), 1e-12)
    tau = scale * temperature([(z / scale, labels) for z, labels in batches])
    lost = summed(cross_entropy(z / tau, labels, reduction="sum") for z, labels in batches)
    return Fit(tau, lost * batches[0][0].shape[1] / numbers)


class _Classes(NamedTuple):
    """What the source says of a class in feature space."""

    means: Tensor  # (S, D)
    middle: Tensor  # (D,): the mean of the means
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
    middle = means[counts > 0].mean(0)
    means[counts == 0] = middle
    within = squares.sub_((means * counts[:, None]).t() @ means).div_((counts.sum() - (counts > 0).sum()).clamp_min(1))
    mean_variance = float(within.diagonal().mean())
    if not mean_variance > 1e-12 * float(means.square().mean()):  # of one image a class: all directions are alike
        within, mean_variance = torch.zeros_like(within), 1.0
    within.mul_(1 - shrinkage).diagonal().add_(shrinkage * mean_variance)
    return _Classes(means, middle, torch.linalg.cholesky(within))


def _not_finite(images: str) -> UserError:
    return UserError(f"expected finite features of {images}, but got others: lower optimizer.lr")


def _wide(value: Tensor) -> Tensor:
    """In float64; from Apple's GPUs, which have none, on the CPU."""
    return value.cpu().double() if value.device.type == "mps" else value.double()
