"""Plans of batches and between classes, against POT, sums by hand and closed forms."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from transport_problems import one_hot_log, problem

from jtln.transport import class_plan, plan_summary, sinkhorn, transport_plan

pytestmark = pytest.mark.usefixtures("one_thread")

S, T = 6, 3


def test_plan_summary_is_that_of_the_plans() -> None:
    log_a, log_b, cost = problem(7, 6, 5)
    log_a[0] = one_hot_log(1, 6, 1)
    result = sinkhorn(log_a, log_b, cost, 0.05)
    plan = transport_plan(log_a, log_b, cost, 0.05)
    summary = plan_summary(result, cost, 0.05)
    torch.testing.assert_close(summary.mean_plan, plan.mean(0))
    torch.testing.assert_close(summary.linear_cost, (plan * cost).sum((1, 2)))
    torch.testing.assert_close(summary.entropy, -torch.xlogy(plan, plan).sum((1, 2)))
    torch.testing.assert_close(result.value, summary.linear_cost - 0.05 * (summary.entropy + 1), rtol=1e-4, atol=1e-6)


def test_the_class_plan_is_pots() -> None:
    cost = torch.rand(S, T, generator=torch.Generator().manual_seed(1))
    expected = ot.sinkhorn(np.full(S, 1 / S), np.full(T, 1 / T), cost.double().numpy(), 0.2, stopThr=1e-12)
    np.testing.assert_allclose(class_plan(cost, 0.2).numpy(), expected, atol=1e-6)


def test_what_rows_and_columns_share_does_not_change_the_class_plan() -> None:
    generator = torch.Generator().manual_seed(2)
    cost = torch.rand(S, T, generator=generator)
    shifted = cost + torch.rand(S, 1, generator=generator) + torch.rand(1, T, generator=generator)
    torch.testing.assert_close(class_plan(cost, 0.1), class_plan(shifted, 0.1), atol=1e-5, rtol=1e-3)


def test_the_class_plan_of_a_constant_cost_is_even() -> None:
    torch.testing.assert_close(class_plan(torch.full((S, T), 0.4), 0.1), torch.full((S, T), 1 / (S * T)))
