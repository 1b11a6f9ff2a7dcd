"""Entropic optimal transport between batches of class distributions under one shared cost matrix.

    OT_eps(a, b; C) = min over g in Pi(a, b) of <g, C> - eps * H(g),    H(g) = -sum_ij g_ij (log g_ij - 1)

a (S,) and b (T,) are two distributions, C (S, T) says what it costs to explain class i of the one by class j of the
other, and Pi(a, b) holds the transport plans g (S, T) with row sums a and column sums b. The solution is
g_ij = exp((f_i + g_j - C_ij) / eps) for a pair of dual potentials f, g, which Sinkhorn's iteration finds (Cuturi,
arXiv 1306.0895; Peyré & Cuturi, arXiv 1803.00567, section 4). Three properties make it a cheap loss:

- C is one matrix for the whole batch, so a half-step is one matrix product with the kernel K = exp(-C/eps): memory is
  B (S + T) + S T, never B S T.
- The value's gradient in a and b is the pair of potentials (envelope theorem): nothing is backpropagated through the
  iterations.
- Distributions come in as log-probabilities, so that a class whose probability underflows keeps a finite potential.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jtln.errors import UserError, unknown

METHODS = ("auto", "kernel", "log")

# The kernel's entries lie in [exp(-range), 1], range = (max C - min C) / eps after the rows' and columns' minima are
# taken out; the scalings u, v then lie within exp(+-2 range). Up to these ranges they fit the type, with room to spare.
_LARGEST_RANGE = {torch.float32: 40.0, torch.float64: 300.0}
# Over-relaxation: a potential goes past its update by 0.75 of the step f_new - f_old, of which no more than 0.5 eps is
# counted upwards. With d = step / eps and x = 0.75 min(d, 0.5) the dual objective changes by the sum of
# a_i (d + x - exp(x) + exp(-d)) >= 0 eps over the classes, so it never falls, whatever the problem. At a small epsilon
# this saves most of the iterations; an easy problem has converged before it begins.
_RELAXATION, _LARGEST_STEP, _PLAIN_ITERATIONS = 0.75, 0.5, 50
_NEGLIGIBLE = -700.0  # exp of less is subnormal in float64, on which arithmetic is slow
_CHUNK_ELEMENTS = 2**20  # how much of a (B, S, T) array the log-domain solver and the plan's statistics hold at once


class SinkhornResult(NamedTuple):
    """The solution of a batch of entropic transport problems.

    The plan is ``exp((source_potential[:, :, None] + target_potential[:, None, :] - cost) / epsilon)``.
    """

    value: Tensor  # (B,) OT_eps(a, b; C), from below if not converged; differentiable in log_a, log_b and cost
    source_potential: Tensor  # (B, S) f, centred: <a, f> = 0
    target_potential: Tensor  # (B, T) g, which takes the shift
    iterations: int  # full iterations done (each is one update of f and one of g)
    marginal_error: Tensor  # (B,) sum_i |row sum of the plan - a_i|; the column sums are exact


class PlanSummary(NamedTuple):
    """What a batch of transport plans looks like."""

    mean_plan: Tensor  # (S, T) the plans' mean over the batch
    linear_cost: Tensor  # (B,) <g, C>
    entropy: Tensor  # (B,) -sum g log g, in nats, in [0, log(S T)]


def sinkhorn(
    log_a: Tensor,
    log_b: Tensor,
    cost: Tensor,
    epsilon: float,
    *,
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
    method: str = "auto",
    check: bool = True,
) -> SinkhornResult:
    """Solve B entropic transport problems that share one cost matrix.

    Half-precision input, and any input inside autocast, is computed in float32; where that would not do (a small
    epsilon, or matrix products that torch was told to do in TF32 or bfloat16) the iterations are in float64.

    Args:
        log_a: (B, S) log-probabilities of the source classes, each row summing to 1 after ``exp`` but for rounding,
            which is normalised away; -inf is a zero.
        log_b: (B, T) log-probabilities of the target classes.
        cost: (S, T) finite, >= 0.
        epsilon: the entropy's weight, > 0, in the units of ``cost``.
        max_iterations: the most iterations done, >= 1. The result tells by ``marginal_error`` whether it sufficed.
        tolerance: stop when no problem's marginal error is above this. It is looked at after iterations 1, 2, 4, 8
            and then every tenth, so a GPU is not waited for at each one.
        method: "kernel" multiplies by K = exp(-C/eps); "log" works on log K, slower by far (some 8 ns for each of the
            B S T entries in an iteration) and safe at every epsilon; "auto" takes the kernel, in float64 if need be,
            wherever it cannot underflow: down to an epsilon of 1/300 of the cost's range (1/40 on Apple GPUs).
        check: look at the cost's entries, at epsilon and at the probabilities first (this waits for a GPU).

    Returns:
        The values, potentials, number of iterations and marginal errors. A class of zero mass gets the potential of
        the smallest positive number as its mass, so that potentials are finite.

    Raises:
        UserError: (a ValueError) shapes do not fit, epsilon is not above 0, the cost is negative or not finite, or
            the log-probabilities are none.
    """
    if check:
        check_cost(cost)
        check_epsilon(epsilon)
    check_limits(max_iterations, tolerance)
    if method not in METHODS:
        raise unknown("Sinkhorn method", method, METHODS)
    _check_shapes(log_a, log_b, cost)
    if check:
        _check_log_probabilities("log_a", log_a)
        _check_log_probabilities("log_b", log_b)
    with torch.autocast(log_a.device.type, enabled=False):
        dtype = torch.float64 if torch.float64 in (log_a.dtype, log_b.dtype) else torch.float32
        log_a, log_b, cost = log_a.to(dtype), log_b.to(dtype), cost.to(log_a.device, dtype)
        return SinkhornResult(
            *_OptimalTransport.apply(log_a, log_b, cost, float(epsilon), max_iterations, tolerance, method)
        )


def transport_plan(log_a: Tensor, log_b: Tensor, cost: Tensor, epsilon: float, **options: Any) -> Tensor:
    """The transport plans (B, S, T) themselves: for looking at, not for training (they are detached).

    Arguments and errors are those of :func:`sinkhorn`. For a whole data set :func:`plan_summary` needs far less memory.
    """
    with torch.no_grad():
        result = sinkhorn(log_a, log_b, cost, epsilon, **options)
        cost = cost.to(result.value)
        return torch.exp(_log_plan(result.source_potential, result.target_potential, cost, epsilon))


@torch.no_grad()
def plan_summary(result: SinkhornResult, cost: Tensor, epsilon: float) -> PlanSummary:
    """Mean plan, linear cost and entropy of the plans in ``result``, without ever holding them all.

    Args:
        result: what :func:`sinkhorn` returned for this ``cost`` (S, T) and ``epsilon``.
    """
    f, g = result.source_potential, result.target_potential
    cost = cost.detach().to(f)
    mean_plan, linear_cost, entropy = torch.zeros_like(cost), [], []
    for rows in _chunks(f.shape[0], cost.numel()):
        log_plan = _log_plan(f[rows], g[rows], cost, epsilon)  # (b, S, T)
        plan = log_plan.exp()
        mean_plan += plan.sum(0) / f.shape[0]
        linear_cost.append((plan * cost).sum((1, 2)))
        entropy.append(-(plan * log_plan).sum((1, 2)))
    return PlanSummary(mean_plan, torch.cat(linear_cost), torch.cat(entropy))


def check_cost(cost: Tensor) -> None:
    """Raise a UserError unless ``cost`` is a floating-point matrix (S, T) with finite entries >= 0."""
    if cost.ndim != 2 or cost.numel() == 0:
        raise UserError(f"expected a cost matrix of shape (S, T), but got shape {tuple(cost.shape)}")
    if not cost.is_floating_point():
        raise UserError(f"expected a floating-point cost matrix, but got {cost.dtype}: convert it with .float()")
    lowest, highest = (float(bound) for bound in torch.aminmax(cost.detach()))
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise UserError("expected a finite cost matrix, but it holds NaN or infinity")
    if lowest < 0:
        raise UserError(f"expected a cost matrix >= 0, but its smallest entry is {lowest:g}")


def check_epsilon(epsilon: float) -> None:
    """Raise a UserError unless epsilon is a finite number above 0."""
    if isinstance(epsilon, str) or epsilon is None or not (epsilon > 0 and math.isfinite(epsilon)):
        raise UserError(f"expected a finite number epsilon > 0, but got {epsilon!r}")


def check_limits(max_iterations: int, tolerance: float) -> None:
    """Raise a UserError unless at least one iteration is allowed and the tolerance is 0 or more."""
    if max_iterations < 1 or not tolerance >= 0:
        raise UserError(
            f"expected max_iterations >= 1 and tolerance >= 0, but got max_iterations={max_iterations}, "
            f"tolerance={tolerance}"
        )


def _check_shapes(log_a: Tensor, log_b: Tensor, cost: Tensor) -> None:
    if log_a.ndim != 2 or log_b.ndim != 2 or log_a.shape[0] != log_b.shape[0] or log_a.shape[0] == 0:
        raise UserError(
            "expected log_a of shape (B, S) and log_b of shape (B, T) with the same B >= 1, but got "
            f"{tuple(log_a.shape)} and {tuple(log_b.shape)}"
        )
    if cost.shape != (log_a.shape[1], log_b.shape[1]):
        raise UserError(
            f"expected a cost matrix of shape (S, T) = {(log_a.shape[1], log_b.shape[1])}, but got {tuple(cost.shape)}"
        )


def _check_log_probabilities(name: str, log_mass: Tensor) -> None:
    if not log_mass.is_floating_point():
        raise UserError(f"expected {name} to be floating-point log-probabilities, but got {log_mass.dtype}")
    total = log_mass.detach().float().exp().sum(1)  # (B,)
    wrong = ~((total - 1).abs() <= 0.05)  # bfloat16 has two to three digits
    if bool(wrong.any()):
        raise UserError(
            f"expected log-probabilities in {name}, whose exp sums to 1 in every row, but got a row that sums to "
            f"{float(total[wrong][0]):g}: take log_softmax(logits, dim=1)"
        )


class _OptimalTransport(torch.autograd.Function):
    """The value and its gradient; the potentials come along without one."""

    @staticmethod
    def forward(
        ctx: Any,
        log_a: Tensor,
        log_b: Tensor,
        cost: Tensor,
        epsilon: float,
        max_iterations: int,
        tolerance: float,
        method: str,
    ) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
        value, f, g, iterations, error = _solve(log_a, log_b, cost, epsilon, max_iterations, tolerance, method)
        ctx.save_for_backward(log_a, log_b, cost, f, g)
        ctx.epsilon = epsilon
        ctx.mark_non_differentiable(f, g, error)
        return value, f, g, iterations, error

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_value: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        log_a, log_b, cost, f, g = ctx.saved_tensors
        weight = grad_value[:, None]  # (B, 1)
        grad_a = grad_b = grad_cost = None
        if ctx.needs_input_grad[0]:
            a = log_a.exp()
            grad_a = weight * a * (f - (a * f).sum(1, keepdim=True))  # d value / d log a = a f, f up to a constant
        if ctx.needs_input_grad[1]:
            b = log_b.exp()
            grad_b = weight * b * (g - (b * g).sum(1, keepdim=True))
        if ctx.needs_input_grad[2]:  # d value / d C is the plan
            grad_cost = torch.zeros_like(cost)
            for rows in _chunks(f.shape[0], cost.numel()):
                plan = torch.exp(_log_plan(f[rows], g[rows], cost, ctx.epsilon))
                grad_cost += (weight[rows, :, None] * plan).sum(0)
        return grad_a, grad_b, grad_cost, None, None, None, None


def _solve(
    log_a: Tensor,
    log_b: Tensor,
    cost: Tensor,
    epsilon: float,
    max_iterations: int,
    tolerance: float,
    method: str,
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """Take the rows' and columns' minima out of the cost, choose a solver, and put them back into the potentials."""
    row = cost.amin(1)  # (S,)
    column = (cost - row[:, None]).amin(0)  # (T,)
    reduced = cost - row[:, None] - column
    dtype = log_a.dtype
    method, work = _choice(method, float(reduced.max()) / epsilon, dtype, log_a.device)
    log_a, a = _masses(log_a.to(work), torch.finfo(dtype).tiny)
    log_b, b = _masses(log_b.to(work), torch.finfo(dtype).tiny)
    solver = _kernel_solver if method == "kernel" else _log_solver
    f, g, iterations, error = solver(log_a, log_b, a, b, reduced.to(work), epsilon, max_iterations, tolerance)

    f, g = f + row, g + column
    centre = (a * f).sum(1, keepdim=True)  # (B, 1)
    f, g = f - centre, g + centre
    # The dual objective <a, f> + <b, g> - eps sum(plan): <a, f> is 0 now, and the plan's column sums are b, which sums
    # to 1, after an update of g. Whatever the potentials, it is a lower bound of the optimum.
    value = (b * g).sum(1) - epsilon
    return value.to(dtype), f.to(dtype), g.to(dtype), iterations, error.to(dtype)


def _choice(method: str, kernel_range: float, dtype: torch.dtype, device: torch.device) -> tuple[str, torch.dtype]:
    """The solver, and the type that it computes in."""
    has_double = device.type != "mps"
    if method == "auto":
        largest = _LARGEST_RANGE[torch.float64 if has_double else torch.float32]
        method = "kernel" if kernel_range <= largest else "log"
    double = method == "log" or kernel_range > _LARGEST_RANGE[dtype] or _products_are_rounded(device)
    return method, torch.float64 if double and has_double else dtype


def _products_are_rounded(device: torch.device) -> bool:
    """Whether float32 matrix products have fewer digits than float32 (``torch.set_float32_matmul_precision``)."""
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return backend.matmul.fp32_precision in ("tf32", "bf16")


def _masses(log_mass: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Normalised log-masses, all finite, and the masses themselves, (B, C) each.

    A zero counts as the ``smallest`` positive number where a logarithm is taken, and as a zero where it is not. So
    does what lies below it, its own logarithm aside: arithmetic on subnormal numbers is slow.
    """
    mass = torch.where(log_mass <= math.log(smallest), 0.0, log_mass.exp())  # NaN stays
    total = mass.sum(1, keepdim=True)  # (B, 1)
    log_mass = torch.where(log_mass == -math.inf, math.log(smallest), log_mass)
    return log_mass - total.log(), mass / total


def _is_checked(iteration: int, max_iterations: int) -> bool:
    return iteration % 10 == 0 or iteration in (1, 2, 4, 8, max_iterations)


def _kernel_solver(
    log_a: Tensor,
    log_b: Tensor,
    a: Tensor,
    b: Tensor,
    cost: Tensor,
    epsilon: float,
    max_iterations: int,
    tolerance: float,
) -> tuple[Tensor, Tensor, int, Tensor]:
    """Sinkhorn on the scalings u = exp(f / eps), v = exp(g / eps): the plan is u_i K_ij v_j.

    Peyré & Cuturi, arXiv 1803.00567, section 4.2: u = a / (K v), v = b / (K^T u), here for B pairs (a, b) at once.
    """

    def relaxed(last: Tensor, new: Tensor) -> Tensor:
        """K v or K^T u as the over-relaxed step leaves it: log (K v) moves against f, so signs change."""
        root = (new / last).clamp_(min=math.exp(-_LARGEST_STEP)).sqrt_()
        return root.mul_(root.sqrt()).mul_(new)  # new (new / last) ** 0.75; a power takes several times as long

    kernel = torch.exp(cost / -epsilon)  # (S, T)
    kernel_t = kernel.t().contiguous()  # (T, S)
    kernel_v, kernel_u = b @ kernel_t, b  # (B, S), (B, T)
    for iteration in range(1, max_iterations + 1):
        is_plain, is_checked = iteration <= _PLAIN_ITERATIONS, _is_checked(iteration, max_iterations)
        u = a / kernel_v  # (B, S)
        new = u @ kernel  # (B, T)
        kernel_u = new if is_plain or is_checked else relaxed(kernel_u, new)
        v = b / kernel_u  # (B, T)
        new = v @ kernel_t  # (B, S) for the next update, and the plan's row sums u * (K v)
        if is_checked:
            error = (u * new - a).abs().sum(1)  # (B,)
            if iteration == max_iterations or not float(error.max()) > tolerance:  # also when it is NaN
                break
        kernel_v = new if is_plain else relaxed(kernel_v, new)
    # log a - log K v, and not log u: a class whose probability underflowed keeps a finite potential.
    return epsilon * (log_a - kernel_v.log()), epsilon * (log_b - kernel_u.log()), iteration, error


def _log_solver(
    log_a: Tensor,
    log_b: Tensor,
    a: Tensor,
    b: Tensor,
    cost: Tensor,
    epsilon: float,
    max_iterations: int,
    tolerance: float,
) -> tuple[Tensor, Tensor, int, Tensor]:
    """Sinkhorn on the potentials themselves (Peyré & Cuturi, arXiv 1803.00567, section 4.4).

    Epsilon comes down from the cost's largest entry by halves, two iterations each: at a small epsilon a cold start
    would need iterations in proportion to 1/epsilon only to move mass across.
    """

    def update(log_mass: Tensor, potential: Tensor, cost: Tensor, eps: float) -> Tensor:
        """eps * (log_mass_i - logsumexp_j (potential_j - cost_ij) / eps), a chunk of the batch at a time."""
        parts = []
        for rows in _chunks(potential.shape[0], cost.numel()):
            exponent = (potential[rows, None, :] - cost).div_(eps)
            largest = exponent.amax(2, keepdim=True)
            total = exponent.sub_(largest).clamp_(min=_NEGLIGIBLE).exp_().sum(2)
            parts.append(total.log_().add_(largest[:, :, 0]))
        return eps * (log_mass - torch.cat(parts))

    def relaxed(last: Tensor, new: Tensor) -> Tensor:
        return new + _RELAXATION * (new - last).clamp_(max=_LARGEST_STEP * epsilon)

    cost_t = cost.t().contiguous()
    g = torch.zeros_like(log_b)
    largest = float(cost.max())
    for halvings in range(math.ceil(math.log2(max(largest / epsilon, 1.0))), 0, -1):
        for _ in range(2):
            f = update(log_a, g, cost, epsilon * 2**halvings)
            g = update(log_b, f, cost_t, epsilon * 2**halvings)
    f = update(log_a, g, cost, epsilon)
    for iteration in range(1, max_iterations + 1):
        is_plain, is_checked = iteration <= _PLAIN_ITERATIONS, _is_checked(iteration, max_iterations)
        new = update(log_b, f, cost_t, epsilon)
        g = new if is_plain or is_checked else relaxed(g, new)
        new = update(log_a, g, cost, epsilon)
        if is_checked:
            error = (torch.exp((f - new) / epsilon + log_a) - a).abs().sum(1)  # the plan's row sums against a
            if iteration == max_iterations or not float(error.max()) > tolerance:  # also when it is NaN
                break
        f = new if is_plain else relaxed(f, new)
    return f, g, iteration, error


def _log_plan(f: Tensor, g: Tensor, cost: Tensor, epsilon: float) -> Tensor:
    """(f_i + g_j - C_ij) / eps, (B, S, T)."""
    return (f[:, :, None] + g[:, None, :] - cost) / epsilon


def _chunks(batch: int, elements: int) -> Iterator[slice]:
    """Slices of a batch of problems of ``elements`` = S T entries each that keep to the memory allowed."""
    size = max(1, _CHUNK_ELEMENTS // elements)
    return (slice(start, start + size) for start in range(0, batch, size))
