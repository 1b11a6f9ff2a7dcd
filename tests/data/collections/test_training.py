"""Every file of conf/dataset, composed and trained for two steps on a tiny copy of what it is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import layouts
import pytest
from collections_made import ALL, made, without_checksums
from omegaconf import OmegaConf

from jtln.cli.overrides import config_dir
from jtln.cli.train import main
from jtln.data.collections.base import classes_of

BUDGET = [
    "epochs=1",
    "steps_per_epoch=2",
    "pretrain=none",
    "trunk.width=0.05",
    "trunk.weights=none",
    "trainer=cpu",
    "trainer.progress_bar=false",
    "batch_size.source=8",
    "batch_size.target=4",
]
SMALL = ["dataset.image_size=32", "dataset.shots=1", "dataset.validation=1", "dataset.source_validation=1"]


@pytest.fixture(autouse=True)
def quietly(monkeypatch: pytest.MonkeyPatch, no_drawing: None, in_a_folder_of_its_own: None) -> None:
    without_checksums(monkeypatch)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("wanted to fetch something"))


def trained(folder: Path, *overrides: str) -> dict[str, Any]:
    assert main([*BUDGET, *overrides, f"hydra.run.dir={folder}"]) == 0
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*are left out.*")
@pytest.mark.parametrize("name", ALL)
def test_two_steps_on_a_tiny_copy(name: str, tmp_path: Path) -> None:
    written = made(name, tmp_path / "data", **({"count": 5} if "cifar" not in name else {}))
    classes = ["dataset.target_classes=0.5"] if name == "imagenet" else []  # a tenth of a few is none
    root = f"dataset.root={tmp_path / 'data'}"
    result = trained(tmp_path / "run", f"dataset={name}", *SMALL, root, *classes, "cost=uniform")
    assert result["synthetic_images"] is False
    assert result["steps"] == 2
    parts = {side: result[side]["test"]["n"] for side in ("source", "target")}
    if "test" in written:  # the official test images, each in one of the tasks
        tested = written["test"]
        if name == "aircraft":
            tested = [(path, kind) for path, kind in tested if kind != "DC-10"]
        assert sum(parts.values()) == len(tested)


@pytest.mark.slow
def test_caltech_256_needs_nothing_but_its_root(tmp_path: Path) -> None:
    """The shots, shares and sizes are the file's; only the budget and the image size are smaller."""
    _, kinds = classes_of("caltech256")
    layouts.caltech256(tmp_path / "data", kinds, count=8)
    result = trained(
        tmp_path / "run",
        "cost=wordnet",
        "dataset=caltech256",
        f"dataset.root={tmp_path / 'data'}",
        "dataset.image_size=32",
    )
    assert (result["cost"].partition(" ")[0], result["shots"]) == ("wordnet", 5)
    assert result["target"]["test"]["n"] == result["source"]["test"]["n"] == 128 * 2
    header = (tmp_path / "run" / "cost.csv").read_text(encoding="utf-8").splitlines()
    assert (len(header) - 1, header[0].count(",")) == (128, 128)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*are left out.*")
@pytest.mark.parametrize("source", ["imagenet", "places365"])
def test_a_source_from_elsewhere(source: str, tmp_path: Path) -> None:
    made("caltech256", tmp_path / "target", count=5)
    made(source, tmp_path / "source")
    result = trained(
        tmp_path / "run",
        "dataset=caltech256",
        f"dataset/source={source}",
        f"dataset.root={tmp_path / 'target'}",
        f"dataset.source.root={tmp_path / 'source'}",
        *SMALL,
        "cost=uniform",
    )
    assert result["target"]["test"]["n"] == len(ALL["caltech256"].kinds or ())
    assert result["source"]["test"]["n"] == 2 * len(ALL[source].kinds or ())


@pytest.mark.slow
def test_two_folders(tmp_path: Path) -> None:
    for side in ("source", "target"):
        for label, kind in enumerate(("cup", "jug", "pot")):
            for number in range(5):
                layouts.image(tmp_path / side / f"{side} {kind}" / f"{number}.jpg", label)
    roots = [f"dataset.{side}.root={tmp_path / side}" for side in ("source", "target")]
    result = trained(tmp_path / "run", "dataset=folder", *roots, *SMALL, "cost=uniform")
    assert result["target"]["test"]["n"] == result["source"]["test"]["n"] == 3
    half = ["dataset=folder", "dataset/source=same", roots[1], "dataset.target_classes=[target cup,target jug]"]
    assert main([*half, "--cfg", "job"]) == 0


FILES = sorted(path.stem for path in (config_dir() / "dataset").glob("*.yaml"))


@pytest.mark.parametrize("name", sorted(set(FILES) & set(ALL)))
def test_a_files_header_describes_its_collection(name: str) -> None:
    text = (config_dir() / "dataset" / f"{name}.yaml").read_text(encoding="utf-8")
    header = text[: text.index("defaults:")]
    assert all(line.startswith("# ") for line in header.splitlines())
    assert "From " in header or "Manual download only" in header  # where to get it
    assert "Layout: DIR/" in header
    assert "Split: " in header
    assert " GB" in header
    assert OmegaConf.to_container(OmegaConf.create(text))["name"].startswith(name)  # type: ignore[index,call-overload]


def test_there_is_a_file_for_every_collection() -> None:
    assert set(ALL) <= set(FILES)
