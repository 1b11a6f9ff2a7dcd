"""Against NumPy, and SciPy's search for the temperature."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from torch import Tensor

from jtln.costs.class_posterior import source_given_target
from jtln.errors import UserError
from jtln.temperature import COLDEST, HOTTEST, temperature


def predictions(images: int = 12, sources: int = 5, targets: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(images, sources, generator=generator), torch.arange(images) % targets


def test_relation_is_the_mean_prediction_of_each_class() -> None:
    logits, labels = predictions()
    relation = source_given_target([(logits, labels)], 3)
    p = softmax(logits.double().numpy(), axis=1)
    expected = np.stack([p[labels.numpy() == label].mean(0) for label in range(3)])
    np.testing.assert_allclose(relation.numpy(), expected, atol=1e-6)
    parts = list(zip(logits.split(5), labels.split(5), strict=True))
    torch.testing.assert_close(source_given_target(parts, 3), relation)


def test_sure_predictions_are_counted() -> None:
    logits = 1e4 * torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 3]), 4).float()
    relation = source_given_target([(logits, torch.tensor([0, 0, 0, 1]))], 2)
    torch.testing.assert_close(relation, torch.tensor([[2 / 3, 1 / 3, 0, 0], [0, 0, 0, 1]]))


def test_a_class_without_an_image_says_nothing() -> None:
    logits, labels = predictions()
    assert source_given_target([(logits, labels)], 4)[3].tolist() == pytest.approx([0.2] * 5)
    with pytest.raises(UserError, match="at least one batch"):
        source_given_target([], 4)


@pytest.mark.parametrize("too_sure", [0.5, 1.0, 4.0])
def test_temperature_is_the_one_that_scipy_finds(too_sure: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(400, 6, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]  # so that their own temperature is 1
    logits = too_sure * logits
    z, y = logits.double().numpy(), labels.numpy()

    def loss(tau: float) -> float:
        return -log_softmax(z / tau, axis=1)[np.arange(len(y)), y].mean()

    expected = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}).x
    found = temperature(zip(logits.split(150), labels.split(150), strict=True))
    assert found == pytest.approx(expected, rel=1e-4)
    assert found == pytest.approx(too_sure, rel=0.3)


def test_temperature_has_limits() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert temperature([(logits, torch.tensor([0, 1]))]) == pytest.approx(COLDEST, rel=1e-4)
    assert temperature([(logits, torch.tensor([1, 0]))]) == pytest.approx(HOTTEST, rel=1e-4)
    with pytest.raises(UserError, match="calibrate"):
        temperature([])
