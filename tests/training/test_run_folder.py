import csv
from dataclasses import replace
from pathlib import Path

from jtln.data.cache import Skipped
from jtln.data.pairs import PairSpec
from jtln.training.run_folder import write_split


def table(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_the_labelled_and_validation_images_are_listed(tiny: PairSpec, tmp_path: Path) -> None:
    pair = tiny.load()
    write_split(tmp_path, pair)
    header, *rows = table(tmp_path / "split.csv")
    assert header == ["part", "class", "image"]
    assert [row[0] for row in rows] == ["train"] * 12 + ["val"] * 12
    assert [row[2] for row in rows] == [*pair.target.train.names, *pair.target.val.names]
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
