"""Features that are computed once: each image's own, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from jtln.data.feature_store import FeatureImages, FeatureStore
from jtln.data.images import ArrayImages, ImageSet, no_images

SHAPE = (2, 3)


def images(*values: int) -> ArrayImages:
    """Images of one colour each, labelled by their place."""
    pixels = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
    return ArrayImages(pixels, torch.arange(len(values)), [f"{value}.png" for value in values])


class Compute:
    """Features (B, 2, 3) that are the image's mean, and its mean plus one; counts the images."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.seen: list[int] = []
        self.fail_after = fail_after

    def __call__(self, given: ImageSet) -> Iterator[Tensor]:
        for index in range(len(given)):
            if self.fail_after is not None and len(self.seen) >= self.fail_after:
                raise KeyboardInterrupt
            value = float(given[index][0].float().mean())
            self.seen.append(int(value))
            yield torch.stack([torch.full((3,), value), torch.full((3,), value + 1)])[None]


def test_features_take_the_place_of_images(tmp_path: Path) -> None:
    compute = Compute()
    found = FeatureStore(tmp_path, "key", SHAPE).features(images(7, 9, 7), compute)
    rows, labels = found.__getitems__([2, 1])
    assert rows.tolist() == [[[7.0] * 3, [8.0] * 3], [[9.0] * 3, [10.0] * 3]]
    assert labels.tolist() == [2, 1]
    assert compute.seen == [7, 9]  # the same pixels once
    assert found.names == ["7.png", "9.png", "7.png"]
    part = found.subset([1], torch.tensor([5]))
    assert (part[0][0][0, 0].item(), part[0][1]) == (9.0, 5)


def test_what_is_kept_is_not_computed_again(tmp_path: Path) -> None:
    FeatureStore(tmp_path, "key", SHAPE).features(images(1, 2), Compute())
    compute = Compute()
    found = FeatureStore(tmp_path, "key", SHAPE).features(images(3, 2), compute)
    assert compute.seen == [3]
    assert found.__getitems__([0, 1])[0][:, 0, 0].tolist() == [3.0, 2.0]
    other = Compute()
    FeatureStore(tmp_path, "another network", SHAPE).features(images(2), other)
    assert other.seen == [2]


def test_a_pass_that_is_cut_off_keeps_what_is_whole(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        FeatureStore(tmp_path, "key", SHAPE).features(images(1, 2, 3), Compute(fail_after=2))
    compute = Compute()
    found = FeatureStore(tmp_path, "key", SHAPE).features(images(1, 2, 3), compute)
    assert compute.seen == [3]
    assert found.__getitems__([0, 1, 2])[0][:, 0, 0].tolist() == [1.0, 2.0, 3.0]


def test_a_killed_pass_keeps_what_was_whole_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed writes nothing in the end: another store looks while the pass goes on."""
    monkeypatch.setattr("jtln.data.feature_store.KEPT_EVERY", -1.0)
    known = []

    def compute(given: ImageSet) -> Iterator[Tensor]:
        for rows in Compute()(given):
            known.append(len(FeatureStore(tmp_path, "key", SHAPE).known()))
            yield rows

    FeatureStore(tmp_path, "key", SHAPE).features(images(1, 2, 3), compute)
    assert known == [0, 1, 2]


@pytest.mark.parametrize("damage", ["rows", "index", "torn"])
def test_files_that_are_not_whole_are_never_used(tmp_path: Path, damage: str) -> None:
    FeatureStore(tmp_path, "key", SHAPE).features(images(1, 2), Compute())
    (rows,) = tmp_path.rglob("*.f32")
    if damage == "rows":
        rows.write_bytes(rows.read_bytes()[:-1])
    elif damage == "index":
        rows.with_suffix(".txt").write_text("nonsense")
    else:  # a killed process wrote rows that the index does not name
        rows.write_bytes(rows.read_bytes() + b"\x01" * 30)
    found = FeatureStore(tmp_path, "key", SHAPE).features(images(1, 2, 3), Compute())
    assert found.__getitems__([0, 1, 2])[0][:, 0, 0].tolist() == [1.0, 2.0, 3.0]


def test_a_changed_byte_is_seen_where_it_matters(tmp_path: Path) -> None:
    FeatureStore(tmp_path, "key", SHAPE).features(images(1, 2), Compute())
    (path,) = tmp_path.rglob("*.f32")
    data = bytearray(path.read_bytes())
    data[-2] ^= 0xFF  # of the second image
    path.write_bytes(data)
    first, both = Compute(), Compute()
    FeatureStore(tmp_path, "key", SHAPE).features(images(1), first)
    assert first.seen == []
    with pytest.warns(UserWarning, match=path.name):
        found = FeatureStore(tmp_path, "key", SHAPE).features(images(1, 2), both)
    assert both.seen == [1, 2]
    assert found.__getitems__([0, 1])[0][:, 0, 0].tolist() == [1.0, 2.0]
    again = Compute()
    FeatureStore(tmp_path, "key", SHAPE).features(images(2, 1), again)
    assert again.seen == []


def test_without_a_folder_features_are_in_memory(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    for cache in (None, blocked):
        store = FeatureStore(cache, "key", SHAPE)
        if cache is None:
            found = store.features(images(4, 5), Compute())
        else:
            with pytest.warns(UserWarning, match="features cannot be kept in the cache"):
                found = store.features(images(4, 5), Compute())
        assert found.__getitems__([1])[0][0, 0].tolist() == [5.0] * 3
    assert len(FeatureStore(tmp_path, "key", SHAPE).features(no_images(3, 4), Compute())) == 0


def test_training_draws_one_of_the_views() -> None:
    rows = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    drawn = FeatureImages(rows, np.arange(2), torch.arange(2), ["a", "b"], draws=True)
    torch.manual_seed(0)
    seen = {tuple(drawn.__getitems__([1])[0][0].tolist()) for _ in range(60)}
    assert seen == {tuple(view.tolist()) for view in rows[1]}
    single = FeatureImages(rows[:, :1], np.arange(2), torch.arange(2), ["a", "b"])
    assert single.__getitems__([0])[0].tolist() == [rows[0, 0].tolist()]
