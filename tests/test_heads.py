"""Where the target head starts, against closed forms and POT."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch import nn

from jtln.errors import UserError
from jtln.heads import TransportedHead, class_plan, transported

S, T, D = 5, 3, 7


def heads(seed: int = 0) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(seed)
    return nn.Linear(D, S), nn.Linear(D, T)


def test_the_class_plan_is_the_one_of_pot() -> None:
    cost = torch.rand(S, T, generator=torch.Generator().manual_seed(1))
    expected = ot.sinkhorn(np.full(S, 1 / S), np.full(T, 1 / T), cost.double().numpy(), 0.2, stopThr=1e-12)
    np.testing.assert_allclose(class_plan(cost, 0.2).numpy(), expected, atol=1e-6)


def test_what_rows_and_columns_have_in_common_does_not_change_the_plan() -> None:
    cost = torch.rand(S, T, generator=torch.Generator().manual_seed(2))
    shifted = cost + torch.rand(S, 1) + torch.rand(1, T)
    torch.testing.assert_close(class_plan(cost, 0.1), class_plan(shifted, 0.1), atol=1e-5, rtol=1e-3)


def test_equal_classes_get_each_others_weights() -> None:
    """Where every target class is one source class and there are no others, the plan is the identity."""
    source, _ = heads()
    plan = class_plan(1 - torch.eye(S), 0.01)
    weight, bias = transported(source.weight, source.bias, plan)
    torch.testing.assert_close(weight, source.weight - source.weight.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bias, source.bias - source.bias.mean(), atol=1e-5, rtol=1e-5)


def test_the_transported_weights_are_means_over_the_plan() -> None:
    source, _ = heads()
    plan = torch.rand(S, T) + 0.1
    weight, bias = transported(source.weight, source.bias, plan)
    w, p = source.weight.detach().numpy(), plan.numpy()
    expected = np.stack([np.average(w, axis=0, weights=p[:, j]) for j in range(T)])
    np.testing.assert_allclose(weight.detach().numpy(), expected - expected.mean(0), atol=1e-6)
    expected_bias = np.array([np.average(source.bias.detach().numpy(), weights=p[:, j]) for j in range(T)])
    np.testing.assert_allclose(bias.detach().numpy(), expected_bias - expected_bias.mean(), atol=1e-6)


def images(source: nn.Linear, cost: torch.Tensor, shots: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Features that the nearest source classes' weights point to: what a true cost says of them."""
    near = class_plan(cost, 0.03).argmax(0)  # (T,)
    labels = torch.arange(T).repeat(shots)
    features = (source.weight - source.weight.mean(0)).detach()[near[labels]] * 20
    return [(features, labels)]


def block_cost() -> torch.Tensor:
    """Target class j is near to source class j, and far from the others."""
    cost = torch.ones(S, T)
    cost[:T].fill_diagonal_(0.0)
    return cost


@pytest.mark.parametrize("shots", [1, 2, 5])
def test_the_more_images_are_labelled_the_smaller_is_the_start(shots: int) -> None:
    """All of them are right: the factor that makes them most likely has no end, and 1 of it is used."""
    source, target = heads()
    evidence = TransportedHead(0.03, gain=3.0).start(source, target, block_cost(), images(source, block_cost(), shots))
    assert evidence.used
    assert evidence.accuracy == 1.0
    assert evidence.sharpness > 1
    weight, bias = transported(source.weight, source.bias, class_plan(block_cost(), 0.03))
    torch.testing.assert_close(target.weight.detach(), weight.detach() * 3.0 / shots)
    torch.testing.assert_close(target.bias.detach(), bias.detach() * 3.0 / shots)
    assert target.weight.requires_grad


def test_the_start_is_as_large_as_the_labels_bear_out() -> None:
    """Of ten images a class some have another class's features: against SciPy's search for the likeliest factor."""
    weight, bias = (each.detach() for each in transported(*heads()[0].parameters(), class_plan(block_cost(), 0.03)))
    factors = []
    for wrong in (3, 12, 18):
        source, target = heads()
        ((features, labels),) = images(source, block_cost(), 10)
        features[:wrong] = features.roll(1, 0)[:wrong]
        evidence = TransportedHead(0.03, gain=5.0).start(source, target, block_cost(), [(features, labels)])
        assert evidence.accuracy == pytest.approx(1 - wrong / 30)

        def loss(factor: float, logits: np.ndarray, labels: np.ndarray) -> float:
            z = factor * logits
            return float((logsumexp(z, axis=1) - z[np.arange(len(z)), labels]).sum())

        logits = (features @ weight.T + bias).double().numpy()
        likeliest = minimize_scalar(loss, args=(logits, labels.numpy()), bounds=(0.01, 30), method="bounded").x
        assert evidence.sharpness == pytest.approx(likeliest, rel=1e-3)
        factors.append(min(1.0, likeliest))
        torch.testing.assert_close(target.weight.detach(), weight * 5.0 / 10 * factors[-1], rtol=2e-3, atol=1e-5)
    assert 1 > factors[0] > factors[1] > factors[2] > 0.05


def test_a_start_that_the_labels_speak_against_is_thrown_away() -> None:
    source, target = heads()
    wrong = block_cost()[:, [1, 2, 0]]
    evidence = TransportedHead(0.03).start(source, target, wrong, images(source, block_cost(), 2))
    assert not evidence.used
    assert evidence.accuracy == 0.0
    assert float(target.weight.detach().abs().max()) == 0.0


def test_a_cost_without_knowledge_starts_the_head_at_zero() -> None:
    source, target = heads()
    evidence = TransportedHead().start(source, target, torch.ones(S, T), images(source, block_cost(), 1))
    assert not evidence.used
    assert float(target.weight.detach().abs().max()) == 0.0
    assert float(target.bias.detach().abs().max()) == 0.0


@pytest.mark.parametrize("settings", [{"epsilon": 0.0}, {"gain": -1.0}, {"gain": math.inf}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"method\.head_start"):
        TransportedHead(**settings)
