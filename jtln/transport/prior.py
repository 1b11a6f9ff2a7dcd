"""The transported prior: the target distribution implied by the source classifier and the cost.

    q(x) = R' s(x),        target logits(x) = classifier(f) + alpha log q(x)

s(x) are the source head's probabilities. R (S, T) relates the classes: each row is a distribution over the target
classes. R holds the rows of the balanced plan between the classes, which keeps the cost of one pair relative to others,
or the soft labels softmax(-C_i / eps). With the rows of R as soft labels, entropic transport is bounded from below by
the divergence of the target prediction from q,

    min over g in Pi(a, b) of KL(g || diag(a) R)  >=  KL(b || R' a),

with equality where the source marginal is free (:mod:`jtln.transport.free`). Reading a label through the source head is
a LEEP score (Nguyen et al. 2020); -log q(x)_y is :func:`jtln.transport.label_transport` under the cost C' = -eps log R.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from jtln.errors import UserError, unknown
from jtln.temperature import fit_temperature
from jtln.transport.free import log_prior, soft_labels
from jtln.transport.loss import ROWS
from jtln.transport.plans import class_plan

EPSILONS = tuple(0.02 * 2 ** (step / 2) for step in range(15))  # 0.02 to 2.56, of the cost's range
FLOOR = 1e-8  # the least share of a source class that a target class has: log q stays finite


@torch.no_grad()
def relation(cost: Tensor, epsilon: float, rows: str = "plan", unknown_targets: Sequence[int] = ()) -> Tensor:
    """Return R, the share of each source class that goes to each target class, none of them below 1e-8.

    Arguments and errors are those of :func:`shares`.
    """
    found = shares(cost, epsilon, rows, unknown_targets).clamp_min(FLOOR)
    return found / found.sum(1, keepdim=True)


@torch.no_grad()
def shares(cost: Tensor, epsilon: float, rows: str = "plan", unknown_targets: Sequence[int] = ()) -> Tensor:
    """Return the share of each source class that goes to each target class.

    Args:
        cost: (S, T).
        epsilon: > 0, in the cost's units.
        rows: "plan", the rows of the balanced plan between the classes; or "softmax", softmax(-C_i / epsilon).
        unknown_targets: target classes that the cost knows nothing of. Each has 1/T of every row, and the others share
            the rest: in a balanced plan a neutral column would absorb the mass that is left over.

    Returns:
        (S, T) >= 0, each row of sum 1.

    Raises:
        UserError: ``rows`` is neither, or no target class is known.
    """
    if rows not in ROWS:
        raise unknown("rows", rows, ROWS)
    targets, unlinked = cost.shape[1], set(unknown_targets)
    known = [index for index in range(targets) if index not in unlinked]
    if not known:
        raise UserError(f"expected a target class that the cost knows, but it knows none of {targets}")
    inner = cost if len(known) == targets else cost[:, known]
    found = class_plan(inner, epsilon) if rows == "plan" else soft_labels(inner, epsilon)
    found = found / found.sum(1, keepdim=True)
    if len(known) == targets:
        return found
    every = found.new_full(tuple(cost.shape), 1 / targets)
    every[:, known] = found * (len(known) / targets)
    return every


class RelationFit(NamedTuple):
    """The relation R that labelled images choose, and how much they rely on it."""

    rows: Tensor  # R (S, T)
    epsilon: float  # of R, in the cost's units
    exponent: float  # k > 0 at which q^k, normalised, makes the labels most likely
    nll: float  # mean negative log-likelihood of the labels under q^k, in nats
    error: float  # the standard error of nll; 0 for one image
    chance: float  # log T

    @property
    def explained(self) -> float:
        """The share of the labels' uncertainty that q^k removes, 1 - nll / chance, in [0, 1] (McFadden's R^2)."""
        return min(max(1 - self.nll / self.chance, 0.0), 1.0)

    @property
    def alpha(self) -> float:
        """The weight of log q beside a classifier that the same labels train: the exponent times that share.

        It is 0 where the labels are no likelier under q^k than by chance, give or take a standard error.
        """
        return self.exponent * self.explained if self.nll + self.error < self.chance else 0.0


@torch.no_grad()
def fit_relation(
    cost: Tensor,
    probabilities: Tensor,
    labels: Tensor,
    epsilons: Sequence[float],
    rows: str = "plan",
    unknown_targets: Sequence[int] = (),
) -> RelationFit:
    """Choose epsilon by the likelihood of labelled images under q^k, k fitted for each epsilon.

    The exponent lets a soft and a sharp plan compete by the order in which q has the classes, and not by how sure it
    is. Of all plans whose likelihood is within one standard error of the best, the softest is taken: in a cost of few
    values it ranks more classes.

    Args:
        cost: (S, T).
        probabilities: s(x) of the labelled images, (N, S).
        labels: (N,), N >= 1.
        epsilons: candidates > 0, in the cost's units, in any order.
        rows: as in :func:`relation`.
        unknown_targets: likewise.
    """
    found = []
    for epsilon in sorted(epsilons):
        related = relation(cost, epsilon, rows, unknown_targets)
        log_q = log_prior(probabilities, related).double()
        exponent = 1 / fit_temperature([(log_q, labels)]).temperature
        losses = cross_entropy(exponent * log_q, labels, reduction="none")  # (N,)
        chance = math.log(cost.shape[1])
        fit = RelationFit(related, epsilon, exponent, float(losses.mean()), _standard_error(losses), chance)
        found.append((fit, losses))
    best, least = min(found, key=lambda each: each[0].nll)
    for fit, losses in found:
        if fit.epsilon > best.epsilon and float((losses - least).mean()) <= _standard_error(losses - least):
            best = fit
    return best


def _standard_error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0


class TransportedPrior(nn.Module):
    """alpha log q(x), which is added to the target logits.

    Args:
        rows: R (S, T), see :func:`relation`.
        alpha: >= 0, the weight; 0 leaves the prior out.
        temperature: > 0, of the source head's logits; a head that was trained with binary cross-entropies needs one.
        learns: whether the gradient reaches the source head.

    Raises:
        UserError: a number is out of range.
    """

    rows: Tensor
    alpha: Tensor
    temperature: Tensor

    def __init__(self, rows: Tensor, alpha: float = 0.5, temperature: float = 1.0, learns: bool = False) -> None:
        super().__init__()
        if not 0 <= alpha < float("inf"):
            raise UserError(f"expected a number alpha >= 0, but got {alpha}")
        if not 0 < temperature < float("inf"):
            raise UserError(f"expected a number temperature > 0, but got {temperature}")
        self.register_buffer("rows", rows.detach().clone().float())
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        self.learns = learns

    def log_q(self, source_logits: Tensor) -> Tensor:
        """Return log q(x), (B, T), of the source head's logits (B, S)."""
        return log_prior(self.source_probabilities(source_logits), self.rows)

    def source_probabilities(self, source_logits: Tensor) -> Tensor:
        """Return s(x), (B, S), detached unless the source head learns."""
        logits = source_logits.float() if self.learns else source_logits.detach().float()
        return (logits / self.temperature).softmax(1)

    def forward(self, source_logits: Tensor) -> Tensor:
        """Return alpha log q (B, T) of source_logits (B, S)."""
        return self.alpha * self.log_q(source_logits)

    def extra_repr(self) -> str:
        return f"rows={tuple(self.rows.shape)}, alpha={float(self.alpha):g}"
