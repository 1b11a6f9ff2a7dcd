"""Calibration of a cost on labelled images, against POT, SciPy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch
from scipy.special import logsumexp, softmax
from torch import Tensor

from jtln.costs.calibration import EPSILONS, calibrate
from jtln.transport import TransportLoss

S, T = 6, 3
LOSS = 0.2  # epsilon of the transport loss


def related(noise: float, seed: int = 0) -> Tensor:
    """Return a cost (S, T): two source classes near to each target class, noise, and row and column constants."""
    generator = torch.Generator().manual_seed(seed)
    near = 1 - torch.eye(T).repeat_interleave(S // T, 0)
    common = torch.rand(S, 1, generator=generator) + torch.rand(1, T, generator=generator)
    return near + common + noise * torch.rand(S, T, generator=generator)


def images(count: int = 40, lean: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the source head's logits (count, S) on target images, which favour the near source classes, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % T
    near = torch.eye(T).repeat_interleave(S // T, 1)[labels]  # (count, S)
    return lean * near + 2 * torch.randn(count, S, generator=generator), labels


def nll(logits: Tensor, labels: Tensor, rows: np.ndarray) -> float:
    """Return the mean of -log q_y, with q the source head's probabilities times the rows (S, T)."""
    log_q = logsumexp(np.log(softmax(logits.double().numpy(), 1))[:, :, None] + np.log(rows)[None], axis=1)
    return float(-log_q[np.arange(len(labels)), labels.numpy()].mean())


@pytest.mark.slow
def test_the_soft_labels_are_the_rows_of_the_plan_of_the_least_nll() -> None:
    cost, (logits, labels) = related(0.5), images(lean=1.5)
    used, found = calibrate(cost, LOSS, [(logits[:15], labels[:15]), (logits[15:], labels[15:])])
    width = float(cost.max() - cost.min())
    tried = {}
    for share in EPSILONS:
        plan = ot.sinkhorn(
            np.full(S, 1 / S),
            np.full(T, 1 / T),
            cost.double().numpy(),
            share * width,
            method="sinkhorn_log",
            stopThr=1e-9,
        )
        tried[share] = plan / plan.sum(1, keepdims=True)
    best = min(tried, key=lambda share: nll(logits, labels, tried[share]))
    assert EPSILONS[0] < best < EPSILONS[-1]  # a choice between sharper and softer plans
    assert found.epsilon == best
    assert found.nll == pytest.approx(nll(logits, labels, tried[best]), abs=1e-4)
    assert found.nll < found.chance == pytest.approx(math.log(T))
    assert float(used.min()) >= 0
    assert used.amin(1).tolist() == [0.0] * S
    np.testing.assert_allclose(softmax(-used.numpy() / LOSS, 1), tried[best], atol=2e-4)


def test_what_rows_and_columns_share_is_of_no_effect() -> None:
    cost, batches = related(0.3), [images()]
    shifted = cost + torch.linspace(0, 1.5, T)
    (one, first), (other, second) = (calibrate(each, LOSS, batches) for each in (cost, shifted))
    assert first.nll == pytest.approx(second.nll, abs=0.02)  # but for the steps between the epsilons
    assert torch.equal(one.argmin(1), other.argmin(1))
    uncalibrated = torch.softmax(-shifted / LOSS, 1)
    assert not torch.equal(uncalibrated.argmax(1), other.argmin(1))  # here what columns share counts


def test_a_cost_that_the_labels_contradict_becomes_constant() -> None:
    used, found = calibrate(related(0.1).roll(S // T, 0), LOSS, [images()])
    assert math.isinf(found.epsilon)
    assert found.nll == pytest.approx(math.log(T))
    assert torch.equal(used, torch.zeros(S, T))


def test_a_constant_cost_stays_as_it_is() -> None:
    used, found = calibrate(torch.ones(S, T), LOSS, [images()])
    assert torch.equal(used, torch.ones(S, T))
    assert (found.epsilon, found.nll, found.chance) == (math.inf, math.log(T), math.log(T))


def test_a_cost_that_predicts_every_label_stays_finite() -> None:
    used, found = calibrate(1 - torch.eye(T), LOSS, [(50 * torch.eye(T), torch.arange(T))])
    assert found.epsilon == EPSILONS[0] or found.nll < 1e-5
    assert bool(used.isfinite().all())
    loss = TransportLoss(used, LOSS)(torch.randn(4, T), torch.randn(4, T))
    assert bool(loss.isfinite())


def test_on_ties_the_softer_plan_is_kept() -> None:
    """Images with uninformative source predictions: all plans between these classes have the same likelihood."""
    logits, labels = torch.zeros(T, S), torch.arange(T)
    used, found = calibrate(1 - torch.eye(T).repeat(S // T, 1), LOSS, [(logits, labels)])
    assert math.isinf(found.epsilon)
    assert torch.equal(used, torch.zeros(S, T))
