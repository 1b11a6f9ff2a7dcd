"""The transported prior: its rows, its value, and how it bounds the transport loss."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from jtln.errors import UserError
from jtln.transport import TransportedPrior, relation
from jtln.transport.prior import fit_relation

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


def observed(count: int, seed: int, cost: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Source predictions, and labels drawn from q under the cost."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = (3 * torch.randn(count, len(cost), generator=generator)).softmax(1)
    q = probabilities @ relation(cost, epsilon)
    return probabilities, torch.multinomial(q, 1, generator=generator)[:, 0]


def tempered_nll(q: np.ndarray, labels: torch.Tensor) -> tuple[float, float]:
    """The exponent at which q^k makes the labels most likely, and their mean negative log-likelihood (SciPy)."""

    def nll(log_k: float) -> float:
        z = math.exp(log_k) * np.log(q)
        return float((logsumexp(z, axis=1) - z[np.arange(len(z)), labels.numpy()]).mean())

    found = minimize_scalar(nll, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9})
    return math.exp(found.x), float(found.fun)


def test_the_exponent_is_that_of_the_most_likely_labels(cost: torch.Tensor) -> None:
    probabilities, labels = observed(300, 3, cost, 0.1)
    found = fit_relation(cost, probabilities, labels, [0.2])
    exponent, nll = tempered_nll((probabilities @ relation(cost, 0.2)).double().numpy(), labels)
    assert found.exponent == pytest.approx(exponent, rel=1e-4)
    assert found.nll == pytest.approx(nll, abs=1e-8)
    assert found.explained == pytest.approx(1 - nll / math.log(T), abs=1e-7)
    assert found.alpha == pytest.approx(exponent * (1 - nll / math.log(T)), rel=1e-4)
    assert torch.equal(found.rows, relation(cost, 0.2))


def test_the_softest_plan_within_one_standard_error_is_taken(cost: torch.Tensor) -> None:
    epsilons = [0.02, 0.05, 0.1, 0.2, 0.4, 0.8]
    probabilities, labels = observed(300, 4, cost, 0.05)
    losses = {}
    for epsilon in epsilons:
        q = (probabilities @ relation(cost, epsilon)).double().numpy()
        z = tempered_nll(q, labels)[0] * np.log(q)
        losses[epsilon] = logsumexp(z, axis=1) - z[np.arange(len(z)), labels.numpy()]
    least = min(epsilons, key=lambda each: losses[each].mean())
    within = [
        each
        for each in epsilons
        if (more := losses[each] - losses[least]).mean() <= more.std(ddof=1) / math.sqrt(len(more)) or each == least
    ]
    assert least < max(within) < max(epsilons)
    assert fit_relation(cost, probabilities, labels, epsilons).epsilon == max(within)


def test_a_cost_of_no_use_has_no_weight(cost: torch.Tensor) -> None:
    probabilities, _ = observed(4000, 5, cost, 0.1)
    labels = torch.arange(4000) % T
    assert fit_relation(cost, probabilities, labels, [0.1]).alpha == 0
    probabilities, labels = observed(300, 6, cost, 0.1)
    constant = fit_relation(torch.ones(S, T), probabilities, labels, [0.1])
    assert constant.alpha == 0
    assert constant.nll == pytest.approx(math.log(T))


def test_one_image_is_enough(cost: torch.Tensor) -> None:
    probabilities, labels = observed(1, 7, cost, 0.1)
    assert math.isfinite(fit_relation(cost, probabilities, labels, [0.05, 0.1]).alpha)


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
