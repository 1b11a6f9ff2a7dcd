"""``jtln classes``: what it shows, the table it writes, and that table, corrected, coming back."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from jtln.__main__ import main as jtln
from jtln.cli.classes import COLUMNS, main
from jtln.cli.cost import main as show_cost
from jtln.cli.train import main as train
from jtln.names.linking import AmbiguousClassWarning

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

NAMES = {
    "source": ["01_zebra", "bike_helmet", "crane (bird)", "n02084071-toy_dog", "zebbra"],
    "target": ["bear polar", "mouse", "xqxqxq"],
}


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """The overrides for two folders of images, a folder a class."""
    for task, names in NAMES.items():
        for shade, name in enumerate(names):
            (tmp_path / task / name).mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (8, 8), (40 * shade, 60 * index, 0)).save(tmp_path / task / name / f"{index}.png")
    return ["dataset=folder", f"dataset.source.root={tmp_path}/source", f"dataset.target.root={tmp_path}/target"]


def table(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "classes.csv", newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = {row["class"]: row for row in reader}
    assert tuple(reader.fieldnames or ()) == COLUMNS
    return rows


def test_shows_and_writes_every_class(tmp_path: Path, folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*folders, f"hydra.run.dir={tmp_path}/out"]) == 0
    told = capsys.readouterr().out
    assert "5 source and 3 target classes" in told
    for name in (*NAMES["source"], *NAMES["target"]):
        assert name in told
    assert "crane.n.05" in told
    assert "wading bird < aquatic bird < bird < ..." in told
    assert "or mouse.n.04, mouse.n.03" in told
    assert "read as 'polar bear'" in told
    assert "1 by an ImageNet id in the name, 4 by name (1 with several meanings), 1 by a close spelling" in told
    assert "1 by what they are a kind of; 1 unmatched" in told
    assert "cost=wordnet has no knowledge (mean costs): xqxqxq" in told
    assert "spelled like 'zebra'" in told
    assert f"dataset.links={tmp_path}/out/classes.csv" in told

    rows = table(tmp_path / "out")
    assert list(rows) == [*NAMES["source"], *NAMES["target"]]
    assert {name: (row["task"], row["how"], row["synset"], row["suggestion"]) for name, row in rows.items()} == {
        "01_zebra": ("source", "lemma", "n02391049", ""),
        "bike_helmet": ("source", "head", "", "helmet.n.01"),
        "crane (bird)": ("source", "lemma", "n02012849", ""),
        "n02084071-toy_dog": ("source", "id", "n02084071", ""),
        "zebbra": ("source", "slip", "n02391049", ""),
        "bear polar": ("target", "lemma", "n02134084", ""),
        "mouse": ("target", "lemma", "n02330245", ""),
        "xqxqxq": ("target", "unmatched", "", ""),
    }
    assert rows["mouse"]["note"].startswith("mouse.n.01 < rodent < placental < mammal < ")
    assert rows["mouse"]["note"].endswith(" < physical entity < entity")
    assert rows["mouse"]["others"].startswith("mouse.n.04 (an electronic_device); ")
    assert rows["bike_helmet"]["note"].startswith("helmet.n.01 < ")
    assert rows["bike_helmet"]["others"].startswith("helmet.n.02 (")


@pytest.mark.slow
def test_a_corrected_table_comes_back(tmp_path: Path, folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main([*folders, f"hydra.run.dir={tmp_path}/out"])
    rows = table(tmp_path / "out")
    rows["mouse"]["synset"] = "mouse.n.04"
    rows["xqxqxq"]["synset"] = "cat.n.01"
    for row in rows.values():
        row["synset"] = row["synset"] or row["suggestion"]
    with open(tmp_path / "links.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows.values())
    capsys.readouterr()
    assert main([*folders, f"dataset.links={tmp_path}/links.csv", f"hydra.run.dir={tmp_path}/again"]) == 0
    assert "linked to WordNet: 8 by the dataset; 0 unmatched" in capsys.readouterr().out
    again = table(tmp_path / "again")
    assert {row["how"] for row in again.values()} == {"given"}
    assert again["mouse"]["note"].startswith("mouse.n.04 < ")
    assert again["zebbra"]["synset"] == again["01_zebra"]["synset"]

    rows["xqxqxq"]["synset"] = "dog.n.01"  # as a source class has it
    with open(tmp_path / "links.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["class", "synset"], *([name, row["synset"]] for name, row in rows.items())])
    assert main([*folders, f"dataset.links={tmp_path}/links.csv", f"hydra.run.dir={tmp_path}/again"]) == 0
    assert "left out of the source, being target classes: n02084071-toy_dog" in capsys.readouterr().out


def test_a_mistake_in_the_table_is_one_message(
    tmp_path: Path, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "links.csv").write_text("class,synset\nmuose,mouse.n.04\n", encoding="utf-8")
    assert main([*folders, f"dataset.links={tmp_path}/links.csv"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "'muose': did you mean 'mouse'?" in told


def test_an_embedded_dataset_from_the_console(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without images, without a path in any class, into the folder for such outputs."""
    monkeypatch.setattr(sys, "argv", ["jtln", "classes", "dataset=fashion"])
    assert jtln() == 0
    told = capsys.readouterr().out
    assert "fashion: 6 source and 4 target classes" in told
    assert "linked to WordNet: 10 by the dataset; 0 unmatched" in told
    assert not re.search(r"^task .*\bpath\b", told, re.MULTILINE)
    (file,) = (tmp_path / "outputs" / "classes").glob("*/classes.csv")
    assert table(file.parent)["Bag"]["synset"] == "n02774152"


def test_a_hierarchy_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tree.csv").write_text("class,synset,path\nmouse,,animal/rodent\n01_zebra,,animal\n", encoding="utf-8")
    for task, names in NAMES.items():
        for name in names:
            (tmp_path / task / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / task / name / "1.png")
    roots = [f"dataset.source.root={tmp_path}/source", f"dataset.target.root={tmp_path}/target"]
    links = [f"dataset.links={tmp_path}/tree.csv", f"hydra.run.dir={tmp_path}/out"]
    assert main(["dataset=folder", *roots, *links]) == 0
    assert "animal/rodent" in capsys.readouterr().out
    rows = table(tmp_path / "out")
    assert (rows["mouse"]["path"], rows["01_zebra"]["path"], rows["zebbra"]["path"]) == ("animal/rodent", "animal", "")


def test_a_class_that_the_cost_does_not_know_is_said_before_images_are_read(
    folders: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jtln.data.category_pair.CategoryPair.load", lambda self: pytest.fail("read images"))
    assert train([*folders, "cost=wordnet", "cost.unknown_names=error"]) == 2
    assert "target xqxqxq: nothing is close" in capsys.readouterr().err


def test_a_cost_matrix_with_unknown_classes(
    tmp_path: Path, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(AmbiguousClassWarning, match=r"zebbra -> zebra\.n\.01"):
        assert show_cost([*folders, "cost=wordnet", f"hydra.run.dir={tmp_path}/out"]) == 0
    told = capsys.readouterr().out
    assert "no knowledge of 1 of 3 target classes: xqxqxq" in told
    assert "dataset.links=FILE" in told
    with open(tmp_path / "out" / "cost.csv", newline="", encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    for _, bear, mouse, unknown in rows:
        assert float(unknown) == pytest.approx((float(bear) + float(mouse)) / 2, abs=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("no_drawing")
def test_a_run_with_unknown_classes_names_them(
    tmp_path: Path, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["debug=smoke", "trunk.width=0.05", "dataset.image_size=32", "dataset.shots=1", "dataset.validation=1"]
    assert train([*folders, *small, "method=jtln", "trainer.progress_bar=false", f"hydra.run.dir={tmp_path}/out"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("unknown ")]
    assert len(lines) == 1
    assert "1 target class (xqxqxq)" in lines[0]
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert result["unknown_classes"] == {"source": [], "target": ["xqxqxq"]}
    assert "Classes without knowledge" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_dataset_of_the_users_own_folder_of_files(
    tmp_path: Path, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    file = (Path(__file__).parents[2] / "conf" / "dataset" / "folder.yaml").read_text(encoding="utf-8")
    (tmp_path / "conf" / "dataset" / "toys.yaml").write_text(file.replace("name: folder", "name: toys"))
    assert main(["dataset=toys", "--config-dir", f"{tmp_path}/conf", *folders[1:]]) == 0
    assert "toys: 5 source and 3 target classes" in capsys.readouterr().out
