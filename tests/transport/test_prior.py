"""The transported prior: its rows, its value, and how it bounds the transport loss."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch

from jtln.errors import UserError
from jtln.transport import TransportedPrior, label_transport, relation, sinkhorn

S, T = 5, 4


@pytest.fixture
def cost() -> torch.Tensor:
    return torch.rand(S, T, generator=torch.Generator().manual_seed(0))


def logits(count: int, classes: int, seed: int = 1) -> torch.Tensor:
    return 2 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rows_are_those_of_pots_plan(cost: torch.Tensor) -> None:
    plan = ot.sinkhorn(np.full(S, 1 / S), np.full(T, 1 / T), cost.double().numpy(), 0.1, stopThr=1e-12)
    np.testing.assert_allclose(relation(cost, 0.1).numpy(), plan * S, atol=2e-5)


def test_rows_of_the_soft_labels(cost: torch.Tensor) -> None:
    torch.testing.assert_close(relation(cost, 0.1, "softmax"), (-cost / 0.1).softmax(1))


def test_a_constant_cost_gives_a_uniform_prior() -> None:
    found = TransportedPrior(relation(torch.ones(S, T), 0.1)).log_q(logits(3, S))
    torch.testing.assert_close(found, torch.full((3, T), -math.log(T)), atol=1e-6, rtol=0)


def test_q_is_one_matrix_product(cost: torch.Tensor) -> None:
    rows = relation(cost, 0.1)
    prior, z = TransportedPrior(rows, alpha=0.5, temperature=2.0), logits(6, S).float()
    expected = np.log(torch.softmax(z / 2, 1).numpy() @ rows.numpy())
    np.testing.assert_allclose(prior.log_q(z).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(prior(z).numpy(), 0.5 * expected, rtol=1e-5)


@pytest.mark.parametrize("rows", ["plan", "softmax"])
def test_unknown_target_classes_have_a_uniform_share(cost: torch.Tensor, rows: str) -> None:
    found = relation(cost, 0.1, rows, unknown_targets=[1])
    others = [0, 2, 3]
    torch.testing.assert_close(found[:, 1], torch.full((S,), 1 / T))
    torch.testing.assert_close(found[:, others], relation(cost[:, others], 0.1, rows) * 3 / 4)
    torch.testing.assert_close(found.sum(1), torch.ones(S))


def test_entropic_transport_is_bounded_from_below_by_the_divergence_from_q(cost: torch.Tensor) -> None:
    """OT_eps(a, b; C') / eps + H(a) terms >= KL(b || R' a) for C' = -eps log R; equal for the least over a's plans."""
    epsilon, rows = 0.1, relation(cost, 0.1).double()
    own = -epsilon * rows.log()
    log_a, log_b = logits(7, S).log_softmax(1), logits(7, T, seed=2).log_softmax(1)
    a, b = log_a.exp(), log_b.exp()
    plan = sinkhorn(log_a, log_b, own, epsilon, tolerance=1e-12, max_iterations=5000)
    g = torch.exp((plan.source_potential[:, :, None] + plan.target_potential[:, None] - own) / epsilon)
    reference = a[:, :, None] * rows  # diag(a) R
    balanced = (g * (g / reference).log()).sum((1, 2))
    q = a @ rows
    divergence = (b * (b / q).log()).sum(1)
    assert bool((balanced >= divergence - 1e-9).all())
    assert float((balanced - divergence).max()) > 1e-3  # the marginal on the source's side costs something
    free = reference / q[:, None] * b[:, None]  # the least KL(g || diag(a) R) of all g that end at b
    torch.testing.assert_close((free * (free / reference).log()).sum((1, 2)), divergence)


def test_transport_to_labels_is_minus_log_q(cost: torch.Tensor) -> None:
    rows, epsilon = relation(cost, 0.1), 0.3
    z, labels = logits(6, S).float(), torch.tensor([0, 1, 2, 3, 0, 1])
    expected = -TransportedPrior(rows).log_q(z).gather(1, labels[:, None]).mean()
    torch.testing.assert_close(label_transport(z, labels, -epsilon * rows.log(), epsilon), expected)


def test_the_gradient_reaches_the_source_head_where_it_learns(cost: torch.Tensor) -> None:
    for learns in (False, True):
        z = logits(3, S).float().requires_grad_()
        value = TransportedPrior(relation(cost, 0.1), learns=learns)(z)
        assert value.requires_grad is learns


def test_what_cannot_be(cost: torch.Tensor) -> None:
    with pytest.raises(UserError, match="rows"):
        relation(cost, 0.1, "columns")
    with pytest.raises(UserError, match="none of 4"):
        relation(cost, 0.1, unknown_targets=range(T))
    with pytest.raises(UserError, match="alpha >= 0, but got -1"):
        TransportedPrior(relation(cost, 0.1), -1)
    with pytest.raises(UserError, match="temperature > 0, but got 0"):
        TransportedPrior(relation(cost, 0.1), temperature=0)
