"""Learning without forgetting against NumPy and finite differences."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from jtln.errors import UserError
from jtln.methods import Method, TargetBatch
from jtln.methods.keep import kept
from jtln.module import JTLN, Batch
from jtln.trunks.base import Trunk

BATCH: Batch = {
    "target": (torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 1, 2, 0, 1]))
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def network(trunk: Trunk, **settings: Any) -> JTLN:
    """A network whose objective is to keep; it has sharp predictions."""
    module = JTLN(trunk, 4, 3, Method(**{"lambda_target": 0.0, "keep": 1.5, **settings}))
    nn.init.normal_(module.source_head.weight, std=2)
    started(module)
    return module


def started(module: JTLN) -> None:
    """Keep the network as it is now, as training does before its first step."""
    assert module.pretrained is not None
    module.pretrained.take(module.trunk, module.source_head)


def moved(module: JTLN) -> JTLN:
    """Another network's weights, as after some training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for part in (module.trunk, module.source_head):
            for p in part.parameters():
                p += 0.2 * torch.randn(p.shape, generator=generator)
    return module


def divergence(before: np.ndarray, now: np.ndarray, temperature: float = 2.0) -> float:
    """Mean of KL(p || q) of the softened predictions."""
    p, difference = softmax(before / temperature, 1), log_softmax(before / temperature, 1)
    difference = difference - log_softmax(now / temperature, 1)
    return float((p * difference).sum(1).mean())


def logits(module: JTLN) -> np.ndarray:
    """The source head's (5, S), in float64 and evaluation mode."""
    module.latest = {}  # holds the graph, which cannot be copied
    double = copy.deepcopy(module).double().eval()
    with torch.no_grad():
        return double.source_head(double.trunk(BATCH["target"][0].double())).numpy()


def test_is_the_divergence_of_the_softened_predictions(make_trunk: Callable[..., Trunk]) -> None:
    module = network(make_trunk())
    before = logits(module)
    now = logits(moved(module))
    loss = float(module.training_step(BATCH, 0)["loss"].detach())
    assert loss == pytest.approx(1.5 * divergence(before, now), rel=1e-4)
    assert loss > 0.01
    values = torch.from_numpy(now), torch.from_numpy(before)
    assert float(kept(*values, temperature=0.7)) == pytest.approx(divergence(before, now, 0.7), rel=1e-5)


@pytest.mark.parametrize("part", ["trunk", "source_head"])
def test_its_gradient_is_that_of_finite_differences(part: str, make_trunk: Callable[..., Trunk]) -> None:
    module = network(make_trunk())
    before = logits(module)
    moved(module).training_step(BATCH, 0)["loss"].backward()
    module.latest = {}  # see above
    generator = torch.Generator().manual_seed(3)
    parameters = dict(module.get_submodule(part).named_parameters())
    direction = {name: torch.randn(p.shape, generator=generator).double() for name, p in parameters.items()}

    def shifted(step: float) -> float:
        other = copy.deepcopy(module).double()
        for name, p in other.get_submodule(part).named_parameters():
            p.data += step * direction[name]
        return 1.5 * divergence(before, logits(other))

    slope = sum(float((p.grad * direction[name]).sum()) for name, p in parameters.items() if p.grad is not None)
    assert slope == pytest.approx((shifted(1e-4) - shifted(-1e-4)) / 2e-4, rel=1e-3)
    assert abs(slope) > 1e-3
    assert module.target_head.weight.grad is None


def test_nothing_moves_at_the_start(make_trunk: Callable[..., Trunk]) -> None:
    module = network(make_trunk())
    loss = module.training_step(BATCH, 0)["loss"]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    gradients = [p.grad for part in (module.trunk, module.source_head) for p in part.parameters()]
    assert max(float(each.abs().max()) for each in gradients if each is not None) < 1e-6


def test_the_copy_is_in_evaluation_mode_and_learns_nothing(make_trunk: Callable[..., Trunk]) -> None:
    """Without dropout it gives the same for the same images, while the network in training does not."""
    module = network(make_trunk(dropout=0.5)).train()
    assert module.pretrained is not None
    assert not any(p.requires_grad for p in module.pretrained.parameters())
    losses = [float(module.training_step(BATCH, 0)["loss"].detach()) for _ in range(2)]
    assert losses[0] != losses[1]

    def once() -> Tensor:
        assert module.pretrained is not None
        features = torch.zeros(5, 6)  # are not read: the trunk that learns made them
        return module.pretrained(TargetBatch(*BATCH["target"], features))

    assert torch.equal(once(), once())
    np.testing.assert_allclose(once().numpy(), logits(module), rtol=1e-4, atol=1e-4)


def test_of_a_frozen_trunk_the_head_alone_is_copied(make_trunk: Callable[..., Trunk]) -> None:
    trunk = make_trunk()
    trunk.frozen = True
    module = network(trunk)
    names = {name for name in module.state_dict() if name.startswith("pretrained.")}
    assert names == {"pretrained.head.weight", "pretrained.head.bias"}
    before = logits(module)
    with torch.no_grad():
        module.source_head.weight[0] += 2
    loss = module.training_step(BATCH, 0)["loss"]
    assert float(loss.detach()) == pytest.approx(1.5 * divergence(before, logits(module)), rel=1e-4)
    loss.backward()
    assert module.source_head.weight.grad is not None


def test_the_weights_before_training_are_kept(make_trunk: Callable[..., Trunk], fit: Callable[..., Any]) -> None:
    """Those that were loaded since the network was built; it learns at the trunk's rate."""
    module = moved(network(make_trunk(), lambda_target=1.0))
    before = copy.deepcopy(module.state_dict())
    trainer, _ = fit(module, epochs=2, steps=2)
    for name in ("trunk.body.3.weight", "source_head.weight"):
        kept_name = name.replace("trunk.", "trunk.trunk.").replace("source_head", "head")
        assert torch.equal(module.state_dict()[f"pretrained.{kept_name}"], before[name])
        assert not torch.equal(module.state_dict()[name], before[name])
    groups = {group["name"]: set(map(id, group["params"])) for group in trainer.optimizers[0].param_groups}
    assert groups["heads"] == set(map(id, module.target_head.parameters()))
    assert groups["trunk"] == {*map(id, module.trunk.parameters()), *map(id, module.source_head.parameters())}
    assert float(trainer.callback_metrics["train/keep"]) > 0


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(UserError, match=r"keep >= 0, but got -1"):
        Method(keep=-1)
    assert Method(lambda_target=0.0, keep=0.1).has_terms
    assert Method(keep=0.1).keeps_source > Method().keeps_source
