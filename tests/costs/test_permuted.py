"""The permuted cost is the other one's, column for column, under a permutation that moves them all."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TinySpec
from torch import Tensor

from jtln.costs import (
    CentroidCost,
    Cost,
    MMDCost,
    PermutedCost,
    PosteriorCost,
    SourceHead,
    UniformCost,
    WeightsCost,
    WordNetCost,
)
from jtln.costs.permuted import derangement
from jtln.errors import UserError
from jtln.methods import Method
from jtln.module import JTLN
from jtln.names.class_set import ClassSet
from jtln.training.class_costs import FollowFeatures
from jtln.transport import TransportLoss

SOURCE = ClassSet(["cat", "dog", "car"], ["cat.n.01", "dog.n.01", "car.n.01"])
TARGET = ClassSet(
    ["wolf", "lynx", "truck", "bus", "apple"], ["wolf.n.01", "lynx.n.02", "truck.n.01", "bus.n.01", "apple.n.01"]
)
SIZES = (3, 5)


def batch(classes: int, seed: int) -> tuple[Tensor, Tensor]:
    return torch.randn(12, 4, generator=torch.Generator().manual_seed(seed)), torch.arange(12) % classes


@pytest.mark.parametrize("size", [2, 3, 7, 200])
def test_no_class_stays_in_its_place(size: int) -> None:
    orders = {tuple(derangement(size, seed).tolist()) for seed in range(20)}
    for order in orders:
        assert sorted(order) == list(range(size))
        assert not any(place == index for index, place in enumerate(order))
    assert len(orders) == {2: 1, 3: 2}.get(size, 20)
    assert torch.equal(derangement(size, 3), derangement(size, 3))


def test_derangements_are_equally_likely() -> None:
    """The nine derangements of four, each within four standard deviations of its expected frequency."""
    draws = [tuple(derangement(4, seed).tolist()) for seed in range(1800)]
    counts = [draws.count(order) for order in set(draws)]
    assert len(counts) == 9
    assert all(abs(count - 200) < 4 * math.sqrt(200) for count in counts)


def test_a_single_class_has_nowhere_to_go() -> None:
    assert derangement(1, 0).tolist() == [0]


def test_the_columns_of_a_static_cost() -> None:
    cost = PermutedCost(WordNetCost("path", scale="range"), seed=4)
    inner = WordNetCost("path", scale="range").matrix(SOURCE, TARGET)
    matrix = cost.matrix(SOURCE, TARGET)
    for j, other in enumerate(derangement(5, 4).tolist()):
        assert torch.equal(matrix[:, j], inner[:, other])
    assert not torch.equal(matrix, inner)
    assert (cost.updates, cost.needs_source_head) == ("never", False)
    assert torch.equal(PermutedCost(UniformCost()).matrix(SOURCE, TARGET), torch.ones(SIZES))


@pytest.mark.filterwarnings("ignore::jtln.names.linking.AmbiguousClassWarning")
def test_unknown_classes_move_with_their_columns() -> None:
    source = ClassSet(["xyzzyx", "dog", "car"], [None, "dog.n.01", "car.n.01"])
    target = ClassSet(["xyzzyx", *TARGET.names[1:4], "zyxxyz"], [None, *(TARGET.synsets or ())[1:4], None])
    order = derangement(5, 4)
    cost, inner = PermutedCost(WordNetCost(), seed=4), WordNetCost()
    unknown = cost.unknown(source, target)
    assert unknown.source == (0,)
    assert [int(order[place]) for place in unknown.target] in ([0, 4], [4, 0])
    assert list(unknown.target) == sorted(unknown.target)
    assert torch.equal(cost.matrix(source, target), inner.matrix(source, target)[:, order])
    assert cost.remedy == inner.remedy


def test_a_cost_that_reads_features_reads_them_through_it() -> None:
    source, target = batch(3, 0), batch(5, 1)
    order = derangement(5, 0)
    head = SourceHead(lambda x: x[:, :3], [batch(3, 2)], torch.eye(3, 4))
    posterior = partial(PosteriorCost, calibrate=True)
    for make in (CentroidCost, partial(CentroidCost, update="epoch"), posterior, MMDCost, WeightsCost):
        inner, cost = make(), PermutedCost(make())
        assert (cost.updates, cost.needs_source_head) == (inner.updates, inner.needs_source_head)
        for each in (inner, cost):
            each.prepare(SIZES, 4)
            each.fit([source], [target], SIZES, head)
        assert torch.equal(cost.matrix(SOURCE, TARGET), inner.matrix(SOURCE, TARGET)[:, order])
    inner, cost = CentroidCost(update="ema"), PermutedCost(CentroidCost(update="ema"))
    for each in (inner, cost):
        each.prepare(SIZES, 4)
        each.observe(source, target, SIZES)
    assert torch.equal(cost.matrix(SOURCE, TARGET), inner.matrix(SOURCE, TARGET)[:, order])
    assert set(cost.state_dict()) == {f"of.{name}" for name in inner.state_dict()}


@pytest.mark.parametrize("update", ["epoch", "ema"])
def test_in_training(update: str, make_trunk: Callable[..., Any], fit: Callable[..., Any]) -> None:
    """Both costs use the same features, so that the loss's matrices differ only in the order of columns."""
    used = []
    for wrap in (lambda cost: cost, lambda cost: PermutedCost(cost, 0)):
        torch.manual_seed(0)
        cost: Cost = wrap(CentroidCost(update=update))
        cost.prepare((4, 3), 6)
        method = Method(lambda_source=1.0, lambda_ot=1e-6)
        module = JTLN(make_trunk(), 4, 3, method, TransportLoss(torch.ones(4, 3)))
        fit(module, epochs=2, steps=1, callbacks=[FollowFeatures(cost, TinySpec().load())])
        used.append(module.transport.cost.numpy())
    np.testing.assert_allclose(used[1], used[0][:, derangement(3, 0).numpy()], atol=1e-4)
    assert np.ptp(used[0]) > 0.05


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"\bof\b.*got 3"):
        PermutedCost(3)  # type: ignore[arg-type]
    for seed in (-1, 0.5):
        with pytest.raises(UserError, match=f"seed.*got {seed}"):
            PermutedCost(UniformCost(), seed)  # type: ignore[arg-type]
