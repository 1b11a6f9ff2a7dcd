"""Against NumPy."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from jtln.costs.class_posterior import source_given_target
from jtln.errors import UserError


def predictions(images: int = 12, sources: int = 5, targets: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(images, sources, generator=generator), torch.arange(images) % targets


def test_is_the_mean_prediction_of_each_class() -> None:
    logits, labels = predictions()
    posterior = source_given_target([(logits, labels)], 3)
    p = softmax(logits.double().numpy(), axis=1)
    expected = np.stack([p[labels.numpy() == label].mean(0) for label in range(3)])
    np.testing.assert_allclose(posterior.numpy(), expected, atol=1e-6)
    parts = list(zip(logits.split(5), labels.split(5), strict=True))
    torch.testing.assert_close(source_given_target(parts, 3), posterior)


def test_sure_predictions_are_counted() -> None:
    logits = 1e4 * torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 3]), 4).float()
    posterior = source_given_target([(logits, torch.tensor([0, 0, 0, 1]))], 2)
    torch.testing.assert_close(posterior, torch.tensor([[2 / 3, 1 / 3, 0, 0], [0, 0, 0, 1]]))


def test_a_class_without_an_image_has_an_even_posterior() -> None:
    logits, labels = predictions()
    assert source_given_target([(logits, labels)], 4)[3].tolist() == pytest.approx([0.2] * 5)
    with pytest.raises(UserError, match=r"batch.*none"):
        source_given_target([], 4)
