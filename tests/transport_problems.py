"""Transport problems and their quantities, for the tests of the solver."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

SHAPES = [(1, 3, 5), (4, 7, 7), (3, 40, 12)]
EXACT: dict[str, Any] = {"tolerance": 1e-11, "max_iterations": 20000}


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
