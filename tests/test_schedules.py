"""Against torch's schedulers and values by hand."""

import math

import pytest
import torch

from jtln.errors import UserError
from jtln.schedules import Constant, Cosine, Linear, Schedule, Step


def test_constant() -> None:
    assert [Constant()(p) for p in (0.0, 0.3, 1.0)] == [1.0, 1.0, 1.0]


def test_linear_falls_and_stays() -> None:
    schedule = Linear(until=0.5, final=0.2)
    assert [schedule(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([1.0, 0.6, 0.2, 0.2, 0.2])


def test_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.1)
    ours = Cosine(final=0.1)
    for step in range(21):
        assert ours(step / 20) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_step_multiplies_at_each_milestone() -> None:
    schedule = Step(milestones=(0.5, 0.75), gamma=0.1)
    assert [schedule(p) for p in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("schedule", [Constant(0.2), Linear(0.2), Cosine(0.2), Step(0.2, milestones=(0.5,))])
def test_warmup_rises_from_zero_into_the_shape(schedule: Schedule) -> None:
    assert [schedule(p) for p in (0.0, 0.1)] == pytest.approx([0.0, 0.5])
    assert schedule(0.2) == 1.0
    assert schedule(0.8) == pytest.approx(schedule.shape(0.75))  # of what follows the warm-up
    assert schedule(1.0) == pytest.approx(schedule.shape(1.0))
    assert all(0 <= schedule(p / 97) <= 1 for p in range(98))


def test_mistakes() -> None:
    for warmup in (-0.1, 1.0, math.nan):
        with pytest.raises(UserError, match=rf"warmup in \[0, 1\).*{warmup}"):
            Cosine(warmup=warmup)
    for until in (0.0, 1.5, math.nan):
        with pytest.raises(UserError, match=rf"until in \(0, 1\].*{until}"):
            Linear(until=until)
    with pytest.raises(UserError, match=r"warmup.*2\.0"):
        Linear(warmup=2.0)


@pytest.mark.parametrize("milestone", [0, 1, 3, -0.5])
def test_milestones_are_shares_of_training(milestone: float) -> None:
    with pytest.raises(UserError, match=rf"milestones.*{milestone}"):
        Step(milestones=[0.5, milestone])
