"""The weights cost against SciPy's cosine distances, without a single source image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from tiny import TinySpec
from torch import Tensor, nn

from jtln.costs import SourceHead, WeightsCost
from jtln.data.features import Features
from jtln.errors import UserError
from jtln.names.class_set import ClassSet
from jtln.training.class_costs import read_cost
from jtln.transport import TransportSettings
from jtln.trunks import Trunk

SOURCE, TARGET = ClassSet(["ant", "bee", "cat", "dog"]), ClassSet(["elk", "fox", "gnu"])
SIZES = (4, 3)


@pytest.fixture
def target() -> tuple[Tensor, Tensor]:
    """Features (B, D) far from the origin, and labels (B,), of uneven classes."""
    generator = torch.Generator().manual_seed(0)
    return 10 + torch.randn(9, 5, generator=generator), torch.tensor([0, 1, 1, 2, 2, 2, 0, 1, 1])


@pytest.fixture
def head() -> SourceHead:
    """A constant in all rows of the weight has no effect."""
    linear = nn.Linear(5, 4)
    with torch.no_grad():
        linear.weight.add_(torch.arange(5.0))
    return SourceHead(linear, [], linear.weight)


def no_source() -> Iterator[tuple[Tensor, Tensor]]:
    pytest.fail("read source images")
    yield torch.zeros(1, 5), torch.zeros(1, dtype=torch.long)


def fitted(head: SourceHead, target: tuple[Tensor, Tensor], **settings: Any) -> WeightsCost:
    cost = WeightsCost(**settings)
    cost.prepare(SIZES, 5)
    cost.fit(no_source(), list(zip(*(part.split(4) for part in target), strict=True)), SIZES, head)
    return cost


def by_hand(weight: Tensor, target: tuple[Tensor, Tensor]) -> np.ndarray:
    u, (x, labels) = weight.detach().double().numpy(), (part.numpy() for part in target)
    v = np.stack([x[labels == label].astype(np.float64).mean(0) for label in range(3)])
    return cdist(u - u.mean(0), v - v.mean(0), "cosine")


@pytest.mark.parametrize("autocast", [False, True])
def test_agrees_with_scipy(autocast: bool, head: SourceHead, target: tuple[Tensor, Tensor]) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        cost = fitted(head, target)
        distances, matrix = cost.distances(SOURCE, TARGET), cost.matrix(SOURCE, TARGET)
    expected = by_hand(head.weight, target)
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(distances.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(matrix.numpy(), expected / expected.max(), atol=1e-5)
    assert not cost.source_weight.requires_grad


def test_the_same_classifier_costs_nothing_on_the_diagonal() -> None:
    """A nearest-mean source head of the same images: cosine 1, for any scale and shift."""
    means = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    head = SourceHead(lambda x: x @ means.T, [], 7 * means + 2)
    cost = WeightsCost(scale="none")
    cost.fit(no_source(), [(means, torch.arange(3))], (3, 3), head)
    matrix = cost.matrix(TARGET, TARGET)
    assert matrix.diagonal().abs().max() < 1e-6
    assert (matrix + 10 * torch.eye(3)).min() > 0.5
    assert matrix.max() <= 2


def test_a_class_without_a_direction_is_at_distance_one(head: SourceHead, target: tuple[Tensor, Tensor]) -> None:
    x, labels = target
    cost = fitted(head, (x[labels < 2], labels[labels < 2]))
    assert torch.equal(cost.distances(SOURCE, TARGET)[:, 2].float(), torch.ones(4))
    two = np.stack([x[labels == label].double().numpy().mean(0) for label in (0, 1)])
    u = head.weight.detach().double().numpy()
    expected = cdist(u - u.mean(0), two - two.mean(0), "cosine")
    np.testing.assert_allclose(cost.distances(SOURCE, TARGET)[:, :2].numpy(), expected, atol=1e-5)
    alone = WeightsCost()
    alone.fit(no_source(), [(x, torch.zeros_like(labels))], (4, 1), head)
    assert torch.equal(alone.matrix(SOURCE, ClassSet(["elk"])), torch.ones(4, 1))


def test_in_a_run_it_reads_the_source_head(make_trunk: Callable[..., Trunk]) -> None:
    """The data module has no source images."""
    trunk, pair = make_trunk(), TinySpec().load()
    source_head = nn.Linear(trunk.dim, 4)

    class TargetOnly:
        def images_of(self, side: str, part: str = "train", at_most: Any = None, device: Any = "cpu") -> Any:
            assert side == "target", "read source images"
            images, labels = pair.target.train.__getitems__(list(range(len(pair.target.train))))
            yield images.float() / 255, labels

    features = Features(trunk, TargetOnly(), "cpu")
    settings = TransportSettings(0.2, False, 2000, 1e-7)
    read = read_cost(WeightsCost(scale="none"), pair, features, source_head, settings, calibrates=False)
    ((rows, labels),) = features.of("target")
    np.testing.assert_allclose(read.given.numpy(), by_hand(source_head.weight, (rows, labels)), atol=1e-4)


def test_state_survives_a_checkpoint(head: SourceHead, target: tuple[Tensor, Tensor]) -> None:
    cost, again = fitted(head, target, update="epoch"), WeightsCost(update="epoch")
    again.prepare(SIZES, 5)
    assert torch.equal(again.matrix(SOURCE, TARGET), torch.ones(SIZES))  # constant before it is fitted
    again.load_state_dict(cost.state_dict())
    assert torch.equal(again.matrix(SOURCE, TARGET), cost.matrix(SOURCE, TARGET))


def test_mistakes(head: SourceHead, target: tuple[Tensor, Tensor]) -> None:
    assert (WeightsCost().updates, WeightsCost().needs_source_head) == ("once", True)
    with pytest.raises(UserError, match=r"update 'ema'.*once, epoch"):
        WeightsCost(update="ema")
    with pytest.raises(UserError, match=r"source head.*SourceHead"):
        WeightsCost().fit([], [target], SIZES)
    with pytest.raises(UserError, match=r"fit\(\)"):
        WeightsCost().matrix(SOURCE, TARGET)
    with pytest.raises(UserError, match=r"\(S, D\) = \(7, 5\).*\(4, 5\)"):
        WeightsCost().fit([], [target], (7, 3), head)
