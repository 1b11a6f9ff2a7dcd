"""Where the target head starts: at the source head, carried over to the target's classes by a transport plan.

A pre-trained source head knows directions in feature space that tell the source classes apart. The cost says which
source classes a target class is near, so the target class starts at the mean of their weights: the barycentric image of
the source head under the optimal plan between the classes, every class of either side having the same mass,

    P = argmin over g in Pi(1/S, 1/T) of <g, C> - eps * H(g),        w_j = sum_i T P_ij v_i,

v_i the source head's weights. The equal masses matter: they take out what a cost has in common over a row or a column
(a class that is near to everything), and keep what it says of one pair against others. The network classifies target
images before it has seen one. The labelled images, of which none has been used, say how far it is to be believed: the
factor of its logits that makes their labels most likely is the start's size, and where there is none, the cost knows
nothing here and the head starts at zero. A cost that was itself read off the labelled images (centroids, posteriors)
fits them whatever it is worth, and starts no head in a run. Ours; the OT loss of the paper uses the same cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from jtln.errors import UserError
from jtln.pooling import total
from jtln.relation import HOTTEST, temperature
from jtln.transport import transport_plan

Batch = tuple[Tensor, Tensor]  # features (B, D), labels (B,)


class HeadEvidence(NamedTuple):
    """What the labelled target images say of a head that has seen none of them."""

    accuracy: float  # in [0, 1]; chance is 1 / T
    sharpness: float  # the factor of its logits that makes the labels most likely, in [0.05, 20]
    used: bool  # whether the head starts there: not where the factor is the smallest


@dataclass(frozen=True)
class TransportedHead:
    """Starts the target head at the transported source head.

    Attributes:
        epsilon: of the plan between the classes, > 0, in the cost's units; how few source classes a target class draws
            on. From screening on CIFAR-100 (ours; notebooks/research_log.ipynb), where 0.02 to 0.05 did alike.
        gain: > 0: the transported head, whose weights are means of the source head's, is multiplied by gain / n at n
            labelled images a class, times the factor that makes their labels most likely, or 1 where that is larger
            (a few images can all be right by chance). From pictograms by validation (the same notebook, section 7).

    Raises:
        UserError: epsilon or gain is not a positive number.
    """

    epsilon: float = 0.035
    gain: float = 6.0

    def __post_init__(self) -> None:
        for name in ("epsilon", "gain"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"expected method.head_start.{name} > 0, but got {getattr(self, name)}")

    @torch.no_grad()
    def start(self, source: nn.Linear, target: nn.Linear, cost: Tensor, labelled: Iterable[Batch]) -> HeadEvidence:
        """Set the target head's weights and bias.

        Args:
            source: the pre-trained head, D -> S.
            target: the head to be set, D -> T.
            cost: (S, T).
            labelled: features (B, D) and labels (B,) of the target's training images, this process's share.
        """
        weight, bias = transported(source.weight, source.bias, class_plan(cost, self.epsilon))
        logits = [(linear(features, weight, bias), labels) for features, labels in labelled]
        images = _count(logits)
        right = torch.stack([(batch.argmax(1) == labels).float().sum() for batch, labels in logits]).sum()
        # A constant cost transports one mean to all classes.
        knows = bool(weight.abs().max() > 1e-6 * (source.weight - source.weight.mean(0)).square().mean().sqrt())
        sharpness = 1 / temperature(logits) if knows else 1 / HOTTEST
        used = sharpness > 1.02 / HOTTEST
        factor = self.gain * len(cost[0]) / images * min(1.0, sharpness) if used else 0.0
        target.weight.copy_(weight * factor)
        target.bias.copy_(bias * factor)
        return HeadEvidence(float(total(right)) / images, sharpness, used)


def class_plan(cost: Tensor, epsilon: float) -> Tensor:
    """The optimal plan (S, T) between the source classes, each of mass 1/S, and the target classes, each of 1/T.

    Args:
        cost: (S, T).
        epsilon: > 0, in the cost's units.
    """
    sources, targets = cost.shape
    log_a = cost.new_full((1, sources), -math.log(sources))
    log_b = cost.new_full((1, targets), -math.log(targets))
    return transport_plan(log_a, log_b, cost, epsilon, max_iterations=2000, tolerance=1e-5)[0]


def transported(weight: Tensor, bias: Tensor, plan: Tensor) -> tuple[Tensor, Tensor]:
    """The barycentric image of a head under a plan, less what all its classes share (which no softmax sees).

    Args:
        weight, bias: (S, D) and (S,).
        plan: (S, T), columns of positive mass.

    Returns:
        weight (T, D) and bias (T,), each of mean 0 over the classes.
    """
    shares = plan / plan.sum(0).clamp_min(torch.finfo(plan.dtype).tiny)  # (S, T), columns sum to 1
    weight, bias = shares.t() @ weight, shares.t() @ bias
    return weight - weight.mean(0), bias - bias.mean()


def _count(batches: list[Batch]) -> float:
    """How many images all processes have."""
    device = batches[0][0].device
    return float(total(torch.tensor([float(sum(len(labels) for _, labels in batches))], device=device)))
