"""Sinkhorn's iteration for a batch of problems with one cost matrix: on the scalings, and on the potentials."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

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


def solve(
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
    """Return the solver, and the dtype that it computes in."""
    has_double = device.type != "mps"
    if method == "auto":
        largest = _LARGEST_RANGE[torch.float64 if has_double else torch.float32]
        method = "kernel" if kernel_range <= largest else "log"
    double = method == "log" or kernel_range > _LARGEST_RANGE[dtype] or _products_are_rounded(device)
    return method, torch.float64 if double and has_double else dtype


def _products_are_rounded(device: torch.device) -> bool:
    """Return True if float32 matrix products are rounded further (``torch.set_float32_matmul_precision``)."""
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
        """Return eps * (log_mass_i - logsumexp_j (potential_j - cost_ij) / eps), a chunk of the batch at a time."""
        parts = []
        for rows in chunks(potential.shape[0], cost.numel()):
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


def log_plan(f: Tensor, g: Tensor, cost: Tensor, epsilon: float) -> Tensor:
    """(f_i + g_j - C_ij) / eps, (B, S, T)."""
    return (f[:, :, None] + g[:, None, :] - cost) / epsilon


def chunks(batch: int, elements: int) -> Iterator[slice]:
    """Slices of a batch of problems of ``elements`` = S T entries each that keep to the memory allowed."""
    size = max(1, _CHUNK_ELEMENTS // elements)
    return (slice(start, start + size) for start in range(0, batch, size))
