"""Calibration of a fixed cost: the plan between the classes, as sharp as the labelled images support.

Under a cost C a source image of class i teaches the target head the soft label softmax(-C_i / eps). There a target
class that is near to every source class counts as much as one that is near to this class alone, and how much the cost
is worth is a guess. Both are settled before training. The optimal plan between the classes, each of equal mass on its
side, does not change when a number is added to a row or a column: it keeps the cost of one pair relative to others,

    R_ij = P_ij / sum_j P_ij,        P = argmin over g in Pi(1/S, 1/T) of <g, C> - e * H(g),

and with the pre-trained source head s it predicts a target image's class, q(x) = sum_i s_i(x) R_i. The labelled images
choose e: the one at which their labels are most likely, or no plan at all (R = 1/T) where none makes them likelier than
chance. Both transport terms then use the cost whose soft labels are the rows of R, -eps log R, up to a constant in each
row. Scoring labels by a relation read through the source head is a LEEP score (Nguyen et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jtln.costs.base import is_constant
from jtln.distributed import Batch, accumulation_dtype, all_reduce_sum
from jtln.transport.prior import EPSILONS, shares

_LEAST = 1e-8  # a share of a row's largest, which keeps the cost finite


class Calibration(NamedTuple):
    """The agreement of a cost with the labelled images."""

    epsilon: float  # of the plan, as a share of the cost's range; infinite where no plan is likelier than chance
    nll: float  # mean negative log-likelihood of the labelled images under q, in nats
    chance: float  # log T


@torch.no_grad()
def calibrate(
    cost: Tensor, epsilon: float, logits: Iterable[Batch], unknown_targets: Sequence[int] = ()
) -> tuple[Tensor, Calibration]:
    """Return the cost for the transport loss, and the calibration that it rests on.

    Args:
        cost: (S, T); a constant one comes back as it is.
        epsilon: of the transport loss, > 0: the cost that comes out is in its units.
        logits: batches of the pre-trained source head's logits (B, S) on labelled target images, and their labels (B,),
            this process's share.
        unknown_targets: target classes that the cost knows nothing of, see :func:`jtln.transport.relation`.

    Returns:
        (S, T) finite, >= 0, each row's least 0.
    """
    targets = cost.shape[1]
    chance = math.log(targets)
    if is_constant(cost):
        return cost, Calibration(math.inf, chance, chance)
    width = float(cost.max() - cost.min())
    batches = [(each.float().softmax(1), labels) for each, labels in logits]
    flat = torch.full_like(cost, 1 / targets)
    best = flat, Calibration(math.inf, _nll(flat, batches), chance)
    for share in EPSILONS[::-1]:  # from the softest on: on ties, keep the softer plan
        rows = shares(cost, share * width, unknown_targets=unknown_targets)
        nll = _nll(rows, batches)
        if nll < best[1].nll - 1e-6:
            best = rows, Calibration(share, nll, chance)
    rows, found = best
    return -epsilon * (rows / rows.amax(1, keepdim=True)).clamp_min(_LEAST).log(), found


def _nll(rows: Tensor, batches: list[Batch]) -> float:
    """Mean of -log q(x)_y over the images of all processes."""
    kind = accumulation_dtype(rows)
    sums = rows.new_zeros(2, dtype=kind)
    for probabilities, labels in batches:
        given = (probabilities @ rows).gather(1, labels[:, None])
        sums[0] -= given.to(kind).clamp_min(1e-12).log().sum()
        sums[1] += len(labels)
    summed, count = all_reduce_sum(sums).tolist()
    return summed / count
