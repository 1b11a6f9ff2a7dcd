"""Features are the trunk's outputs in evaluation mode, for each image of a part."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tiny import TinySpec

from jtln.data.features import Features
from jtln.data.loaders import PairData
from jtln.trunks.base import Trunk


@pytest.fixture
def images() -> PairData:
    return PairData(TinySpec().load(), steps_per_epoch=1, eval_batch_size=5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("side", "part"), [("source", "train"), ("source", "val"), ("target", "train")])
def test_features_are_those_of_evaluation(
    training: bool, side: str, part: str, images: PairData, make_trunk: Callable[..., Trunk]
) -> None:
    """Features have no dropout and no gradient; between batches the trunk's mode is unchanged."""
    trunk = make_trunk(dropout=0.5).train(training)
    frozen = copy.deepcopy(trunk).eval()
    of_part = list(Features(trunk, images, "cpu").images_of(side, part))
    count = 0
    for (rows, labels), (pixels, theirs) in zip(Features(trunk, images, "cpu").of(side, part), of_part, strict=True):
        assert torch.equal(rows, frozen(pixels))
        assert torch.equal(labels, theirs)
        assert not rows.requires_grad
        assert trunk.training == training
        count += len(labels)
    assert count == len(getattr(getattr(images.pair, side), part))


def test_fewer_images_are_spread_over_the_part(images: PairData, make_trunk: Callable[..., Trunk]) -> None:
    features = Features(make_trunk(), images, "cpu")
    rows, labels = (torch.cat(parts) for parts in zip(*features.of("source"), strict=True))
    fewer, theirs = (torch.cat(parts) for parts in zip(*features.of("source", at_most=6), strict=True))
    assert len(labels) == 16
    torch.testing.assert_close(fewer, rows[::3])
    assert torch.equal(theirs, labels[::3])
