"""Transport plans: of a batch of predictions, and between the classes themselves."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jtln.transport.sinkhorn import SinkhornResult, sinkhorn
from jtln.transport.solvers import chunks, log_plan


class PlanSummary(NamedTuple):
    """Statistics of a batch of transport plans."""

    mean_plan: Tensor  # (S, T) the plans' mean over the batch
    linear_cost: Tensor  # (B,) <g, C>
    entropy: Tensor  # (B,) -sum g log g, in nats, in [0, log(S T)]


def transport_plan(log_a: Tensor, log_b: Tensor, cost: Tensor, epsilon: float, **options: Any) -> Tensor:
    """Return the transport plans (B, S, T) themselves, detached: for inspection, not for training.

    Arguments and errors are those of :func:`sinkhorn`. For a whole data set :func:`plan_summary` needs far less memory.
    """
    with torch.no_grad():
        result = sinkhorn(log_a, log_b, cost, epsilon, **options)
        cost = cost.to(result.value)
        return torch.exp(log_plan(result.source_potential, result.target_potential, cost, epsilon))


@torch.no_grad()
def plan_summary(result: SinkhornResult, cost: Tensor, epsilon: float) -> PlanSummary:
    """Return mean plan, linear cost and entropy of the plans in ``result``, without ever holding them all.

    Args:
        result: the value of :func:`sinkhorn` for this cost and epsilon.
        cost: (S, T).
        epsilon: > 0, in the cost's units.
    """
    f, g = result.source_potential, result.target_potential
    cost = cost.detach().to(f)
    mean_plan, linear_cost, entropy = torch.zeros_like(cost), [], []
    for rows in chunks(f.shape[0], cost.numel()):
        log_g = log_plan(f[rows], g[rows], cost, epsilon)  # (b, S, T)
        plan = log_g.exp()
        mean_plan += plan.sum(0) / f.shape[0]
        linear_cost.append((plan * cost).sum((1, 2)))
        entropy.append(-(plan * log_g).sum((1, 2)))
    return PlanSummary(mean_plan, torch.cat(linear_cost), torch.cat(entropy))


def class_plan(cost: Tensor, epsilon: float) -> Tensor:
    """Return the optimal plan (S, T) between the source classes, each of mass 1/S, and the target classes, each of 1/T.

    Args:
        cost: (S, T).
        epsilon: > 0, in the cost's units.
    """
    sources, targets = cost.shape
    log_a = cost.new_full((1, sources), -math.log(sources))
    log_b = cost.new_full((1, targets), -math.log(targets))
    return transport_plan(log_a, log_b, cost, epsilon, max_iterations=2000, tolerance=1e-5)[0]
