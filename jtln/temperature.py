"""The temperature of logits at which held-out labels are most likely."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from jtln.distributed import Batch, accumulation_dtype, all_reduce_sum
from jtln.errors import UserError

COLDEST, HOTTEST = 0.05, 20.0  # a classifier that makes no mistake would get 0, one that only guesses infinity
_PRECISION = 1e-8  # of the temperature's logarithm


@torch.no_grad()
def temperature(logits: Iterable[Batch]) -> float:
    """Return the temperature tau in [0.05, 20] at which softmax(logits / tau) has the least cross-entropy.

    Args:
        logits: batches of logits (B, S) and labels (B,) of images that the head was NOT trained on, this process's
            share of them.
    """
    from scipy.optimize import brentq  # here: --help stays quick

    batches = [(batch.float(), labels) for batch, labels in logits]
    if not batches:
        raise UserError("expected at least one batch of logits to calibrate with, but got none")

    def slope(log_beta: float) -> float:
        """Return the derivative of the summed cross-entropy in beta = 1 / tau, in which it is convex."""
        kind, beta = accumulation_dtype(batches[0][0]), math.exp(log_beta)
        value = batches[0][0].new_zeros((), dtype=kind)
        for z, labels in batches:
            expected = ((beta * z).softmax(1) * z).sum(1)  # (B,)
            value += (expected - z.gather(1, labels[:, None])[:, 0]).to(kind).sum()
        return float(all_reduce_sum(value))

    low, high = math.log(1 / HOTTEST), math.log(1 / COLDEST)
    if not slope(high) > 0:  # also when it is NaN
        return COLDEST
    if slope(low) >= 0:
        return HOTTEST
    return math.exp(-float(brentq(slope, low, high, xtol=_PRECISION)))


class TemperatureFit(NamedTuple):
    """A temperature and the mean negative log-likelihood of the labels under it."""

    temperature: float
    nll: float  # mean negative log-likelihood of the labels, in nats


def fit_temperature(batches: list[Batch]) -> TemperatureFit:
    """Find the temperature, of any size, at which the labels are most likely.

    Args:
        batches: logits (B, T), float64, and labels (B,), this process's share of them.
    """
    batches = [(z - z.mean(1, keepdim=True), labels) for z, labels in batches]  # what all classes share is of no effect

    def summed(values: Iterable[Tensor]) -> float:
        return float(all_reduce_sum(torch.stack(list(values)).sum()))

    numbers = summed(z.new_tensor(float(z.numel())) for z, _ in batches)
    scale = max(math.sqrt(summed(z.square().sum() for z, _ in batches) / numbers), 1e-12)
    tau = scale * temperature([(z / scale, labels) for z, labels in batches])
    lost = summed(cross_entropy(z / tau, labels, reduction="sum") for z, labels in batches)
    return TemperatureFit(tau, lost * batches[0][0].shape[1] / numbers)
