"""Calibration of a fixed cost: the plan between the classes, as sharp as the labelled images support.

Under a cost C, the transport loss on a source image of class i gives the target head the soft label
softmax(-C_i / eps). This label has two defects: a target class that is near to every source class counts as much as
one that is near to class i only, and the sharpness eps is a guess. Calibration removes both before training. The
optimal plan between the classes, with equal masses on each side, does not change if a constant is added to a row or a
column of C. It keeps only the cost of a pair relative to the others,

    R_ij = P_ij / sum_j P_ij,        P = argmin over g in Pi(1/S, 1/T) of <g, C> - e * H(g).

With the pre-trained source head s, R predicts the class of a target image, q(x) = sum_i s_i(x) R_i. The chosen e has
the least negative log-likelihood of the labelled images; if no plan is better than chance, R = 1/T. Both transport
terms then use the cost -eps log R, whose soft labels are the rows of R, up to a constant in each row. The score of
labels under a class posterior through the source head is a LEEP score (Nguyen et al. 2020).
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

_LEAST = 1e-8  # lower bound of an entry, as a share of its row's largest, which keeps the cost finite


class Calibration(NamedTuple):
    """The agreement of a cost with the labelled images."""

    epsilon: float  # of the plan, as a share of the cost's range; infinite if no plan is better than chance
    nll: float  # mean negative log-likelihood of the labelled images under q, in nats
    chance: float  # log T


@torch.no_grad()
def calibrate(
    cost: Tensor, epsilon: float, logits: Iterable[Batch], unknown_targets: Sequence[int] = ()
) -> tuple[Tensor, Calibration]:
    """Return the calibrated cost for the transport loss, and the calibration.

    Args:
        cost: (S, T); a constant cost is returned unchanged.
        epsilon: of the transport loss, > 0: the unit of the calibrated cost.
        logits: batches of the pre-trained source head's logits (B, S) on labelled target images, and their labels (B,),
            this process's share.
        unknown_targets: target classes for which the cost has no information, see :func:`jtln.transport.relation`.

    Returns:
        (S, T) finite, >= 0, with a minimum of 0 in each row; and its calibration.
    """
    targets = cost.shape[1]
    chance = math.log(targets)
    if is_constant(cost):
        return cost, Calibration(math.inf, chance, chance)
    width = float(cost.max() - cost.min())
    batches = [(each.float().softmax(1), labels) for each, labels in logits]
    flat = torch.full_like(cost, 1 / targets)
    best = flat, Calibration(math.inf, _nll(flat, batches), chance)
    for share in EPSILONS[::-1]:  # The softest plan comes first, so that ties keep the softer one.
        rows = shares(cost, share * width, unknown_targets=unknown_targets)
        nll = _nll(rows, batches)
        if nll < best[1].nll - 1e-6:
            best = rows, Calibration(share, nll, chance)
    rows, found = best
    return -epsilon * (rows / rows.amax(1, keepdim=True)).clamp_min(_LEAST).log(), found


def _nll(rows: Tensor, batches: list[Batch]) -> float:
    """Return the mean of -log q(x)_y over the images of all processes."""
    kind = accumulation_dtype(rows)
    sums = rows.new_zeros(2, dtype=kind)
    for probabilities, labels in batches:
        given = (probabilities @ rows).gather(1, labels[:, None])
        sums[0] -= given.to(kind).clamp_min(1e-12).log().sum()
        sums[1] += len(labels)
    summed, count = all_reduce_sum(sums).tolist()
    return summed / count
