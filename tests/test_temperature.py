"""Against SciPy's search, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import Tensor

from jtln.errors import UserError
from jtln.temperature import COLDEST, HOTTEST, fit_temperature, temperature


def predictions(images: int = 400, classes: int = 6) -> tuple[Tensor, Tensor]:
    """Logits (images, classes) and labels drawn from them, so that their own temperature is 1."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(images, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def by_scipy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """The temperature of the least mean negative log-likelihood, and the latter."""
    z, y = logits.double().numpy(), labels.numpy()

    def nll(log_tau: float) -> float:
        return float(-log_softmax(z / math.exp(log_tau), axis=1)[np.arange(len(y)), y].mean())

    found = minimize_scalar(nll, bounds=(-4, 4), method="bounded", options={"xatol": 1e-10})
    return math.exp(found.x), float(found.fun)


def in_parts(logits: Tensor, labels: Tensor, size: int = 150) -> list[tuple[Tensor, Tensor]]:
    return list(zip(logits.split(size), labels.split(size), strict=True))


@pytest.mark.parametrize("overconfidence", [0.5, 1.0, 4.0])
def test_temperature_is_the_one_that_scipy_finds(overconfidence: float) -> None:
    logits, labels = predictions()
    logits = overconfidence * logits
    found = temperature(iter(in_parts(logits, labels)))
    assert found == pytest.approx(by_scipy(logits, labels)[0], rel=1e-4)
    assert found == pytest.approx(overconfidence, rel=0.3)


def test_temperature_has_limits() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert temperature([(logits, torch.tensor([0, 1]))]) == pytest.approx(COLDEST, rel=1e-4)
    assert temperature([(logits, torch.tensor([1, 0]))]) == pytest.approx(HOTTEST, rel=1e-4)
    with pytest.raises(UserError, match=r"logits.*none"):
        temperature([])


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_a_fit_is_scipys_for_logits_of_any_size(size: float) -> None:
    logits, labels = predictions(60, 3)
    expected, nll = by_scipy(logits, labels)
    logits = size * logits.double()
    found = fit_temperature(in_parts(logits, labels, 10))
    assert found.temperature == pytest.approx(size * expected, rel=1e-4)
    assert found.nll == pytest.approx(nll, abs=1e-6)


def test_a_fit_does_not_depend_on_what_all_classes_share() -> None:
    logits, labels = predictions(60, 3)
    found = fit_temperature([(logits.double(), labels)])
    shifted = fit_temperature([(logits.double() + 1e7 * torch.rand(60, 1, dtype=torch.float64), labels)])
    assert shifted.temperature == pytest.approx(found.temperature, rel=1e-3)
    assert shifted.nll == pytest.approx(found.nll, rel=1e-6)


def test_a_fit_in_closed_form() -> None:
    """Two classes, d apart for every image, a share p of which is of the first: sigmoid(d / tau) = p."""
    d, p = 5.0, 0.8
    logits = torch.tensor([[d, 0.0]], dtype=torch.float64).expand(10, 2)
    found = fit_temperature([(logits, (torch.arange(10) >= 8).long())])
    assert found.temperature == pytest.approx(d / math.log(p / (1 - p)), rel=1e-6)
    assert found.nll == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), rel=1e-6)
    flat = fit_temperature([(torch.ones(4, 3, dtype=torch.float64), torch.arange(4) % 3)])
    assert flat.nll == pytest.approx(math.log(3))  # logits without a difference, at any temperature
