"""Against -log p computed directly, and Co-Tuning's class posterior."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor, nn

from jtln.costs import PosteriorCost, SourceHead
from jtln.costs.class_posterior import source_given_target
from jtln.errors import UserError
from jtln.names.class_set import ClassSet
from jtln.temperature import temperature
from jtln.transport import TransportLoss

SOURCE, TARGET = ClassSet(["cat", "dog", "fox", "hen"]), ClassSet(["wolf", "lynx", "duck"])
SIZES = (4, 3)


@pytest.fixture
def target() -> tuple[Tensor, Tensor]:
    return torch.randn(9, 5, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3


@pytest.fixture
def head() -> SourceHead:
    generator = torch.Generator().manual_seed(1)
    linear = nn.Linear(5, 4)
    with torch.no_grad():
        linear.weight.normal_(std=2, generator=generator)
        linear.bias.normal_(generator=generator)
    held_out = torch.randn(40, 5, generator=generator)
    return SourceHead(linear, [(held_out, torch.arange(40) % 4)], linear.weight)


def fitted(head: SourceHead, target: tuple[Tensor, Tensor], **settings: object) -> PosteriorCost:
    cost = PosteriorCost(**settings)  # type: ignore[arg-type]
    cost.prepare(SIZES, 5)
    with torch.no_grad():
        cost.fit(iter(()), [target], SIZES, head)  # no source image
    return cost


def posterior_by_hand(head: SourceHead, target: tuple[Tensor, Tensor], tau: float = 1.0) -> np.ndarray:
    """p(source | target), (T, S)"""
    linear, (x, labels) = head.logits, (each.numpy() for each in target)
    logits = x @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()  # type: ignore[attr-defined]
    p = softmax(logits.astype(float) / tau, axis=1)
    return np.stack([p[labels == label].mean(0) for label in range(3)])


@pytest.mark.parametrize("smoothing", [1e-3, 0.2])
@pytest.mark.parametrize("scale", ["none", "max", "range"])
def test_is_minus_the_log_of_the_smoothed_posterior(
    smoothing: float, scale: str, head: SourceHead, target: tuple[Tensor, Tensor]
) -> None:
    matrix = fitted(head, target, smoothing=smoothing, scale=scale).matrix(SOURCE, TARGET)
    expected = -np.log((1 - smoothing) * posterior_by_hand(head, target).T + smoothing / 4)
    expected -= expected.min() if scale == "range" else 0
    expected /= 1 if scale == "none" else expected.max()
    np.testing.assert_allclose(matrix.numpy(), expected, atol=2e-6)
    TransportLoss(matrix)


def test_sure_predictions_give_a_cost_in_closed_form() -> None:
    """One-hot predictions: 0 (within the smoothing) for the predicted class, log(S / delta) for all others."""
    features = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0], [0, 1.0, 0, 0]])
    head = SourceHead(lambda x: 1e4 * x, [], 1e4 * torch.eye(4))
    cost = fitted(head, (features, torch.tensor([0, 1, 2, 2])), smoothing=0.01, scale="none")
    far, sure, half = math.log(4 / 0.01), -math.log(0.99 + 0.0025), -math.log(0.99 / 2 + 0.0025)
    expected = torch.tensor([[sure, far, far], [far, sure, half], [far, far, far], [far, far, half]])
    torch.testing.assert_close(cost.matrix(SOURCE, TARGET), expected)


def test_unscaled_it_is_co_tunings_posterior(head: SourceHead, target: tuple[Tensor, Tensor]) -> None:
    """softmax(-C / 1) over the source classes: the soft label of a certain target head for the source head."""
    matrix = fitted(head, target, smoothing=1e-6, scale="none").matrix(SOURCE, TARGET)
    logits = head.logits(target[0]).detach()
    posterior = source_given_target([(logits, target[1])], 3)  # (T, S)
    torch.testing.assert_close(torch.softmax(-matrix, 0).t(), posterior, atol=1e-5, rtol=1e-4)
    sure = torch.full((3, 3), -1e4).fill_diagonal_(1e4)
    at_label = posterior.clamp_min(1e-9).log().requires_grad_()
    TransportLoss(matrix, 1.0, tolerance=1e-6)(at_label, sure).backward()
    assert at_label.grad is not None
    assert float(at_label.grad.abs().max()) < 1e-5


def test_calibrated(head: SourceHead, target: tuple[Tensor, Tensor]) -> None:
    tau = temperature((head.logits(x), y) for x, y in head.held_out)
    assert abs(tau - 1) > 0.5
    matrix = fitted(head, target, calibrate=True, scale="none").matrix(SOURCE, TARGET)
    expected = -np.log(0.999 * posterior_by_hand(head, target, tau).T + 0.001 / 4)
    np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-5)


def test_state_survives_a_checkpoint(head: SourceHead, target: tuple[Tensor, Tensor]) -> None:
    cost, again = fitted(head, target), PosteriorCost()
    again.prepare(SIZES, 5)
    assert float(again.distances(SOURCE, TARGET).std()) == 0  # constant before it is fitted
    again.load_state_dict(cost.state_dict())
    assert torch.equal(again.matrix(SOURCE, TARGET), cost.matrix(SOURCE, TARGET))


def test_mistakes(target: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match=r"update 'ema'.*once, epoch"):
        PosteriorCost(update="ema")
    for smoothing in (0, 1, -1, math.nan):
        with pytest.raises(UserError, match=rf"smoothing in \(0, 1\).*{smoothing}"):
            PosteriorCost(smoothing=smoothing)
    with pytest.raises(UserError, match=r"source head.*SourceHead"):
        PosteriorCost().fit([], [target], SIZES)
    with pytest.raises(UserError, match=r"fit\(\)"):
        PosteriorCost().matrix(SOURCE, TARGET)
