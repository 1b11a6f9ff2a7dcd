"""How a trained source head sees the target's classes: p(source class | target class), and the head's temperature.

The relation is Co-Tuning's in its direct form, as its authors' Transfer-Learning-Library has it (thuml, commit c4aa59e,
tllib/regularization/co_tuning.py); the paper (You et al., 2020) was not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from jtln.errors import UserError
from jtln.pooling import Batch, class_sums, total, wide

COLDEST, HOTTEST = 0.05, 20.0  # temperatures; a head that makes no mistake would have none, one that only guesses all
_PRECISION = 1e-8  # of the temperature's logarithm


def source_given_target(logits: Iterable[Batch], classes: int) -> Tensor:
    """p(source class | target class): the mean of the source head's probabilities over each target class's images.

    Args:
        logits: batches of the source head's logits (B, S) on target images and their target labels (B,), this
            process's share of them.
        classes: T.

    Returns:
        (T, S) float32, rows sum to 1; a class without an image has 1/S everywhere.
    """
    sums, counts = class_sums(((batch.float().softmax(1), labels) for batch, labels in logits), classes)
    means = sums / counts.clamp_min(1)[:, None]  # (T, S)
    return torch.where(counts[:, None] > 0, means, 1 / sums.shape[1])


@torch.no_grad()
def temperature(logits: Iterable[Batch]) -> float:
    """The temperature tau at which softmax(logits / tau) has the least cross-entropy, in [0.05, 20].

    Args:
        logits: batches of logits (B, S) and labels (B,) of images that the head was NOT trained on, this process's
            share of them.
    """
    from scipy.optimize import brentq  # here: --help stays quick

    batches = [(batch.float(), labels) for batch, labels in logits]
    if not batches:
        raise UserError("expected at least one batch of logits to calibrate with, but got none")

    def slope(log_beta: float) -> float:
        """Of the summed cross-entropy in beta = 1 / tau; it rises with beta, for the cross-entropy is convex in it."""
        kind, beta = wide(batches[0][0]), math.exp(log_beta)
        value = batches[0][0].new_zeros((), dtype=kind)
        for z, labels in batches:
            expected = ((beta * z).softmax(1) * z).sum(1)  # (B,)
            value += (expected - z.gather(1, labels[:, None])[:, 0]).to(kind).sum()
        return float(total(value))

    low, high = math.log(1 / HOTTEST), math.log(1 / COLDEST)
    if not slope(high) > 0:  # also when it is NaN
        return COLDEST
    if slope(low) >= 0:
        return HOTTEST
    return math.exp(-float(brentq(slope, low, high, xtol=_PRECISION)))
