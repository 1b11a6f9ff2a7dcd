"""The logistic head against scikit-learn and SciPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from jtln.errors import UserError
from jtln.heads import HeadInputs, Logistic
from jtln.heads.logistic import NormalizedLinear, alpha_nll, at_length, left_out, regression
from jtln.temperature import fit_temperature

T, D, C = 4, 9, 30.0


def images(count: int, seed: int, dim: int = D) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % T
    return 3 * torch.eye(dim)[labels] + torch.randn(count, dim, generator=draw), labels


class Given:
    """Only labelled images, in two batches."""

    def __init__(self, rows: Tensor, labels: Tensor) -> None:
        self.rows, self.labels = rows, labels

    def of(self, side: str, part: str = "train", at_most: int | None = None) -> list[tuple[Tensor, Tensor]]:
        assert (side, at_most) == ("target", None)
        if part == "val":
            return []
        return [(self.rows[:3], self.labels[:3]), (self.rows[3:], self.labels[3:])]


@pytest.mark.parametrize(("count", "dim"), [(4, 9), (8, 30), (60, 9)])
def test_is_scikit_learns_logistic_regression(count: int, dim: int) -> None:
    """The penalty on the bias is that of the weight of a constant column 1 / sqrt(C)."""
    rows, labels = images(count, seed=count, dim=dim)
    rows = rows.double()
    found = regression(rows, labels, T, inverse_penalty=C)
    column = torch.full((count, 1), C**-0.5, dtype=torch.float64)
    theirs = LogisticRegression(C=C, fit_intercept=False, tol=1e-10, max_iter=10_000)
    theirs.fit(torch.cat([rows, column], 1).numpy(), labels.numpy())
    np.testing.assert_allclose(found.weight.numpy(), theirs.coef_[:, :-1], atol=2e-3)
    np.testing.assert_allclose(found.bias.numpy(), theirs.coef_[:, -1] * C**-0.5, atol=2e-3)


def test_an_offset_stands_in_the_logits_while_it_is_fitted() -> None:
    rows, labels = images(10, seed=1)
    rows, offset = rows.double(), torch.randn(10, T, generator=torch.Generator().manual_seed(2))

    def objective(flat: np.ndarray) -> float:
        weight, bias = flat[: T * D].reshape(T, D), flat[T * D :]
        scores = log_softmax(rows.numpy() @ weight.T + bias + offset.double().numpy(), axis=1)
        return float(-scores[np.arange(10), labels.numpy()].sum() + (weight**2).sum() / (2 * C) + (bias**2).sum() / 2)

    found = regression(rows, labels, T, offset, C)
    best = minimize(objective, np.zeros(T * D + T), method="BFGS", options={"gtol": 1e-7, "maxiter": 3000})
    assert found.loss == pytest.approx(best.fun, rel=1e-6)
    np.testing.assert_allclose(found.weight.numpy().ravel(), best.x[: T * D], atol=1e-3)


def test_the_head_sees_features_of_one_length() -> None:
    rows, labels = images(12, seed=3)
    fit = Logistic(temperature=None).fit(nn.Linear(D, T), HeadInputs(Given(rows, labels), (5, T)))
    expected = regression(at_length(rows.double(), 5.0), labels, T)
    fresh = images(6, seed=4)[0]
    logits = at_length(fresh, 5.0).double() @ expected.weight.t() + expected.bias
    torch.testing.assert_close(fit.classifier(fresh), logits.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fit.classifier(7 * fresh), fit.classifier(fresh))
    assert fit.chosen["loss"] == pytest.approx(expected.loss)


def test_normalization_by_the_mean_is_linear_in_the_features() -> None:
    rows, labels = images(12, seed=3)
    fit = Logistic(normalization="mean", temperature=None).fit(nn.Linear(D, T), HeadInputs(Given(rows, labels), (5, T)))
    assert isinstance(fit.classifier, nn.Linear)
    scale = 5 / float(rows.norm(dim=1).mean())
    expected = regression(rows.double() * scale, labels, T)
    torch.testing.assert_close(fit.classifier.weight.double(), expected.weight * scale, atol=1e-5, rtol=1e-4)


def test_the_prior_is_in_place_and_not_in_the_classifier() -> None:
    rows, labels = images(12, seed=3)
    offset = nn.Linear(D, T)
    fit = Logistic(temperature=None).fit(nn.Linear(D, T), HeadInputs(Given(rows, labels), (5, T), None, offset))
    expected = regression(at_length(rows.double(), 5.0), labels, T, offset(rows).detach())
    torch.testing.assert_close(fit.classifier.weight.double(), expected.weight, atol=1e-4, rtol=1e-4)  # type: ignore[union-attr]


def test_a_power_keeps_signs() -> None:
    found = at_length(torch.tensor([[4.0, -9.0, 0.0]]), 1.0, power=0.5)
    torch.testing.assert_close(found, torch.tensor([[2.0, -3.0, 0.0]]) / math.sqrt(13))


def test_a_state_dict_fills_an_empty_classifier() -> None:
    rows, labels = images(12, seed=3)
    head = Logistic(power=0.5, prior=0.5)
    found = head.fit(nn.Linear(D, T), HeadInputs(Given(rows, labels), (5, T))).classifier
    again = Logistic(**head.settings()).classifier(D, T)
    assert isinstance(again, NormalizedLinear)
    again.load_state_dict(found.state_dict())
    assert torch.equal(again(rows), found(rows))
    assert head.uses_cost


def test_the_temperature_is_that_of_labels_that_are_left_out() -> None:
    """All logits, the prior's included, are divided by it: no prediction changes."""
    rows, labels = images(3 * T, seed=7)
    offset = torch.randn(3 * T, T, generator=torch.Generator().manual_seed(8))
    place = {tuple(row): each for row, each in zip(rows.tolist(), offset, strict=True)}
    given = HeadInputs(
        Given(rows, labels), (5, T), prior=lambda x: torch.stack([place[tuple(row)] for row in x.tolist()])
    )
    plain = Logistic(temperature=None).fit(nn.Linear(D, T), given)
    found = Logistic().fit(nn.Linear(D, T), given)
    batches = left_out(Logistic(), rows, labels, T, [offset])[0]
    assert found.temperature == pytest.approx(fit_temperature(batches).temperature, rel=1e-6)
    assert plain.temperature == 1
    scaled = plain.classifier(rows) / found.temperature
    torch.testing.assert_close(found.classifier(rows), scaled, atol=1e-5, rtol=1e-5)


def test_with_one_label_a_class_the_temperature_is_the_setting() -> None:
    rows, labels = images(T, seed=9)
    given = HeadInputs(Given(rows, labels), (5, T))
    found = Logistic(temperature=0.25).fit(nn.Linear(D, T), given)
    plain = Logistic(temperature=None).fit(nn.Linear(D, T), given)
    assert (found.temperature, found.chosen["temperature"]) == (0.25, 0.25)
    torch.testing.assert_close(found.classifier(rows), plain.classifier(rows) / 0.25)


def test_left_out_labels_choose_the_weight_of_the_prior() -> None:
    """A prior that predicts the labels gets its full weight, a wrong one gets none."""
    rows, labels = images(12, seed=5)
    right = torch.full((12, T), 0.01).scatter(1, labels[:, None], 0.97).log()
    wrong = right.roll(1, dims=1)
    for log_q, best in ((right, 1.0), (wrong, 0.0)):
        found = alpha_nll(Logistic(), rows, labels, log_q, (0.0, 0.5, 1.0))
        assert min(found, key=lambda each: found[each]) == best
    assert alpha_nll(Logistic(), rows[:T], labels[:T], right[:T], (0.0, 1.0)) == {}  # one a class


def test_left_out_labels_are_scored_by_the_heads_own_regression() -> None:
    """Two images a class are two folds: scikit-learn's fit to one half scores the other, at the best temperature."""
    rows, labels = images(2 * T, seed=6)
    head = Logistic(inverse_penalty=2.0, length=3.0, power=0.5)
    column = torch.full((2 * T, 1), 2.0**-0.5, dtype=torch.float64)
    x, y = torch.cat([head.inputs(rows), column], 1).numpy(), labels.numpy()
    halves = np.split(np.arange(2 * T), 2)  # the labels are 0, 1, ..., T - 1, 0, 1, ...
    logits = np.empty((2 * T, T))
    for kept, out in (halves, halves[::-1]):
        fit = LogisticRegression(C=2.0, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(x[kept], y[kept])
        logits[out] = fit.decision_function(x[out])

    def nll(log_beta: float) -> float:
        return -float(log_softmax(math.exp(log_beta) * logits, axis=1)[np.arange(2 * T), y].mean())

    expected = minimize_scalar(nll, bounds=(-6, 6), method="bounded", options={"xatol": 1e-9}).fun
    found = alpha_nll(head, rows, labels, torch.zeros(2 * T, T), (0.0,))
    assert found[0.0] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prior": -1}, "prior >= 0, or auto, but got -1"),
        ({"prior": "much"}, "prior >= 0, or auto, but got 'much'"),
        ({"inverse_penalty": 0}, "inverse_penalty > 0, but got 0"),
        ({"length": math.inf}, "length > 0, but got inf"),
        ({"temperature": 0}, "temperature > 0, or null, but got 0"),
        ({"temperature": True}, "temperature > 0, or null, but got True"),
        ({"power": 2}, r"power in \(0, 1\], but got 2"),
        ({"normalization": "all"}, "normalization"),
        ({"normalization": "mean", "power": 0.5}, "power=1"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Logistic(**settings)


def test_features_that_are_missing_or_not_finite() -> None:
    rows, labels = images(12, seed=3)
    with pytest.raises(UserError, match="finite features"):
        Logistic().fit(nn.Linear(D, T), HeadInputs(Given(rows * math.nan, labels), (5, T)))
