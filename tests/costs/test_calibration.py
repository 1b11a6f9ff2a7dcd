"""What the labelled images bear out of a cost, against POT, SciPy and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import ot
import pytest
import pytorch_lightning as pl
import torch
from scipy.special import logsumexp, softmax
from tiny import TinySpec
from torch import Tensor

from jtln.costs.calibration import EPSILONS, calibrated
from jtln.data.loaders import PairData
from jtln.module import JTLN
from jtln.transport.loss import TransportLoss
from jtln.transport.plans import class_plan
from jtln.trunks.base import Trunk

S, T = 6, 3
LOSS = 0.2  # epsilon of the transport loss


def truth(noise: float, seed: int = 0) -> Tensor:
    """(S, T): two source classes near to each target class, with noise and what rows and columns have in common."""
    generator = torch.Generator().manual_seed(seed)
    near = 1 - torch.eye(T).repeat_interleave(S // T, 0)
    common = torch.rand(S, 1, generator=generator) + torch.rand(1, T, generator=generator)
    return near + common + noise * torch.rand(S, T, generator=generator)


def images(count: int = 40, sure: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The source head's logits (count, S) on target images, which lean to the near source classes, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % T
    lean = sure * torch.eye(T).repeat_interleave(S // T, 1)[labels]  # (count, S)
    return lean + 2 * torch.randn(count, S, generator=generator), labels


def surprise(logits: Tensor, labels: Tensor, rows: np.ndarray) -> float:
    log_q = logsumexp(np.log(softmax(logits.double().numpy(), 1))[:, :, None] + np.log(rows)[None], axis=1)
    return float(-log_q[np.arange(len(labels)), labels.numpy()].mean())


def test_the_loss_is_taught_the_rows_of_the_likeliest_plan() -> None:
    cost, (logits, labels) = truth(0.5), images(sure=1.5)
    found, evidence = calibrated(cost, LOSS, [(logits[:15], labels[:15]), (logits[15:], labels[15:])])
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
    best = min(tried, key=lambda share: surprise(logits, labels, tried[share]))
    assert EPSILONS[0] < best < EPSILONS[-1]  # so that sharpness is chosen, both ways
    assert evidence.epsilon == best
    assert evidence.surprise == pytest.approx(surprise(logits, labels, tried[best]), abs=1e-4)
    assert evidence.surprise < math.log(T)
    assert float(found.min()) >= 0
    np.testing.assert_allclose(softmax(-found.numpy() / LOSS, 1), tried[best], atol=2e-4)


def test_what_rows_and_columns_have_in_common_teaches_nothing() -> None:
    cost, seen = truth(0.3), [images()]
    shifted = cost + torch.linspace(0, 1.5, T)
    (one, first), (other, second) = (calibrated(each, LOSS, seen) for each in (cost, shifted))
    assert first.surprise == pytest.approx(second.surprise, abs=0.02)  # but for the steps between the epsilons
    assert torch.equal(one.argmin(1), other.argmin(1))
    raw = torch.softmax(-shifted / LOSS, 1)
    assert not torch.equal(raw.argmax(1), other.argmin(1))  # as it is, the cost would have said something else


def test_a_cost_that_the_labels_speak_against_teaches_nothing() -> None:
    wrong = truth(0.1).roll(S // T, 0)
    found, evidence = calibrated(wrong, LOSS, [images()])
    assert math.isinf(evidence.epsilon)
    assert evidence.surprise == pytest.approx(math.log(T))
    assert torch.equal(found, torch.zeros(S, T))


def test_a_constant_cost_stays_as_it_is() -> None:
    found, evidence = calibrated(torch.ones(S, T), LOSS, [images()])
    assert torch.equal(found, torch.ones(S, T))
    assert math.isinf(evidence.epsilon)


def test_certain_knowledge_stays_finite() -> None:
    cost = 1 - torch.eye(T)
    logits, labels = 50 * torch.eye(T), torch.arange(T)
    found, evidence = calibrated(cost, LOSS, [(logits, labels)])
    assert evidence.epsilon == EPSILONS[0] or evidence.surprise < 1e-5
    assert bool(found.isfinite().all())
    loss = TransportLoss(found, LOSS)(torch.randn(4, T), torch.randn(4, T))
    assert bool(loss.isfinite())


def module(make_trunk: Callable[..., Trunk], cost: Tensor, **options: bool) -> JTLN:
    torch.manual_seed(0)
    spec = TinySpec()
    transport = TransportLoss(cost, LOSS)
    return JTLN(make_trunk(), spec.source_classes, spec.target_classes, transport, **options)


@pytest.mark.parametrize("calibrate", [True, False])
def test_a_training_begins_with_it(
    calibrate: bool, make_trunk: Callable[..., Trunk], fit: Callable[..., tuple[pl.Trainer, PairData]]
) -> None:
    cost = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    trained = module(make_trunk, cost, calibrate=calibrate)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    _, data = fit(trained)
    assert trained.transport is not None
    if not calibrate:
        assert torch.equal(trained.transport.cost, cost)
        assert trained.calibration.tolist() == [-1, -1]
        return
    first = module(make_trunk, cost, calibrate=True)  # as it was before the first step
    first.load_state_dict(before)
    with torch.no_grad():
        seen = [
            (first.source_head(first.trunk(data.transform_eval(images))), labels)
            for images, labels in data.feature_dataloader_of("target")
        ]
    expected, evidence = calibrated(cost, LOSS, seen)
    torch.testing.assert_close(trained.transport.cost, expected)
    assert trained.calibration.tolist() == pytest.approx(list(evidence))

    resumed = module(make_trunk, cost, calibrate=True)
    resumed.load_state_dict(trained.state_dict())
    fit(resumed)
    assert resumed.transport is not None
    torch.testing.assert_close(resumed.transport.cost, expected)  # and not the calibration of what had been calibrated


def test_the_class_plan_is_the_one_of_pot() -> None:
    cost = torch.rand(S, T, generator=torch.Generator().manual_seed(1))
    expected = ot.sinkhorn(np.full(S, 1 / S), np.full(T, 1 / T), cost.double().numpy(), 0.2, stopThr=1e-12)
    np.testing.assert_allclose(class_plan(cost, 0.2).numpy(), expected, atol=1e-6)


def test_what_rows_and_columns_have_in_common_does_not_change_the_plan() -> None:
    cost = torch.rand(S, T, generator=torch.Generator().manual_seed(2))
    shifted = cost + torch.rand(S, 1) + torch.rand(1, T)
    torch.testing.assert_close(class_plan(cost, 0.1), class_plan(shifted, 0.1), atol=1e-5, rtol=1e-3)
