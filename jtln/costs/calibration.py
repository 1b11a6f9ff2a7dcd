"""What a fixed cost teaches: the plan between the classes, as sharp as the labelled images bear it out.

Under a cost C a source image of class i teaches the target head softmax(-C_i / eps). In these rows a target class that is near to everything counts as much as one that is near to this class alone, and how far the cost is
to be believed is a guess. Both can be mended before training. The optimal plan between the classes, each of the same
mass on its side, is the same for a cost to which a number is added in a row or a column: it keeps what C says of one
pair against others,

    R_ij = P_ij / sum_j P_ij,        P = argmin over g in Pi(1/S, 1/T) of <g, C> - e * H(g),

and the pre-trained source head s, with R, says of a target image which class it is: q(x) = sum_i s_i(x) R_i. The
labelled images, of which none has been used, choose e: that at which their labels are most likely, or no plan at all
(R = 1/T) where none makes them likelier than chance, as of a cost that knows nothing here. Both transport terms, on
source images and to the labels of target images, then have the cost of which R are the rows, -eps log R, up to a
constant in each row. Ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from jtln.costs import is_constant
from jtln.distributed import Batch, accumulation_dtype, all_reduce_sum
from jtln.transport.plans import class_plan

EPSILONS = tuple(0.02 * 2 ** (step / 2) for step in range(15))  # 0.02 to 2.56, of the cost's range
_LEAST = 1e-8  # a share of a row's largest, which keeps the cost finite


class Calibration(NamedTuple):
    """How far the labelled images bear a cost out."""

    epsilon: float  # of the plan, as a share of the cost's range; infinite where the cost says nothing of them
    surprise: float  # mean of -log q(x)_y over the labelled images, in nats; log T is chance


@torch.no_grad()
def calibrated(cost: Tensor, epsilon: float, seen: Iterable[Batch]) -> tuple[Tensor, Calibration]:
    """The cost for the transport loss, and what it rests on.

    Args:
        cost: (S, T); a constant one comes back as it is.
        epsilon: of the transport loss, > 0: the cost that comes out is in its units.
        seen: batches of the pre-trained source head's logits (B, S) on labelled target images, and their labels (B,),
            this process's share.

    Returns:
        (S, T) finite, >= 0, each row's least 0.
    """
    targets = cost.shape[1]
    if is_constant(cost):
        return cost, Calibration(math.inf, math.log(targets))
    width = float(cost.max() - cost.min())
    batches = [(logits.float().softmax(1), labels) for logits, labels in seen]
    flat = torch.full_like(cost, 1 / targets)
    best = flat, Calibration(math.inf, _surprise(flat, batches))
    for share in EPSILONS[::-1]:  # from the softest on: of equals the one that claims less
        plan = class_plan(cost, share * width)
        rows = plan / plan.sum(1, keepdim=True)
        surprise = _surprise(rows, batches)
        if surprise < best[1].surprise - 1e-6:
            best = rows, Calibration(share, surprise)
    rows, found = best
    return -epsilon * (rows / rows.amax(1, keepdim=True)).clamp_min(_LEAST).log(), found


def _surprise(rows: Tensor, batches: list[Batch]) -> float:
    """Mean of -log q(x)_y over the images of all processes."""
    kind = accumulation_dtype(rows)
    sums = rows.new_zeros(2, dtype=kind)
    for probabilities, labels in batches:
        given = (probabilities @ rows).gather(1, labels[:, None])
        sums[0] -= given.to(kind).clamp_min(1e-12).log().sum()
        sums[1] += len(labels)
    summed, count = all_reduce_sum(sums).tolist()
    return summed / count
