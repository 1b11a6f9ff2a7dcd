import csv
from dataclasses import replace
from pathlib import Path

import pytest

from jtln.data.cache import Skipped
from jtln.data.images import ArrayImages
from jtln.data.pairs import Pair, PairSpec
from jtln.errors import UserError
from jtln.training.run_folder import check_split, write_split


def table(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_the_labelled_and_validation_images_are_listed(tiny: PairSpec, tmp_path: Path) -> None:
    pair = tiny.load()
    write_split(tmp_path, pair)
    header, *rows = table(tmp_path / "split.csv")
    assert header == ["part", "class", "image"]
    target = pair.target
    assert [row[0] for row in rows] == ["train"] * 12 + ["val"] * 12 + ["test"] * 12
    assert [row[2] for row in rows] == [*target.train.names, *target.val.names, *target.test.names]
    assert [row[1] for row in rows[:3]] == [pair.target.classes.names[label] for label in pair.target.train.labels[:3]]
    assert not (tmp_path / "skipped.csv").exists()


def test_broken_images_are_listed(tiny: PairSpec, tmp_path: Path) -> None:
    skipped = (Skipped("cat/1,2.jpg", "the file is empty"), Skipped("dog/\udcff.jpg", "truncated"))
    write_split(tmp_path, replace(tiny.load(), skipped=skipped))
    assert table(tmp_path / "skipped.csv") == [
        ["image", "reason"],
        ["cat/1,2.jpg", "the file is empty"],
        ["dog/\\udcff.jpg", "truncated"],
    ]


def changed(pair: Pair, part: str, keep: range, pixels: bool = False) -> Pair:
    """The pair with some of a target part's images, or with other pixels in them."""
    images = getattr(pair.target, part)
    values, labels = images.__getitems__(list(keep))
    other = ArrayImages(255 - values if pixels else values, labels, [images.names[index] for index in keep])
    return replace(pair, target=replace(pair.target, **{part: other}))


def test_a_resumed_run_has_the_images_that_it_was_begun_with(tiny: PairSpec, tmp_path: Path) -> None:
    pair = tiny.load()
    write_split(tmp_path, pair)
    check_split(tmp_path, pair)
    with pytest.raises(UserError, match=r"0 are new .* 2 are gone .*no longer in train"):
        check_split(tmp_path, changed(pair, "train", range(10)))
    swapped = replace(pair, target=replace(pair.target, train=pair.target.test, test=pair.target.train))
    with pytest.raises(UserError, match=r"24 are new .* 24 are gone"):
        check_split(tmp_path, swapped)
    for part in ("train", "val", "test"):
        with pytest.raises(UserError, match=f"others under the same names in: target.{part}"):
            check_split(tmp_path, changed(pair, part, range(12), pixels=True))
    (tmp_path / "data.json").unlink()
    with pytest.raises(UserError, match=r"data\.json"):
        check_split(tmp_path, pair)
