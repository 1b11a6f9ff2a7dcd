"""Against POT and SciPy, closed forms, and finite differences."""

import math
import warnings
from typing import Any

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import log_softmax
from transport_problems import EXACT, SHAPES, centred, entropy, objective, one_hot_log, problem

from jtln.transport import sinkhorn, solvers, transport_plan

pytestmark = pytest.mark.usefixtures("one_thread")

# Against POT


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("epsilon", [1e-2, 0.1, 1.0, 10.0])
def test_agrees_with_pots_batched_solver(shape: tuple[int, int, int], epsilon: float) -> None:
    log_a, log_b, cost = problem(*shape)
    result = sinkhorn(log_a, log_b, cost, epsilon, **EXACT)
    plan = transport_plan(log_a, log_b, cost, epsilon, **EXACT)
    theirs = ot.solve_batch(
        cost.expand(shape[0], -1, -1).contiguous(),
        epsilon,
        log_a.exp(),
        log_b.exp(),
        reg_type="entropy",
        grad="detach",
        max_iter=20000,
        tol=1e-12,
    )
    torch.testing.assert_close(plan, theirs.plan, rtol=1e-6, atol=1e-9)
    # POT's entropy is -sum g log g: it lacks our sum g = 1.
    torch.testing.assert_close(result.value, theirs.value - epsilon, rtol=1e-9, atol=1e-11)
    for ours, logarithm, mass in zip(result[1:3], theirs.potentials, (log_a.exp(), log_b.exp()), strict=True):
        torch.testing.assert_close(
            centred(ours, mass), centred(epsilon * logarithm.reshape_as(mass), mass), rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("epsilon", [1e-3, 3e-3, 0.03, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_pots_solver_for_one_problem(shape: tuple[int, int, int], epsilon: float) -> None:
    log_a, log_b, cost = problem(*shape, sharpness=3)
    result = sinkhorn(log_a, log_b, cost, epsilon, tolerance=1e-9, max_iterations=20000)
    assert result.marginal_error.max() <= 1e-9
    a, b = (log_mass[0].exp().numpy() for log_mass in (log_a, log_b))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # POT is not always content at the smallest epsilon
        theirs = ot.sinkhorn(a, b, cost.numpy(), epsilon, "sinkhorn_log", numItermax=20000, stopThr=1e-9)
    plan = torch.as_tensor(theirs)[None]
    if abs(plan.sum(2).numpy() - a).sum() < 1e-7:
        torch.testing.assert_close(result.value[:1], objective(plan, cost, epsilon), rtol=1e-6, atol=1e-9)
    ours = transport_plan(log_a, log_b, cost, epsilon, tolerance=1e-9, max_iterations=20000)
    # Optimal by itself, whatever POT says: the plan has the marginals and its value is the dual's.
    torch.testing.assert_close(ours.sum(2), log_a.exp(), rtol=0, atol=1e-8)
    torch.testing.assert_close(ours.sum(1), log_b.exp(), rtol=0, atol=1e-8)
    torch.testing.assert_close(result.value, objective(ours, cost, epsilon), rtol=0, atol=1e-8)


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("epsilon", [0.005, 0.03, 0.3, 5.0])
def test_kernel_and_log_solvers_agree(sharpness: float, epsilon: float) -> None:
    inputs = problem(5, 9, 14, sharpness=sharpness)
    kernel = sinkhorn(*inputs, epsilon, method="kernel", **EXACT)
    log = sinkhorn(*inputs, epsilon, method="log", **EXACT)
    for x, y in zip(kernel[:3], log[:3], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("epsilon", [1e-3, 0.01, 1 / 41, 1 / 39, 0.1, 1.0, 10.0])
def test_float32_agrees_with_float64(sharpness: float, epsilon: float) -> None:
    """1/39 and 1/41 lie on the two sides of the range up to which the kernel is float32."""
    inputs = problem(16, 100, 31, sharpness=sharpness)
    options: dict[str, Any] = {"tolerance": 1e-5, "max_iterations": 200}
    double = sinkhorn(*inputs, epsilon, **options)
    single = sinkhorn(*(x.float() for x in inputs), epsilon, **options)
    assert {x.dtype for x in (single.value, *single[1:3], single.marginal_error)} == {torch.float32}
    scale = double.value.abs().clamp_min(epsilon)
    assert float(((single.value - double.value).abs() / scale).max()) < 1e-5
    assert single.iterations <= double.iterations + 20  # rounding does not keep it from converging


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [10, 39.9, 40.1, 90, 299, 301, 1000])
@pytest.mark.parametrize("rest", [0.0, 1e-30, 1e-6])
def test_all_mass_may_have_to_go_where_the_kernel_is_least(dtype: torch.dtype, spread: float, rest: float) -> None:
    """The class the source is sure of is the farthest from the one the target is sure of: K = exp(-spread)."""
    cost = torch.tensor([[0, 0.4, 1], [0.4, 0, 0.4], [1, 0.4, 0]], dtype=dtype)  # its range is 1, minima taken out
    a = torch.tensor([[1 - 2 * rest, rest, rest]], dtype=dtype)
    inputs = (a.log(), a.flip(1).log(), cost)
    result = sinkhorn(*inputs, 1 / spread)
    exact = sinkhorn(*(x.double() for x in inputs), 1 / spread, method="log", **EXACT)
    torch.testing.assert_close(result.value.double(), exact.value, rtol=2e-6, atol=2e-6)
    assert all(bool(x.isfinite().all()) for x in result[:3])
    assert float(result.marginal_error) <= 1e-6


def test_products_rounded_to_bfloat16_or_tf32_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = problem(8, 30, 20, sharpness=3, dtype=torch.float32)
    seen = []
    solver = solvers._kernel_solver
    monkeypatch.setattr(solvers, "_kernel_solver", lambda *x: seen.append(x[0].dtype) or solver(*x))
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            assert sinkhorn(*inputs, 0.1).value.dtype == torch.float32
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [torch.float32, torch.float64]


# Gradients


@pytest.mark.parametrize(
    ("method", "epsilon"),
    [("kernel", 0.05), ("kernel", 0.5), ("log", 0.5), pytest.param("log", 0.05, marks=pytest.mark.slow)],
)
def test_gradients_agree_with_finite_differences(method: str, epsilon: float) -> None:
    log_a, log_b, cost = problem(3, 4, 6)
    logits = [x.clone().requires_grad_() for x in (log_a, log_b, cost)]
    weight = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)

    def loss(x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        value = sinkhorn(
            log_softmax(x, 1), log_softmax(y, 1), c, epsilon, method=method, tolerance=1e-13, max_iterations=9000
        ).value
        return value, (weight * value).sum()

    assert torch.autograd.gradcheck(loss, logits, atol=1e-6)


def test_gradient_in_the_cost_is_the_weighted_plan() -> None:
    log_a, log_b, cost = problem(5, 6, 4)
    cost.requires_grad_()
    weight = torch.arange(5.0, dtype=torch.float64)
    (weight * sinkhorn(log_a, log_b, cost, 0.2, **EXACT).value).sum().backward()
    plan = transport_plan(log_a, log_b, cost, 0.2, **EXACT)
    torch.testing.assert_close(cost.grad, (weight[:, None, None] * plan).sum(0), rtol=1e-8, atol=1e-10)
    assert not plan.requires_grad


def test_potentials_carry_no_gradient_and_the_source_potential_is_centred() -> None:
    log_a, log_b, cost = problem(3, 4, 6)
    result = sinkhorn(log_a.requires_grad_(), log_b, cost, 0.2)
    assert result.value.requires_grad
    assert not any(x.requires_grad for x in (*result[1:3], result.marginal_error))
    torch.testing.assert_close(
        (log_a.exp() * result.source_potential).sum(1).abs().max().item(), 0.0, rtol=0, atol=1e-12
    )


# Closed forms


def test_one_class_on_each_side() -> None:
    zero = torch.zeros(2, 1, dtype=torch.float64)
    result = sinkhorn(zero, zero, torch.tensor([[0.7]], dtype=torch.float64), 0.1)
    torch.testing.assert_close(result.value, torch.full((2,), 0.7 - 0.1, dtype=torch.float64))
    assert result.iterations == 1


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 10.0])
def test_constant_cost_is_a_confidence_penalty(epsilon: float) -> None:
    """c - eps (H(a) + H(b) + 1), at every epsilon: the plan is a b^T."""
    log_a, log_b, cost = problem(4, 6, 9, sharpness=3)
    logits = [x.clone().requires_grad_() for x in (log_a, log_b)]
    x, y = (log_softmax(z, 1) for z in logits)
    value = sinkhorn(x, y, torch.full_like(cost, 0.4), epsilon, **EXACT).value
    expected = 0.4 - epsilon * (entropy(x) + entropy(y) + 1)
    torch.testing.assert_close(value, expected)
    for ours, theirs in zip(
        torch.autograd.grad(value.sum(), logits, retain_graph=True),
        torch.autograd.grad(expected.sum(), logits),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_a_shifted_cost_shifts_the_value_alone() -> None:
    log_a, log_b, cost = problem(4, 6, 9)
    log_a.requires_grad_()
    near, far = (sinkhorn(log_a, log_b, c, 0.1, **EXACT).value for c in (cost, cost + 3.0))
    torch.testing.assert_close(far, near + 3.0)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), log_a)[0] for v in (near, far)), rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(*(transport_plan(log_a, log_b, c, 0.1, **EXACT) for c in (cost, cost + 3.0)))


def test_small_epsilon_finds_the_optimal_assignment() -> None:
    cost = torch.rand(8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    uniform = torch.full((1, 8), -math.log(8), dtype=torch.float64)
    plan = transport_plan(uniform, uniform, cost, 2e-3, max_iterations=5000)[0]
    rows, columns = linear_sum_assignment(cost.numpy())
    assert np.array_equal(plan.argmax(1).numpy(), columns)
    torch.testing.assert_close((8 * plan)[rows, columns], torch.ones(8, dtype=torch.float64), rtol=0, atol=0.05)
    value = float(sinkhorn(uniform, uniform, cost, 2e-3, max_iterations=5000).value)
    least = cost.numpy()[rows, columns].mean()
    assert least - 2e-3 * (math.log(64) + 1) <= value <= least


@pytest.mark.parametrize("zero", [-math.inf, -1e4, -200.0])
@pytest.mark.parametrize("epsilon", [1e-3, 0.02, 0.1, 2.0])
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_sure_head_teaches_the_other_a_soft_label(side: str, epsilon: float, zero: float) -> None:
    """OT_eps(e_i, b; C) = eps KL(b || softmax(-C_i / eps)) - eps logsumexp(-C_i / eps) - eps: value and gradient."""
    _, log_b, cost = problem(4, 6, 9)
    logits = log_b.clone().requires_grad_()
    y = log_softmax(logits, 1)
    sure = one_hot_log(2, 6, 4).clamp_min(zero)
    result = (
        sinkhorn(sure, y, cost, epsilon, **EXACT) if side == "source" else sinkhorn(y, sure, cost.t(), epsilon, **EXACT)
    )
    label = log_softmax(-cost[2] / epsilon, 0)
    kl = (y.exp() * (y - label)).sum(1)
    expected = epsilon * kl - epsilon * torch.logsumexp(-cost[2] / epsilon, 0) - epsilon
    torch.testing.assert_close(result.value, expected, rtol=1e-9, atol=1e-12)
    ours, theirs = (torch.autograd.grad(v.sum(), logits, retain_graph=True)[0] for v in (result.value, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-11)
    assert all(bool(x.isfinite().all()) for x in result[1:3])


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 10.0])
def test_two_sure_heads_pay_the_cost_of_their_classes(epsilon: float) -> None:
    _, _, cost = problem(1, 6, 9)
    result = sinkhorn(one_hot_log(2, 6, 3), one_hot_log(7, 9, 3), cost, epsilon)
    torch.testing.assert_close(result.value, (cost[2, 7] - epsilon).expand(3))
