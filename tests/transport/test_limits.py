"""The solver at its limits: extremes, stopping, memory, mistakes."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from torch.utils._python_dispatch import TorchDispatchMode
from transport_problems import EXACT, problem

from jtln.errors import UserError
from jtln.transport import check_cost, check_epsilon, plan_summary, sinkhorn, solvers, transport_plan
from jtln.transport.solvers import _choice

pytestmark = pytest.mark.usefixtures("one_thread")

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


def test_the_kernel_is_left_where_its_type_ends() -> None:
    """Apple's GPUs have no float64, and with it less room for the kernel."""
    cpu, mps = torch.device("cpu"), torch.device("mps")
    assert _choice("auto", 39.0, torch.float32, cpu) == ("kernel", torch.float32)
    assert _choice("auto", 41.0, torch.float32, cpu) == _choice("auto", 299.0, torch.float32, cpu)
    assert _choice("auto", 299.0, torch.float32, cpu) == ("kernel", torch.float64)
    assert _choice("auto", 301.0, torch.float32, cpu) == ("log", torch.float64)
    assert _choice("auto", 39.0, torch.float32, mps) == ("kernel", torch.float32)
    assert _choice("auto", 41.0, torch.float32, mps) == ("log", torch.float32)


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
    monkeypatch.setattr(solvers, "_CHUNK_ELEMENTS", 2 * 6 * 5)
    with _Largest() as largest:
        parts = sinkhorn(*inputs, 0.05, method="log")
        part_summary = plan_summary(parts, inputs[2], 0.05)
    assert largest.elements == 2 * 6 * 5
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(part_summary, summary)


# Mistakes


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (torch.tensor([[0.0, -0.5]]), r"cost.*>= 0.*-0\.5"),
        (torch.tensor([[0.0, math.nan]]), "finite cost.*NaN or infinity"),
        (torch.tensor([[0.0, math.inf]]), "finite cost.*NaN or infinity"),
        (torch.tensor([[0, 1]]), r"cost.*torch\.int64.*\.float\(\)"),
        (torch.zeros(2), r"cost.*\(S, T\).*\(2,\)"),
        (torch.zeros(0, 2), r"cost.*\(S, T\).*\(0, 2\)"),
        (torch.zeros(2, 1), r"cost.*\(S, T\) = \(1, 2\).*\(2, 1\)"),
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
    with pytest.raises(UserError, match=f"epsilon > 0.*{epsilon!r}"):
        check_epsilon(epsilon)
    with pytest.raises(UserError, match="epsilon"):
        sinkhorn(*problem(1, 2, 3), epsilon)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(2, 1), torch.zeros(3, 1), r"B >= 1.*\(2, 1\) and \(3, 1\)"),
        (torch.zeros(0, 1), torch.zeros(0, 1), r"B >= 1.*\(0, 1\) and \(0, 1\)"),
        (torch.zeros(1), torch.zeros(1), r"log_a.*\(B, S\).*\(1,\) and \(1,\)"),
        (torch.ones(2, 1), torch.zeros(2, 1), r"log_a.*2\.71828.*log_softmax"),
        (torch.zeros(2, 1), torch.full((2, 1), math.nan), "log_b.*nan"),
        (torch.zeros(2, 1), torch.full((2, 1), -math.inf), "log_b.* 0:"),
        (torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1), r"log_a.*torch\.int64"),
    ],
)
def test_bad_distributions(a: Tensor, b: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sinkhorn(a, b, torch.zeros(1, 1), 0.1)


def test_bad_options() -> None:
    inputs = problem(1, 2, 3)
    for count in (0, 1.5):
        with pytest.raises(UserError, match=rf"max_iterations >= 1.*max_iterations={count}"):
            sinkhorn(*inputs, 0.1, max_iterations=count)  # type: ignore[arg-type]
    for tolerance in (-1, math.nan, math.inf):
        with pytest.raises(UserError, match=rf"tolerance >= 0.*tolerance={tolerance}"):
            sinkhorn(*inputs, 0.1, tolerance=tolerance)
    with pytest.raises(UserError, match=r"method 'kernal'.*'kernel'"):
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
