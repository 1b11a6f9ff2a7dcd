"""The cost matrix of a run: read off the features before training, and following them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import ot
import pytest
import pytorch_lightning as pl
import torch
from given_cost import GivenCost
from tiny import TinySpec
from torch import Tensor, nn

from jtln.costs import CentroidCost, Cost, PosteriorCost, UniformCost
from jtln.costs.calibration import Calibration
from jtln.data.features import Features
from jtln.methods import Method
from jtln.module import JTLN, Optimization
from jtln.names.class_set import ClassSet
from jtln.training.class_costs import FollowFeatures, read_cost, source_plan
from jtln.training.trainer import Budget, pair_data
from jtln.transport import TransportSettings
from jtln.trunks.base import Trunk

SETTINGS = TransportSettings(0.3, calibrate=False)
METHOD = Method(lambda_target=1.5, lambda_source=0.4, lambda_ot=0.7)

Fit = Callable[..., tuple[pl.Trainer, Any]]


def prepared(cost: Cost, trunk: Trunk) -> tuple[JTLN, FollowFeatures]:
    """A network whose cost was read as a run reads it, and the callback that keeps it up to date."""
    torch.manual_seed(0)
    pair, head = TinySpec().load(), nn.Linear(trunk.dim, 4)
    data = pair_data(pair, trunk, Budget(1, 1, 8, 6), seed=0, augment=None)
    read = read_cost(cost, pair, Features(trunk, data, "cpu"), head, SETTINGS, calibrates=False)
    optimization = Optimization(partial(torch.optim.SGD, lr=0.5), 1.0)
    module = JTLN(trunk, 4, 3, METHOD, read.loss(METHOD, SETTINGS), optimization, head)
    follow = FollowFeatures(cost, pair)
    follow.matrix = read.used
    return module, follow


class Watch(pl.Callback):
    """The weights, the batch and the cost of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        before = copy.deepcopy(pl_module.state_dict())
        self.steps.append({"before": before, "batch": batch, "cost": pl_module.transport.cost.clone()})


def centroid_distances(features: dict[str, Tensor], labels: dict[str, Tensor]) -> np.ndarray:
    """Euclidean distances of the class means, over their largest."""
    means = {
        side: np.stack([x[labels[side].numpy() == c].mean(0) for c in range(size)])
        for side, size in (("source", 4), ("target", 3))
        for x in [features[side].double().detach().numpy()]
    }
    distance = np.linalg.norm(means["source"][:, None] - means["target"][None], axis=2)
    return distance / distance.max()


def training_set_cost(module: JTLN, data: Any, state: dict[str, Tensor]) -> np.ndarray:
    """The centroid cost by hand: of the training images, by the trunk whose weights are in ``state``."""
    module = copy.deepcopy(module)
    module.load_state_dict(state)
    features, labels = {}, {}
    for side in ("source", "target"):
        train = getattr(data.pair, side).train
        images, labels[side] = train.__getitems__(list(range(len(train))))
        features[side] = module.eval().trunk(data.transform_eval(images))
    return centroid_distances(features, labels)


@pytest.mark.parametrize("update", ["once", "epoch"])
def test_cost_is_read_off_the_training_set(update: str, make_trunk: Callable[..., Trunk], fit: Fit) -> None:
    """With dropout in the trunk, which the features must not go through."""
    module, follow = prepared(CentroidCost(update=update), make_trunk(dropout=0.5))
    watch = Watch()
    _, data = fit(module, epochs=2, steps=2, callbacks=[follow, watch])
    by_hand = [training_set_cost(module, data, step["before"]) for step in watch.steps]
    assert np.abs(by_hand[0] - by_hand[2]).max() > 0.01  # the features have moved
    used = [step["cost"].numpy() for step in watch.steps]
    read = {"once": [0, 0, 0, 0], "epoch": [0, 0, 2, 2]}[update]
    for cost, index in zip(used, read, strict=True):
        np.testing.assert_allclose(cost, by_hand[index], atol=2e-6)
    assert module.trunk.training


def test_cost_follows_the_training_batches(make_trunk: Callable[..., Trunk], fit: Fit) -> None:
    """``ema`` by hand, one step late; every class is in every batch, so a centroid is a moving average of means."""
    momentum = 0.6
    module, follow = prepared(CentroidCost(update="ema", momentum=momentum, scale="none"), make_trunk())
    watch = Watch()
    fit(module, steps=3, callbacks=[follow, watch], source=16, target=12)
    sums, weight, expected = {"source": np.zeros((4, 6)), "target": np.zeros((3, 6))}, 0.0, np.ones((4, 3))
    for step in watch.steps:
        np.testing.assert_allclose(step["cost"].numpy(), expected, atol=2e-6)
        before = copy.deepcopy(module)
        before.load_state_dict(step["before"])
        weight = momentum * weight + (1 - momentum)
        for side, size in (("source", 4), ("target", 3)):
            images, labels = step["batch"][side]
            features = before.trunk(images).detach().numpy()
            means = np.stack([features[labels.numpy() == c].mean(0) for c in range(size)])
            sums[side] = momentum * sums[side] + (1 - momentum) * means
        expected = np.linalg.norm(sums["source"][:, None] / weight - sums["target"][None] / weight, axis=2)
    np.testing.assert_allclose(follow.matrix.numpy(), expected, atol=2e-6)


def test_the_posterior_cost_reads_the_source_head(make_trunk: Callable[..., Trunk], fit: Fit) -> None:
    """Each epoch, from the head as it is then."""
    module, follow = prepared(PosteriorCost(update="epoch", scale="none"), make_trunk())
    watch = Watch()
    _, data = fit(module, epochs=2, steps=2, callbacks=[follow, watch])
    for step in (watch.steps[0], watch.steps[2]):
        before = copy.deepcopy(module)
        before.load_state_dict(step["before"])
        train = data.pair.target.train
        images, labels = train.__getitems__(list(range(len(train))))
        rows = before.eval()(data.transform_eval(images)).source.softmax(1).detach().double().numpy()
        relation = np.stack([rows[labels.numpy() == c].mean(0) for c in range(3)])  # (T, S)
        expected = -np.log((1 - 1e-3) * relation + 1e-3 / 4).T
        np.testing.assert_allclose(step["cost"].numpy(), expected, atol=2e-5)


def test_what_follows_is_kept_in_a_checkpoint(make_trunk: Callable[..., Trunk], fit: Fit) -> None:
    module, follow = prepared(CentroidCost(update="ema"), make_trunk())
    fit(module, steps=2, callbacks=[follow])
    _, again = prepared(CentroidCost(update="ema"), make_trunk())
    again.load_state_dict(copy.deepcopy(follow.state_dict()))
    assert torch.equal(again.matrix, follow.matrix)
    assert torch.equal(again.cost.matrix(*_classes()), follow.cost.matrix(*_classes()))


def _classes() -> tuple[Any, Any]:
    return TinySpec.source_classes, TinySpec.target_classes


class Lengths(Cost):
    """Distances between names by their lengths; it remembers the classes that it was asked for."""

    asked: tuple[str, ...] = ()

    def distances(self, source: ClassSet, target: ClassSet) -> Tensor:
        self.asked = tuple(target.names)
        sizes = [torch.tensor([len(name) for name in classes.names]) for classes in (source, target)]
        return (sizes[0][:, None] - sizes[1]).abs().float()


NAMES = ClassSet(["a", "bb", "cccc", "ddddddddd"])


@pytest.mark.parametrize("share", [None, 0.2])
def test_plans_between_source_classes_are_as_sharp_as_the_targets(share: float | None) -> None:
    """A calibrated epsilon is a share of the range, one that is not calibrated is in the cost's units."""
    cost = Lengths()
    cost.matrix(NAMES, ClassSet(["ee"]))
    calibration = None if share is None else Calibration(share, 1.0, 1.1)
    plan = source_plan(cost, NAMES, calibration, SETTINGS)
    assert plan is not None
    found = plan(torch.tensor([0, 3]), torch.tensor([1, 2]))
    block = torch.tensor([[1.0, 3.0], [7.0, 5.0]]) / 8
    epsilon = 0.3 if share is None else share * 6 / 8
    expected = ot.sinkhorn([0.5, 0.5], [0.5, 0.5], block.double().numpy(), epsilon, stopThr=1e-12)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    assert cost.asked == ("ee",)


def test_where_nothing_relates_source_classes_there_is_no_plan_between_them() -> None:
    useless = Calibration(math.inf, 1.1, 1.1)
    assert source_plan(Lengths(), NAMES, useless, SETTINGS) is None
    assert source_plan(CentroidCost(), NAMES, None, SETTINGS) is None
    assert source_plan(GivenCost(torch.rand(4, 3)), NAMES, None, SETTINGS) is None  # of source and target classes alone
    plan = source_plan(UniformCost(), NAMES, Calibration(0.1, 1.0, 1.1), SETTINGS)
    assert plan is not None
    torch.testing.assert_close(plan(torch.tensor([0, 1]), torch.tensor([2, 3])), torch.full((2, 2), 0.25))
