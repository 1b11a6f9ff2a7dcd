"""The discriminant head: Gaussian classes on the trained features, at transported class means.

The trained head fits the labelled images almost perfectly, so that these do not show the spread within a class. The
source classes, with many images each, do. Every class is modelled as a Gaussian in feature space with the mean
covariance W of the source classes. The mean of a target class is estimated from its n labelled images, with mean x, and
from two priors: the centre c of the classes, and the mean p, under the plan P between the classes, of the source
classes' shifts from their centre m,

    mu_j = (n_j x_j + k (c + p_j) + u c) / (n_j + k + u),      p_j = sum_i P_ij (m_i - m) / sum_i P_ij,
    logits_j(f) = f' W^-1 mu_j - 1/2 mu_j' W^-1 mu_j.

k and u are counts of labelled images. c is the source's centre m, the centre of the labelled images' class means, which
is inaccurate for few images, or the point between both. k, u, c and the temperature have the least negative
log-likelihood of the validation images. All classes have equal prior probability. With more labelled images the trained
head has information that W lacks, and its logits are mixed in by the same criterion. Everything is linear in the
features, so the result is a linear head. The discriminant is Fisher's; class means carried by a transport plan between
the classes are also in H-OT (Guo et al. 2022) and Free Lunch (Yang et al. 2021).

Without validation images, the settings are chosen on episodes of source classes. In each episode, random source classes
replace the target classes, the plan is between them and the other source classes, under the cost between source
classes, and source images are held out. The trained head has no share then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from jtln.distributed import Batch, all_reduce_sum, class_sums, gather_in_order, process
from jtln.errors import UserError
from jtln.heads.base import Head, HeadFit, HeadInputs
from jtln.temperature import TemperatureFit, fit_temperature

TRANSPORT_COUNTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # candidates for k
PRIOR_COUNTS = (1.0, 3.0, 10.0, 30.0, 100.0)  # candidates for u
CENTRE_SHIFTS = (0.0, 0.5, 1.0)  # candidates for c: from the source's centre, 0, to that of the labelled images, 1
SHARES = tuple(step / 10 for step in range(11))  # candidates for the share of the trained head
EPISODES = 5  # number of episodes without validation images
HELD_OUT = 1000  # approximate number of held-out images of all episodes


class DiscriminantFit(NamedTuple):
    """The settings chosen on the validation images, or on episodes of source classes."""

    transport_count: float  # k: count of a class's transported mean, in labelled images; 0 for a constant cost
    prior_count: float  # u: count of the centre c, in labelled images
    centre_shift: float  # position of c between the source's centre, 0, and that of the labelled images, 1
    trained_share: float  # share of the trained head's logits, in [0, 1], with both parts at their best temperatures
    nll: float  # mean negative log-likelihood of the held-out images, in nats


@dataclass(frozen=True)
class Discriminant(Head):
    """Gaussian discriminant with the source classes' covariance and transported class means.

    Attributes:
        shrinkage: in [1e-6, 1]: the weight of the identity, scaled to W's mean variance, in W. Chosen by screening
            (notebooks/research_log.ipynb, section 9), where 0.4 was as good, and 0.9 worse on one pair.
        mixed_from: >= 0, the mean number of labelled images a class from which the trained head may have a share.
        source_images: >= 1, approximate number of source images, evenly spread over the training set.

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
            UserError: there is no source image, some features are not finite, or there are neither validation images
                nor enough source classes for episodes.
        """
        features, sizes = given.features, given.sizes
        source = list(features.of("source", at_most=self.source_images))
        classes = _classes(source, sizes[0], self.shrinkage)
        means = _Means(classes, *class_sums(features.of("target"), sizes[1]), given.plan)
        validation = [
            (_accumulated(batch), _accumulated(trained(batch)), labels)
            for batch, labels in features.of("target", "val")
        ]
        if validation:
            trials = [_Trial(means, [means.seen(rows, labels) for rows, _, labels in validation])]
        else:
            trials = list(_episodes(source, means, given, self.shrinkage))
        choice, fit = _best(trials)
        if not math.isfinite(fit.nll):
            raise _not_finite("the target's images" if validation else "the source images")
        amounts = means.amounts(choice)
        weight, bias = means.linear(amounts)
        share = 0.0
        if validation and float(means.counts.sum()) >= self.mixed_from * sizes[1]:
            theirs = [(logits, labels.to(logits.device)) for _, logits, labels in validation]
            their, ours = fit_temperature(theirs), trials[0].scores(choice)

            def mixed(share: float) -> TemperatureFit:
                a, b = (1 - share) / fit.temperature, share / their.temperature
                return fit_temperature(
                    [(a * x + b * y, labels) for (x, labels), (y, _) in zip(ours, theirs, strict=True)]
                )

            fits = {share: mixed(share) for share in SHARES}
            share = min(fits, key=lambda each: fits[each].nll)
            a, b, fit = (1 - share) / fit.temperature, share / their.temperature, fits[share]
            weight, bias = a * weight + b * _accumulated(trained.weight), a * bias + b * _accumulated(trained.bias)
        head = self.classifier(trained.in_features, trained.out_features).to(trained.weight)
        head.weight.copy_(weight / fit.temperature)
        head.bias.copy_(bias / fit.temperature)
        chosen = DiscriminantFit(choice.transport_count, choice.prior_count, choice.centre_shift, share, fit.nll)
        return HeadFit(head, chosen._asdict() if validation else {**chosen._asdict(), "episodes": len(trials)})


class _Choice(NamedTuple):
    """A candidate, see :class:`DiscriminantFit`."""

    transport_count: float
    prior_count: float
    centre_shift: float


class _Means:
    """Class means as combinations of three parts: labelled images' means, transported means, labelled images' centre.

    Args:
        classes: statistics of the source classes.
        sums, counts: of the labelled images' features, (T, D) and (T,).
        plan: (S, T); None: no cost relates the classes.

    Attributes:
        informative: whether the plan distinguishes the target classes.
    """

    def __init__(self, classes: _Classes, sums: Tensor, counts: Tensor, plan: Tensor | None) -> None:
        self.centre, self.counts = classes.centre, _accumulated(counts)
        seen = self.counts[:, None] > 0
        shifts = torch.where(
            seen, _accumulated(sums) / self.counts.clamp_min(1)[:, None] - classes.centre, 0.0
        )  # (T, D)
        moved = (shifts.sum(0) / seen.sum().clamp_min(1)).expand_as(shifts)  # shift of the labelled images' centre
        known = torch.zeros_like(shifts)
        if plan is not None:
            shares = _accumulated(plan) / _accumulated(plan).sum(0)
            known = shares.t() @ (classes.means - classes.centre)
        # A constant cost gives every class the source's centre, and thus no information.
        self.informative = bool(known.abs().max() > 1e-6 * classes.means.std())
        parts = torch.stack([shifts, known, moved])  # (3, T, D), relative to the source's centre
        self.directions = torch.cholesky_solve(parts.flatten(0, 1).t(), classes.factor).t().view_as(parts)
        self.products = torch.einsum("atd,btd->abt", parts, self.directions)

    def amounts(self, choice: _Choice) -> Tensor:
        """Return the coefficient of each part in each class's mean, (3, T)."""
        k, u, shift = choice
        amounts = torch.stack(
            [self.counts, torch.full_like(self.counts, k), torch.full_like(self.counts, shift * (k + u))]
        )
        amounts /= self.counts + k + u
        return amounts

    def offset(self, amounts: Tensor) -> Tensor:
        """Return 1/2 (mu - m)' W^-1 (mu - m), (T,), for class means with coefficients ``amounts`` (3, T)."""
        return torch.einsum("at,abt,bt->t", amounts, self.products, amounts) / 2

    def linear(self, amounts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight (T, D) and the bias (T,) for class means with coefficients ``amounts`` (3, T)."""
        weight = torch.einsum("at,atd->td", amounts, self.directions)
        return weight, -self.offset(amounts) - weight @ self.centre

    def seen(self, rows: Tensor, labels: Tensor) -> Batch:
        """Return the products (f - m)' W^-1 part (B, 3, T) for features f (B, D), and their labels (B,)."""
        return torch.einsum("bd,atd->bat", rows - self.centre, self.directions), labels.to(rows.device)


class _Trial(NamedTuple):
    """Class means, and held-out images for their likelihood."""

    means: _Means
    seen: list[Batch]  # (B, 3, T), labels (B,): see _Means.seen

    def scores(self, choice: _Choice) -> list[Batch]:
        """Return the logits (B, T) of these class means."""
        amounts = self.means.amounts(choice)
        less = self.means.offset(amounts)
        return [((each * amounts).sum(1) - less, labels) for each, labels in self.seen]


def _best(trials: list[_Trial]) -> tuple[_Choice, TemperatureFit]:
    """Return the candidate with the least negative log-likelihood over all trials, at one temperature."""
    informative = all(trial.means.informative for trial in trials)
    counts = TRANSPORT_COUNTS if informative else TRANSPORT_COUNTS[:1]
    every = (_Choice(k, u, shift) for shift, u, k in product(CENTRE_SHIFTS, PRIOR_COUNTS, counts))
    fits = ((choice, fit_temperature([each for trial in trials for each in trial.scores(choice)])) for choice in every)
    return min(fits, key=lambda each: each[1].nll)


def _episodes(source: list[Batch], target: _Means, given: HeadInputs, shrinkage: float) -> Iterator[_Trial]:
    """Yield few-shot tasks of source images, with randomly chosen source classes as the target classes.

    An episode has as many labelled images a class as the target has on average, and as many classes as the target, but
    at most a third of the source's. All processes have the same episodes, and each its share of the images.

    Args:
        source: features (B, D) and labels (B,) of the source images.
        target: the target's class means: if its plan is uninformative, episodes have no plan.
        given: the numbers of classes, S and T, and plans between source classes.
        shrinkage: of the covariance within a class, in [0, 1].

    Raises:
        UserError: there are fewer than four source classes with two or more images.
    """
    rows, labels = (gather_in_order(torch.cat(each)) for each in zip(*source, strict=True))
    counts = labels.bincount(minlength=given.sizes[0])
    usable = (counts >= 2).nonzero()[:, 0].cpu()
    if len(usable) < 4:
        raise UserError(
            "expected validation images (dataset.validation), or 4 or more source classes with 2 or more images each, "
            f"to choose the settings of head=discriminant, but got {len(usable)} such classes: set head=cosine"
        )
    size = max(2, min(len(target.counts), len(usable) // 3))
    shots = max(1, round(float(target.counts.mean())))
    most = max(1, HELD_OUT // (EPISODES * size))
    generator = torch.Generator().manual_seed(0)
    rank, processes = process()

    def share(places: Tensor, classes: Tensor) -> Batch:
        """Return this process's share of these images, labelled by the index of their class among ``classes``."""
        mine = places[rank::processes]
        place = torch.zeros_like(counts).index_copy_(0, classes, torch.arange(len(classes), device=counts.device))
        return rows[mine], place[labels[mine]]

    for _ in range(EPISODES):
        order = usable[torch.randperm(len(usable), generator=generator)].to(labels.device)
        pseudo, rest = order[:size], order[size:]
        shuffled = torch.randperm(len(labels), generator=generator).to(labels.device)
        labelled, held_out = [], []
        for label in pseudo.tolist():
            images = shuffled[labels[shuffled] == label]
            first = min(shots, len(images) - 1)
            labelled.append(images[:first])
            held_out.append(images[first : first + most])
        plan = None
        if target.informative and given.source_plan is not None:
            plan = given.source_plan(rest, pseudo).to(rows.device)
        classes = _classes([share(torch.isin(labels, rest).nonzero()[:, 0], rest)], len(rest), shrinkage)
        means = _Means(classes, *class_sums([share(torch.cat(labelled), pseudo)], size), plan)
        images, theirs = share(torch.cat(held_out), pseudo)
        yield _Trial(means, [means.seen(_accumulated(images), theirs)])


class _Classes(NamedTuple):
    """The statistics of the source classes in feature space."""

    means: Tensor  # (S, D)
    centre: Tensor  # (D,): the mean of the means
    factor: Tensor  # (D, D): Cholesky factor of the covariance within a class


def _classes(batches: Iterable[Batch], classes: int, shrinkage: float) -> _Classes:
    found: list[Tensor] = []  # sums (S, D), counts (S,), and the features' products (D, D)
    for features, labels in batches:
        rows = _accumulated(features)
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
    if not mean_variance > 1e-12 * float(means.square().mean()):  # One image a class gives no covariance.
        within, mean_variance = torch.zeros_like(within), 1.0
    within.mul_(1 - shrinkage).diagonal().add_(shrinkage * mean_variance)
    return _Classes(means, centre, torch.linalg.cholesky(within))


def _not_finite(images: str) -> UserError:
    return UserError(f"expected finite features of {images}, but got infinite or NaN ones: lower optimizer.lr")


def _accumulated(value: Tensor) -> Tensor:
    """Return ``value`` in float64; on the CPU if it is on an Apple GPU, which has no float64."""
    return value.cpu().double() if value.device.type == "mps" else value.double()
