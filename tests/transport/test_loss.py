"""The transport loss against the solver, closed forms and SciPy."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from jtln.errors import UserError
from jtln.transport import (
    TransportLoss,
    TransportSettings,
    plan_summary,
    sinkhorn,
    soft_labels,
)


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(8, classes, generator=generator, requires_grad=True) for classes in (6, 4))  # type: ignore[return-value]


@pytest.fixture
def cost() -> Tensor:
    return torch.rand(6, 4, generator=torch.Generator().manual_seed(1))


def test_is_the_batch_mean_of_the_transport_values(logits: tuple[Tensor, Tensor], cost: Tensor) -> None:
    loss = TransportLoss(cost, 0.1, tolerance=1e-6)
    value = loss(*logits)
    log_a, log_b = (log_softmax(x.double(), 1) for x in logits)
    expected = sinkhorn(log_a, log_b, cost.double(), 0.1, tolerance=1e-12).value.mean()
    assert value.shape == ()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    ours, theirs = torch.autograd.grad(value, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_defaults_are_accurate_enough_to_train_with(logits: tuple[Tensor, Tensor], cost: Tensor) -> None:
    coarse = TransportLoss(cost)
    fine = TransportLoss(cost, tolerance=1e-6, max_iterations=5000)
    assert coarse(*logits).item() == pytest.approx(fine(*logits).item(), rel=1e-4)
    for x, y in zip(
        torch.autograd.grad(coarse(*logits), logits), torch.autograd.grad(fine(*logits), logits), strict=True
    ):
        assert float((x - y).norm() / y.norm()) < 1e-3


def test_uniform_cost_is_a_confidence_penalty_with_its_gradient(logits: tuple[Tensor, Tensor]) -> None:
    value = TransportLoss(torch.ones(6, 4), 0.3, tolerance=1e-6)(*logits)
    x, y = (log_softmax(z, 1) for z in logits)
    expected = (1 - 0.3 * (1 - (x.exp() * x).sum(1) - (y.exp() * y).sum(1))).mean()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value, logits), torch.autograd.grad(expected, logits), rtol=1e-4, atol=1e-6
    )


def test_a_sure_source_head_teaches_the_soft_label(cost: Tensor) -> None:
    """eps KL(t || softmax(-C_i / eps)) + constant: least at the label, and above it by eps KL elsewhere."""
    label = soft_labels(cost, 0.1)
    torch.testing.assert_close(label, torch.softmax(-cost / 0.1, 1))
    sure = torch.full((6, 6), -1e4).fill_diagonal_(1e4)  # each row another source class
    target = label.log().requires_grad_()
    loss = TransportLoss(cost, 0.1, tolerance=1e-6)
    gradient = torch.autograd.grad(loss(sure, target), target)[0]
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-7)
    other = torch.zeros(6, 4, requires_grad=True)
    kl = (0.25 * (math.log(0.25) - label.log())).sum(1).mean()
    rise = loss(sure, other) - loss(sure, target)
    assert rise.item() == pytest.approx(0.1 * kl.item(), rel=1e-4)


@pytest.mark.parametrize("gradient", ["both", "source", "target"])
def test_gradient_is_of_the_predictions_that_are_not_detached(
    gradient: str, logits: tuple[Tensor, Tensor], cost: Tensor
) -> None:
    both = torch.autograd.grad(TransportLoss(cost)(*logits), logits)
    value = TransportLoss(cost, gradient=gradient)(*logits)
    ours = torch.autograd.grad(value, logits, allow_unused=True)
    assert TransportLoss(cost, gradient=gradient).learns == (
        ("source", "target") if gradient == "both" else (gradient,)
    )
    for side, mine, full in zip(("source", "target"), ours, both, strict=True):
        if gradient in (side, "both"):
            torch.testing.assert_close(mine, full)
        else:
            assert mine is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_computes_in_float32_whatever_comes(dtype: torch.dtype, logits: tuple[Tensor, Tensor], cost: Tensor) -> None:
    loss = TransportLoss(cost)
    exact = loss(*(x.to(dtype).float() for x in logits))
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(*(x.to(dtype) for x in logits))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact)
    for gradient in torch.autograd.grad(value, logits):
        assert gradient.dtype == torch.float32
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 10.0])
def test_saturated_logits_give_finite_gradients(epsilon: float, cost: Tensor) -> None:
    source = torch.zeros(3, 6).index_fill_(1, torch.tensor([2]), 1e4).requires_grad_()
    target = torch.full((3, 4), -1e4).index_fill_(1, torch.tensor([1]), 1e4).requires_grad_()
    loss = TransportLoss(cost, epsilon)(source, target)
    assert loss.item() == pytest.approx(cost[2, 1].item() - epsilon, rel=1e-5, abs=1e-6)
    assert all(bool(x.isfinite().all()) for x in torch.autograd.grad(loss, (source, target)))


def test_last_holds_the_detached_solution(logits: tuple[Tensor, Tensor], cost: Tensor) -> None:
    loss = TransportLoss(cost)
    assert loss.last is None
    value = loss(*logits)
    assert loss.last is not None
    assert loss.last.value.mean().item() == pytest.approx(value.item())
    assert not any(x.requires_grad for x in loss.last if isinstance(x, Tensor))
    assert loss.last.marginal_error.max() <= loss.tolerance


def test_readings_are_of_the_latest_solution(logits: tuple[Tensor, Tensor], cost: Tensor) -> None:
    loss = TransportLoss(cost, 0.2)
    assert loss.readings() == {}
    loss(*logits)
    result = sinkhorn(*(log_softmax(x.detach(), 1) for x in logits), cost, 0.2, tolerance=1e-4, max_iterations=200)
    assert loss.readings() == {
        "plan_entropy": plan_summary(result, cost, 0.2).entropy.mean(),
        "sinkhorn_iterations": result.iterations,
        "marginal_error": result.marginal_error.max(),
    }


def test_set_cost_replaces_the_buffer(logits: tuple[Tensor, Tensor], cost: Tensor) -> None:
    loss = TransportLoss(torch.ones(6, 4))
    other = cost.clone().requires_grad_()
    loss.set_cost(other)
    with torch.no_grad():
        other.zero_()  # it was copied
    torch.testing.assert_close(loss(*logits), TransportLoss(cost)(*logits))
    assert torch.equal(loss.state_dict()["cost"], cost)
    assert not loss.cost.requires_grad
    with pytest.raises(UserError, match=r"cost.*\(6, 4\).*\(4, 6\)"):
        loss.set_cost(cost.t())
    with pytest.raises(UserError, match=r"cost.*NaN"):
        loss.set_cost(cost * math.nan)
    torch.testing.assert_close(loss.cost, cost)


def test_mistakes(cost: Tensor, logits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match=r"gradient 'sauce'.*both, source, target"):
        TransportLoss(cost, gradient="sauce")
    for epsilon in (0, -1, math.nan, math.inf):
        with pytest.raises(UserError, match=f"epsilon > 0.*{epsilon}"):
            TransportLoss(cost, epsilon)
    with pytest.raises(UserError, match=r"cost.*>= 0"):
        TransportLoss(-cost)
    with pytest.raises(UserError, match=r"int64.*\.float\(\)"):
        TransportLoss(torch.ones(6, 4, dtype=torch.int64))
    with pytest.raises(UserError, match=r"\(S, T\) = \(4, 6\).*\(6, 4\)"):
        TransportLoss(cost)(logits[1], logits[0])
    with pytest.raises(UserError, match=r"B >= 1.*\(8, 6\) and \(3, 4\)"):
        TransportLoss(cost)(logits[0], logits[1][:3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0}, "epsilon > 0, but got 0"),
        ({"epsilon": "small"}, "epsilon > 0, but got 'small'"),
        ({"epsilon": None}, "epsilon > 0, but got None"),
        ({"epsilon": [0.1]}, r"epsilon > 0, but got \[0\.1\]"),
        ({"max_iterations": 0}, "max_iterations >= 1 .*max_iterations=0"),
        ({"max_iterations": 2.5}, r"max_iterations >= 1 .*max_iterations=2\.5"),
        ({"tolerance": math.nan}, "tolerance >= 0, .*tolerance=nan"),
        ({"tolerance": "small"}, "tolerance >= 0, .*tolerance=small"),
        ({"calibrate": "yes"}, "calibrate .*got 'yes'"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TransportSettings(**settings)


def test_repr_has_the_settings(cost: Tensor) -> None:
    assert repr(TransportLoss(cost, 0.2)) == "TransportLoss(cost=(6, 4), epsilon=0.2, gradient=both)"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("autocast", [False, True])
def test_cuda_agrees_with_the_cpu(autocast: bool, logits: tuple[Tensor, Tensor], cost: Tensor) -> None:
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        gpu = TransportLoss(cost).cuda()(*(x.cuda() for x in logits))
    cpu = TransportLoss(cost)(*logits)
    assert gpu.dtype == torch.float32
    torch.testing.assert_close(gpu.cpu(), cpu)
    torch.testing.assert_close(torch.autograd.grad(gpu, logits), torch.autograd.grad(cpu, logits), rtol=1e-3, atol=1e-6)
