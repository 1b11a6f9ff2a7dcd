"""Transport with a free source marginal against the balanced one, SciPy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import rel_entr
from torch import Tensor

from jtln.transport import (
    TransportedPrior,
    TransportLoss,
    label_transport,
    prior_divergence,
    relation,
    sinkhorn,
    soft_labels,
)

S, T = 6, 4


@pytest.fixture
def cost() -> Tensor:
    return torch.rand(S, T, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(8, classes, generator=generator, requires_grad=True) for classes in (S, T))  # type: ignore[return-value]


def drawn(count: int, classes: int, seed: int = 1) -> Tensor:
    return 2 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_entropic_transport_is_bounded_from_below_by_the_divergence_from_q(cost: Tensor) -> None:
    """OT_eps(a, b; C') / eps + H(a) terms >= KL(b || R' a) for C' = -eps log R; the marginal a has its price."""
    epsilon, rows = 0.1, relation(cost, 0.1).double()
    own = -epsilon * rows.log()
    log_a, log_b = drawn(7, S).log_softmax(1), drawn(7, T, seed=2).log_softmax(1)
    a, b = log_a.exp(), log_b.exp()
    plan = sinkhorn(log_a, log_b, own, epsilon, tolerance=1e-12, max_iterations=5000)
    g = torch.exp((plan.source_potential[:, :, None] + plan.target_potential[:, None] - own) / epsilon)
    reference = a[:, :, None] * rows  # diag(a) R
    balanced = (g * (g / reference).log()).sum((1, 2))
    q = a @ rows
    divergence = (b * (b / q).log()).sum(1)
    assert bool((balanced >= divergence - 1e-9).all())
    assert float((balanced - divergence).max()) > 1e-3  # the marginal on the source's side costs something


def test_the_divergence_is_the_least_over_all_plans_that_end_at_the_prediction(
    logits: tuple[Tensor, Tensor], cost: Tensor
) -> None:
    """SciPy minimises KL(g || diag(a) R) over the plans g whose target marginal is t(x)."""
    rows = relation(cost, 0.1)
    for x, y in zip(*(each.detach()[:3] for each in logits), strict=True):
        a, b = x.double().softmax(0).numpy(), y.double().softmax(0).numpy()
        reference = (a[:, None] * rows.double().numpy()).ravel()
        ends = {"type": "eq", "fun": lambda g, b=b: g.reshape(S, T).sum(0) - b}
        start = np.outer(a, b).ravel()
        options = {"ftol": 1e-13, "maxiter": 500}
        found = minimize(
            lambda g, r=reference: rel_entr(g, r).sum(),
            start,
            bounds=[(1e-12, 1)] * (S * T),
            constraints=ends,
            method="SLSQP",
            options=options,
        )
        assert prior_divergence(x[None], y[None], rows).item() == pytest.approx(found.fun, abs=1e-5)


def test_the_gradient_of_the_divergence_is_that_of_the_identity(logits: tuple[Tensor, Tensor], cost: Tensor) -> None:
    """d KL(b || q) / db = log(b / q) + 1, through the softmax; none reaches the source head."""
    rows = relation(cost, 0.1)
    value = prior_divergence(*logits, rows)
    ours, source = torch.autograd.grad(value, (logits[1], logits[0]), allow_unused=True)
    b = logits[1].detach().double().softmax(1)
    slope = (b / (logits[0].detach().double().softmax(1) @ rows.double())).log() + 1
    expected = b * (slope - (b * slope).sum(1, keepdim=True)) / len(b)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-6)
    assert source is None


def test_the_divergence_from_a_true_label_is_the_transport_to_it(cost: Tensor) -> None:
    rows, epsilon, labels = relation(cost, 0.1), 0.3, torch.arange(8) % T
    x = drawn(8, S).float()
    sure = 200.0 * torch.nn.functional.one_hot(labels, T)
    expected = label_transport(x, labels, -epsilon * rows.log(), epsilon)
    torch.testing.assert_close(prior_divergence(x, sure, rows), expected)


def test_transport_to_labels_is_minus_log_q(cost: Tensor) -> None:
    rows, epsilon = relation(cost, 0.1), 0.3
    z, labels = drawn(8, S).float(), torch.arange(8) % T
    expected = -TransportedPrior(rows).log_q(z).gather(1, labels[:, None]).mean()
    torch.testing.assert_close(label_transport(z, labels, -epsilon * rows.log(), epsilon), expected)


def test_label_transport_is_that_of_the_soft_labels_mixed_by_the_source_head(
    logits: tuple[Tensor, Tensor], cost: Tensor
) -> None:
    source, labels = logits[0], torch.tensor([0, 1, 2, 3, 3, 2, 1, 1])
    value = label_transport(source, labels, cost, 0.1)
    taught = source.double().softmax(1) @ soft_labels(cost.double(), 0.1)  # (B, T)
    torch.testing.assert_close(value.double(), -taught[torch.arange(8), labels].log().mean())
    torch.testing.assert_close(label_transport(source, labels, cost + torch.rand(S, 1), 0.1), value)  # a row's constant


def test_label_transport_is_unbalanced_transport_to_the_label(logits: tuple[Tensor, Tensor], cost: Tensor) -> None:
    """Of all plans that end at the label, the cheapest with its price for not starting at the prediction."""
    double = cost.double()
    of_rows = (double + 0.1 * torch.logsumexp(double / -0.1, 1, keepdim=True)).numpy()
    for a, label in zip(logits[0].detach().double().softmax(1).numpy(), (0, 1, 2, 3), strict=False):

        def price(given: np.ndarray, a: np.ndarray = a, column: np.ndarray = of_rows[:, label]) -> float:
            return given @ column + 0.1 * rel_entr(given, a).sum()

        mass = {"type": "eq", "fun": lambda given: given.sum() - 1}
        found = minimize(price, a, bounds=[(1e-12, 1)] * 6, constraints=mass, method="SLSQP", options={"ftol": 1e-12})
        ours = label_transport(torch.from_numpy(np.log(a))[None], torch.tensor([label]), double, 0.1)
        assert 0.1 * ours.item() == pytest.approx(found.fun, abs=1e-6)


def test_label_transport_has_a_finite_gradient_where_the_source_head_is_sure_of_an_unrelated_class() -> None:
    cost = torch.tensor([[0.0, 50.0], [50.0, 0.0], [0.0, 0.0]])
    source = torch.tensor([[100.0, 0.0, 0.0]], requires_grad=True)
    value = label_transport(source, torch.tensor([1]), cost, 0.1)  # -log (e^-500 + e^-100 (1 + 1/2)), in float32
    assert value.item() == pytest.approx(100 - math.log(1.5), rel=1e-6)
    (gradient,) = torch.autograd.grad(value, source)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -2 / 3, -1 / 3]]))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_label_transport_is_computed_in_full_precision(kind: torch.dtype, cost: Tensor) -> None:
    source = (20 * torch.randn(8, 6, generator=torch.Generator().manual_seed(2))).to(kind)
    labels = torch.arange(8) % 4
    value = label_transport(source, labels, cost, 0.1)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(label_transport(source.float(), labels, cost, 0.1).item(), rel=1e-6)
    torch.testing.assert_close(TransportLoss(cost, 0.1).to_labels(source, labels), value)


def test_under_a_constant_cost_label_transport_has_no_gradient(logits: tuple[Tensor, Tensor]) -> None:
    value = label_transport(logits[0], torch.arange(8) % 4, torch.ones(6, 4), 0.1)
    assert value.item() == pytest.approx(math.log(4))
    (gradient,) = torch.autograd.grad(value, logits[0])
    torch.testing.assert_close(gradient, torch.zeros(8, 6), rtol=0, atol=1e-7)
