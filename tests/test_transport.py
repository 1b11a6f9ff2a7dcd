"""Against POT and SciPy, closed forms, and finite differences."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import log_softmax
from torch.utils._python_dispatch import TorchDispatchMode

from jtln import transport
from jtln.errors import UserError
from jtln.transport import check_cost, check_epsilon, plan_summary, sinkhorn, transport_plan

SHAPES = [(1, 3, 5), (4, 7, 7), (3, 40, 12)]
EXACT: dict[str, Any] = {"tolerance": 1e-11, "max_iterations": 20000}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The problems are small: more threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem(
    batch: int, s: int, t: int, *, sharpness: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """log a (B, S), log b (B, T), a cost (S, T) in [0, 1]: distances of points in the plane."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    log_a, log_b = (log_softmax(sharpness * normal(batch, classes), 1) for classes in (s, t))
    cost = torch.cdist(normal(s, 2), normal(t, 2))
    return log_a.to(dtype), log_b.to(dtype), (cost / cost.max()).to(dtype)


def objective(plan: Tensor, cost: Tensor, epsilon: float) -> Tensor:
    """<g, C> - eps H(g), H(g) = -sum g (log g - 1), of plans (B, S, T)."""
    entropy = -(torch.xlogy(plan, plan) - plan).sum((1, 2))
    return (plan * cost).sum((1, 2)) - epsilon * entropy


def centred(potential: Tensor, mass: Tensor) -> Tensor:
    return potential - (potential * mass).sum(-1, keepdim=True)


def entropy(log_mass: Tensor) -> Tensor:
    return -(log_mass.exp() * log_mass).sum(1)


def one_hot_log(index: int, classes: int, batch: int) -> Tensor:
    log_mass = torch.full((batch, classes), -math.inf, dtype=torch.float64)
    log_mass[:, index] = 0.0
    return log_mass


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
    solver = transport._kernel_solver
    monkeypatch.setattr(transport, "_kernel_solver", lambda *x: seen.append(x[0].dtype) or solver(*x))
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


@pytest.mark.parametrize("method", ["kernel", "log"])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
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


# Extremes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [1e-3, 0.03, 1.0])
@pytest.mark.parametrize("check", [True, False])
def test_zeros_and_saturated_logits_give_finite_gradients(dtype: torch.dtype, epsilon: float, check: bool) -> None:
    cost = problem(1, 5, 4, dtype=dtype)[2]
    source = torch.tensor(
        [[1e4, -1e4, 0, 0, 0], [-1e4] * 4 + [1e4], [0.0] * 5, [1e4, 1e4, -1e4, -1e4, 0], [-math.inf, 1, 2, 3, 4]],
        dtype=dtype,
    )
    target = torch.tensor(
        [[-1e4, 1e4, 0, 0], [0, 1, 2, 3], [1e4, -1e4, 0, 0], [1e4, 1e4, -1e4, -1e4], [-math.inf, -math.inf, 0, 1]],
        dtype=dtype,
    )
    leaves = [source.requires_grad_(), target.requires_grad_()]
    result = sinkhorn(log_softmax(source, 1), log_softmax(target, 1), cost, epsilon, check=check, tolerance=1e-4)
    assert result.marginal_error.max() <= 1e-4
    assert all(bool(x.isfinite().all()) for x in result[:3])
    for gradient in torch.autograd.grad(result.value.sum(), leaves):
        assert bool(gradient.isfinite().all())
        torch.testing.assert_close(gradient.sum(1), torch.zeros(5, dtype=dtype), rtol=0, atol=1e-6)


def test_a_class_without_mass_changes_nothing() -> None:
    log_a, log_b, cost = problem(3, 5, 4)
    more_a = torch.cat([log_a, torch.full((3, 1), -math.inf, dtype=torch.float64)], 1)
    more_cost = torch.cat([cost, torch.zeros(1, 4, dtype=torch.float64)])
    plain, more = sinkhorn(log_a, log_b, cost, 0.1, **EXACT), sinkhorn(more_a, log_b, more_cost, 0.1, **EXACT)
    torch.testing.assert_close(plain.value, more.value)
    torch.testing.assert_close(plain.source_potential, more.source_potential[:, :5])
    assert float(transport_plan(more_a, log_b, more_cost, 0.1)[:, 5].max()) < 1e-300


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_computed_in_float32(dtype: torch.dtype) -> None:
    """Its rows sum to 1 to three digits only; normalised, both sides have the same mass and it converges."""
    log_a, log_b, cost = problem(8, 30, 20)
    result = sinkhorn(log_a.to(dtype), log_b.to(dtype), cost.to(dtype), 0.1)
    assert result.value.dtype == torch.float32
    assert result.marginal_error.max() <= 1e-6
    torch.testing.assert_close(result.value.double(), sinkhorn(log_a, log_b, cost, 0.1).value, rtol=0.02, atol=0.01)


def test_autocast_leaves_float32() -> None:
    inputs = problem(8, 30, 20, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = sinkhorn(*inputs, 0.1)
    assert inside.value.dtype == torch.float32
    torch.testing.assert_close(inside, sinkhorn(*inputs, 0.1), rtol=0, atol=0)


# Stopping


@pytest.mark.parametrize("method", ["kernel", "log"])
@pytest.mark.parametrize("iterations", [1, 3, 20, 37, 1000])
def test_marginal_error_is_that_of_the_plan(method: str, iterations: int) -> None:
    log_a, log_b, cost = problem(6, 20, 30, sharpness=3)
    options: dict[str, Any] = {"method": method, "max_iterations": iterations}
    result = sinkhorn(log_a, log_b, cost, 0.01, **options)
    plan = transport_plan(log_a, log_b, cost, 0.01, **options)
    assert result.iterations <= iterations
    assert result.iterations < iterations or iterations < 1000
    assert (result.marginal_error.max() <= 1e-6) == (iterations == 1000)
    torch.testing.assert_close(result.marginal_error, (plan.sum(2) - log_a.exp()).abs().sum(1), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(plan.sum(1), log_b.exp(), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("method", ["kernel", "log"])
def test_value_rises_to_the_optimum(method: str) -> None:
    """The dual objective never falls, over-relaxed (from iteration 51 on) or not."""
    inputs = problem(6, 20, 30)
    values = [
        sinkhorn(*inputs, 0.005, method=method, max_iterations=n, tolerance=0).value for n in (1, 5, 49, 51, 52, 63, 99)
    ]
    best = sinkhorn(*inputs, 0.005, tolerance=1e-12, max_iterations=50000).value
    for earlier, later in zip(values, [*values[1:], best], strict=True):
        assert bool((later >= earlier - 1e-12).all())


@pytest.mark.parametrize(("shape", "epsilon", "most"), [((64, 100, 31), 0.004, 200), ((16, 40, 30), 1e-3, 1500)])
def test_a_small_epsilon_converges(shape: tuple[int, int, int], epsilon: float, most: int) -> None:
    """Without over-relaxation the first needs 950 iterations, the second 6400."""
    result = sinkhorn(*problem(*shape), epsilon, tolerance=1e-4, max_iterations=most)
    assert float(result.marginal_error.max()) <= 1e-4


def test_nan_ends_the_iteration() -> None:
    log_a, log_b, cost = problem(3, 4, 5)
    log_a[1, 2] = math.nan
    result = sinkhorn(log_a, log_b, cost, 0.1, check=False)
    assert result.iterations == 1
    assert result.value.isnan().tolist() == [False, True, False]


# Memory


class _Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_memory_is_that_of_one_cost_and_never_of_a_plan_each() -> None:
    log_a, log_b, cost = problem(64, 1000, 256, dtype=torch.float32)
    log_a.requires_grad_()
    with _Largest() as largest:
        sinkhorn(log_a, log_b, cost, 0.1, max_iterations=30).value.sum().backward()
    assert largest.elements == 1000 * 256


def test_the_log_solver_and_the_plan_summary_work_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = problem(7, 6, 5)
    whole = sinkhorn(*inputs, 0.05, method="log")
    summary = plan_summary(whole, inputs[2], 0.05)
    monkeypatch.setattr(transport, "_CHUNK_ELEMENTS", 2 * 6 * 5)
    with _Largest() as largest:
        parts = sinkhorn(*inputs, 0.05, method="log")
        part_summary = plan_summary(parts, inputs[2], 0.05)
    assert largest.elements == 2 * 6 * 5
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(part_summary, summary)


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


# Mistakes


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (torch.tensor([[0.0, -0.5]]), r"expected a cost matrix >= 0, but its smallest entry is -0\.5"),
        (torch.tensor([[0.0, math.nan]]), "expected a finite cost matrix, but it holds NaN or infinity"),
        (torch.tensor([[0.0, math.inf]]), "expected a finite cost matrix, but it holds NaN or infinity"),
        (torch.tensor([[0, 1]]), r"expected a floating-point cost matrix, but got torch\.int64: .*\.float\(\)"),
        (torch.zeros(2), r"expected a cost matrix of shape \(S, T\), but got shape \(2,\)"),
        (torch.zeros(0, 2), r"expected a cost matrix of shape \(S, T\), but got shape \(0, 2\)"),
        (torch.zeros(2, 1), r"expected a cost matrix of shape \(S, T\) = \(1, 2\), but got \(2, 1\)"),
    ],
)
def test_bad_costs(cost: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sinkhorn(torch.zeros(1, 1), log_softmax(torch.zeros(1, 2), 1), cost, 0.1)
    if cost.shape != (2, 1):
        with pytest.raises(ValueError, match=message):
            check_cost(cost)


@pytest.mark.parametrize("epsilon", [0, -1, math.nan, math.inf, None, "small"])
def test_bad_epsilons(epsilon: Any) -> None:
    with pytest.raises(UserError, match="expected a finite number epsilon > 0, but got "):
        check_epsilon(epsilon)
    with pytest.raises(UserError, match="epsilon"):
        sinkhorn(*problem(1, 2, 3), epsilon)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(2, 1), torch.zeros(3, 1), r"the same B >= 1, but got \(2, 1\) and \(3, 1\)"),
        (torch.zeros(0, 1), torch.zeros(0, 1), r"the same B >= 1, but got \(0, 1\) and \(0, 1\)"),
        (torch.zeros(1), torch.zeros(1), r"log_a of shape \(B, S\) .* but got \(1,\) and \(1,\)"),
        (torch.ones(2, 1), torch.zeros(2, 1), r"log-probabilities in log_a, .* sums to 2\.71828: take log_softmax"),
        (torch.zeros(2, 1), torch.full((2, 1), math.nan), "log-probabilities in log_b, .* sums to nan"),
        (torch.zeros(2, 1), torch.full((2, 1), -math.inf), "log-probabilities in log_b, .* sums to 0"),
        (torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1), r"log_a to be floating-point .* got torch\.int64"),
    ],
)
def test_bad_distributions(a: Tensor, b: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sinkhorn(a, b, torch.zeros(1, 1), 0.1)


def test_bad_options() -> None:
    inputs = problem(1, 2, 3)
    with pytest.raises(UserError, match="expected max_iterations >= 1, but got 0"):
        sinkhorn(*inputs, 0.1, max_iterations=0)
    with pytest.raises(UserError, match=r"unknown Sinkhorn method 'kernal': expected .* Did you mean 'kernel'"):
        sinkhorn(*inputs, 0.1, method="kernal")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("epsilon", [1e-3, 0.03, 0.1])
def test_cuda_agrees_with_the_cpu(epsilon: float, precision: str) -> None:
    inputs = problem(32, 100, 31, sharpness=3, dtype=torch.float32)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        gpu = sinkhorn(*(x.cuda() for x in inputs), epsilon, tolerance=1e-5)
    finally:
        torch.set_float32_matmul_precision(before)
    cpu = sinkhorn(*inputs, epsilon, tolerance=1e-5)
    assert gpu.value.is_cuda
    for ours, theirs in zip(gpu[:3], cpu[:3], strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-4 * max(epsilon, 0.1))
