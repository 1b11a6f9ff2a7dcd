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
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jtln.errors import UserError, unknown
from jtln.transport.solvers import chunks, log_plan, solve

METHODS = ("auto", "kernel", "log")


class SinkhornResult(NamedTuple):
    """The solution of a batch of entropic transport problems.

    The plan is ``exp((source_potential[:, :, None] + target_potential[:, None, :] - cost) / epsilon)``.
    """

    value: Tensor  # (B,) OT_eps(a, b; C), from below if not converged; differentiable in log_a, log_b and cost
    source_potential: Tensor  # (B, S) f, centred: <a, f> = 0
    target_potential: Tensor  # (B, T) g, which takes the shift
    iterations: int  # full iterations done (each is one update of f and one of g)
    marginal_error: Tensor  # (B,) sum_i |row sum of the plan - a_i|; the column sums are exact


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
    if not (isinstance(epsilon, Real) and 0 < epsilon < math.inf):
        raise UserError(f"expected a finite number epsilon > 0, but got {epsilon!r}")


def check_limits(max_iterations: int, tolerance: float) -> None:
    """Raise a UserError unless at least one iteration is allowed and the tolerance is 0 or more."""
    finite = isinstance(tolerance, Real) and 0 <= tolerance < math.inf
    if not isinstance(max_iterations, int) or max_iterations < 1 or not finite:
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
        value, f, g, iterations, error = solve(log_a, log_b, cost, epsilon, max_iterations, tolerance, method)
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
            for rows in chunks(f.shape[0], cost.numel()):
                plan = torch.exp(log_plan(f[rows], g[rows], cost, ctx.epsilon))
                grad_cost += (weight[rows, :, None] * plan).sum(0)
        return grad_a, grad_b, grad_cost, None, None, None, None
