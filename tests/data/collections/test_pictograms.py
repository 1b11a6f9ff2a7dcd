import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from task_parts import parts

from jtln.data.collections.classifier import Classifier
from jtln.data.collections.flowers import Flowers102
from jtln.data.collections.pictograms import GROUPS, REDRAWN, Pictograms
from jtln.data.images import ImageSet
from jtln.data.pairs import Pair
from jtln.errors import UserError

GROUP_OF = {style: index for index, group in enumerate(GROUPS) for style in group}


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pictograms().load()


def styles(images: ImageSet) -> set[str]:
    return {name.split("/")[1] for name in images.names}


def groups(images: ImageSet) -> set[int]:
    return {GROUP_OF[style] for style in styles(images)}


def test_the_default_split(pair: Pair) -> None:
    assert len(pair.source.classes) == 150
    assert len(pair.target.classes) == 50
    assert not set(pair.source.classes) & set(pair.target.classes)
    assert not set(REDRAWN) & set(pair.target.classes)
    assert pair.target.train.labels.bincount().tolist() == [1] * 50
    for images in parts(pair.target).values():
        assert len(set(images.labels.bincount().tolist())) == 1
    for images in [*parts(pair.source).values(), *parts(pair.target).values()]:
        assert images[0][0].shape == (3, 32, 32)


def test_every_source_category_holds_one_style_group_out(pair: Pair) -> None:
    train, val, test = parts(pair.source).values()
    assert sum(map(len, (train, val, test))) == 150 * 6
    assert val.labels.bincount(minlength=150).count_nonzero() == 75
    assert test.labels.bincount(minlength=150).count_nonzero() == 75
    assert not set(val.labels.tolist()) & set(test.labels.tolist())
    assert set(train.labels.tolist()) == set(range(150))
    for images in (val, test):
        of = {label: set() for label in images.labels.tolist()}
        for name, label in zip(images.names, images.labels.tolist(), strict=True):
            of[label].add(GROUP_OF[name.split("/")[1]])
        assert all(len(held) == 1 for held in of.values())
        trained = {
            (label, GROUP_OF[name.split("/")[1]])
            for name, label in zip(train.names, train.labels.tolist(), strict=True)
        }
        assert not trained & {(label, group) for label, held in of.items() for group in held}


def test_no_image_is_in_two_parts(pair: Pair) -> None:
    everything = [*parts(pair.source).values(), *parts(pair.target).values()]
    names = [name for images in everything for name in images.names]
    assert len(set(names)) == len(names)
    pixels = [image.numpy().tobytes() for images in everything for image, _ in images]
    assert len(set(pixels)) == len(pixels)


@pytest.mark.parametrize("seed", range(6))
def test_no_style_group_is_on_two_sides_of_the_target(seed: int) -> None:
    targets = [Pictograms(shots=shots, seed=seed, image_size=8)._target() for shots in (1, 2, 3)]
    for shots, target in enumerate(targets, start=1):
        assert len(styles(target.train)) == shots
        for one, other in itertools.combinations(parts(target).values(), 2):
            assert not groups(one) & groups(other)
        assert groups(target.val) == groups(targets[0].val)
    assert set(targets[0].train.names) < set(targets[1].train.names) < set(targets[2].train.names)
    assert set(targets[0].test.names) > set(targets[1].test.names) > set(targets[2].test.names)


def test_seeds_make_splits_that_differ() -> None:
    """Ten seeds are ten splits, because an interval over repeated splits would be too narrow."""
    for block in (0, 20):
        orders = [
            [GROUPS.index(group) for group in Pictograms(seed=seed)._order()[0]] for seed in range(block, block + 20)
        ]
        assert all(sorted(order) == list(range(len(GROUPS))) for order in orders)
        assert len({(order[0], order[-1]) for order in orders}) == 20
        assert len({(frozenset(order[:2]), order[-1]) for order in orders}) == 20
        for start in range(0, 20, 5):
            for place in (0, -1):
                assert {order[place] for order in orders[start : start + 5]} == set(range(len(GROUPS)))
    assert {Pictograms(seed=seed)._order()[1] for seed in range(20)} == {0, 1}
    assert Pictograms(seed=0)._order() != Pictograms(seed=20)._order()


def test_near_duplicates_are_of_one_group() -> None:
    """Only the styles of one group are near duplicates, over the default target categories."""
    every = Pictograms()
    names = list(GROUP_OF)
    classes = every.target_classes
    images = every._read(classes, [(category, style) for category in classes for style in names]).images
    flat = images.reshape(50, 6, -1).double().numpy()
    flat -= flat.mean(-1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=-1, keepdims=True)
    correlation = np.einsum("cid,cjd->cij", flat, flat)  # (50, 6, 6)
    for i, j in itertools.combinations(range(6), 2):
        if GROUP_OF[names[i]] == GROUP_OF[names[j]]:
            assert np.median(correlation[:, i, j]) > 0.9
        else:
            assert np.median(correlation[:, i, j]) < 0.65
            assert (correlation[:, i, j] > 0.9).mean() <= 0.1  # an egg is an egg in any style
    old, new = names.index("noto-v1"), names.index("noto")
    assert (correlation[:, old, new] < 0.97).all()  # one designer's two drawings are two drawings


def test_seeds(pair: Pair) -> None:
    other, split = Pictograms(seed=4).load(), Pictograms(split_seed=1)
    for mine, theirs in zip(parts(pair.source).values(), parts(other.source).values(), strict=True):
        assert mine.fingerprint() == theirs.fingerprint()
    assert other.target.classes == pair.target.classes
    assert styles(other.target.train) != styles(pair.target.train)
    assert split.target_classes != pair.target.classes
    assert Pictograms()._target().test.fingerprint() == pair.target.test.fingerprint()


def test_named_targets_and_original_size() -> None:
    target = Pictograms(target_classes=["volcano", "comet"], image_size=64, shots=2).load().target
    assert target.classes.names == ("volcano", "comet")
    assert target.train.names[0].startswith("volcano/")
    assert target.train.labels.tolist() == [0, 0, 1, 1]
    image = target.train[0][0]
    assert image.shape == (3, 64, 64)
    assert torch.equal(image[:, 0, 0], torch.full((3,), 255, dtype=torch.uint8))  # white ground


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": 4}, "shots.* 3"),
        ({"shots": 3, "validation": 2}, "shots.* 2"),
        ({"shots": 0}, "1 to 3 shots.*0"),
        ({"validation": 4}, "4.*validation=1"),
        ({"validation": -1}, "-1.*validation=1"),
        ({"target_classes": 199}, "2 to 198 .*199"),
        ({"target_classes": ["volcano", "comett"]}, "'comett'.*'comet'"),
        ({"target_classes": "volcano"}, "two target classes.*'volcano'"),
    ],
)
def test_mistakes_are_explained(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Pictograms(**settings)


def test_the_source_is_a_published_classifier() -> None:
    alone = Pictograms(validation=0, shots=2)
    spec = Pictograms(validation=0, shots=2, source=Classifier("imagenet-1k"), overlap="keep")
    pair = spec.load()
    assert spec.target_classes.names == alone.target_classes.names
    assert len(spec.source_classes) == spec.classifier_size == 1000
    assert spec.classifier_rows == tuple(range(1000))
    assert not spec.has_source_images
    assert not spec.validates
    assert [len(images) for images in parts(pair.source).values()] == [0, 0, 0]
    assert [len(images) for images in parts(pair.target).values()] == [2 * 50, 0, len(alone.load().target.test)]
    assert not groups(pair.target.train) & groups(pair.target.test)
    assert groups(pair.target.train) | groups(pair.target.test) == set(range(len(GROUPS)))


def test_classes_of_both_are_left_out_of_the_classifier() -> None:
    spec = Pictograms(validation=0, source=Classifier("imagenet-1k"), target_classes=["pizza", "tiger", "comet"])
    assert set(spec.dropped) == {"pizza", "tiger"}
    assert not set(spec.dropped) & set(spec.source_classes)
    assert spec.classifier_rows is not None
    assert len(spec.classifier_rows) == len(spec.source_classes) == 1000 - len(spec.dropped)


def test_source_images_of_another_collection_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset/source=classifier"):
        Pictograms(source=Flowers102(tmp_path))
