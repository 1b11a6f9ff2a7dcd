"""Files of a run folder and of the cache that are damaged: each command works, or ends in a message that names them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from runs import without_drawing

from jtln.cli.export import main as export
from jtln.cli.predict import main as predict
from jtln.cli.report import main as report
from jtln.cli.train import main

pytestmark = pytest.mark.slow

RUN = [
    *("dataset=folder", "dataset.source.root=source", "dataset.target.root=target", "dataset.image_size=32"),
    *("dataset.crop=null", "dataset.shots=2", "epochs=1", "steps_per_epoch=2", "pretrain.epochs=1", "trainer=cpu"),
    *("pretrain.steps_per_epoch=2", "cost=uniform", "trunk.width=0.05", "trunk.freeze=true", "method=consecutive"),
    *("head=linear", "trainer.progress_bar=false", "cache=cache", "num_workers=0"),
]
RESUME = ["resume=run", "epochs=2", "cache=cache"]
CLASSES = {"source": ("boat", "car", "cat", "dog"), "target": ("lion", "truck", "wolf")}


class Outcome(NamedTuple):
    """What a command ended with."""

    code: int
    printed: str


class Made(NamedTuple):
    """A finished run with its cache, and what comes of it while nothing is damaged."""

    folder: Path
    resumed: Any  # results on the target
    repeated: Any
    predicted: str


def call(command: Callable[[list[str]], int], *arguments: str) -> Outcome:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = command(list(arguments))
    assert "Traceback" not in out.getvalue()
    return Outcome(code, out.getvalue())


def target(folder: str) -> Any:
    return json.loads(Path(folder, "result.json").read_text(encoding="utf-8"))["target"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """The run is made once, in a folder that all cases copy."""
    folder = tmp_path_factory.mktemp("made")
    draw = np.random.default_rng(0)
    for side, names in CLASSES.items():
        for label, name in enumerate(names):
            (folder / side / name).mkdir(parents=True)
            for index in range(8):
                pixels = draw.integers(0, 60, (32, 32, 3)) + 60 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / side / name / f"{index}.png")
    with pytest.MonkeyPatch.context() as patch:
        without_drawing(patch)
        patch.chdir(folder)
        environment = dict(os.environ)
        assert call(main, *RUN, "hydra.run.dir=run").code == 0
        shutil.copytree("run", "kept/run")
        shutil.copytree("cache", "kept/cache")
        assert call(main, *RESUME).code == 0
        assert call(main, *RUN, "hydra.run.dir=again", "report=false").code == 0
        predicted = call(predict, "kept/run", "target").printed
        yield Made(folder, target("run"), target("again"), predicted)
        for variable in set(os.environ) - set(environment):
            del os.environ[variable]
        GlobalHydra.instance().clear()


@pytest.fixture(autouse=True)
def whole(made: Made) -> None:
    """Put run and cache back as they were."""
    for name in ("run", "cache", "again"):
        shutil.rmtree(name, ignore_errors=True)
    for name in ("run", "cache"):
        shutil.copytree(made.folder / "kept" / name, name)


def flipped(data: bytes) -> bytes:
    """Every seventh part of the file has one byte changed."""
    changed = bytearray(data)
    for place in range(len(changed) // 3, len(changed), max(1, len(changed) // 7)):
        changed[place] ^= 0xFF
    return bytes(changed)


def other_types(data: bytes) -> bytes:
    """Of a JSON file: numbers for texts, and texts for all else."""
    return json.dumps({k: 5 if isinstance(v, str) else "x" for k, v in json.loads(data).items()}).encode()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "flipped": flipped,
    "no UTF-8": lambda data: b"\xff\xfe\xe9" + data,
}
OF_KIND: dict[str, dict[str, Callable[[bytes], bytes]]] = {
    ".json": {"a list": lambda _: b"[1]", "no keys": lambda _: b"{}", "types": other_types},
    ".yaml": {"a list": lambda _: b"[1]", "other keys": lambda _: b"a: [1, 2]\n"},
    ".csv": {"header alone": lambda data: data.splitlines()[0] + b"\n", "other columns": lambda _: b"a,b\nc,d\n"},
}
TEXT = {name: DAMAGE[name] for name in ("truncated", "no UTF-8")}  # an empty text is read like a truncated one
BINARY = {name: DAMAGE[name] for name in ("truncated", "empty", "flipped")}  # a zeroed archive is none, as an empty one


def damages(name: str) -> dict[str, Callable[[bytes], bytes]]:
    """Those of a file that end in different branches of what reads it."""
    kind = Path(name).suffix
    return {**TEXT, **OF_KIND[kind]} if kind in OF_KIND else BINARY


READ_ON_RESUMPTION = ("config.yaml", "overrides.yaml", "result.json", "split.csv", "data.json", "metrics.csv")


@pytest.mark.parametrize("name", [*READ_ON_RESUMPTION, "checkpoints/last.ckpt", "checkpoints/best.ckpt"])
def test_a_run_goes_on_as_it_would_or_is_refused(name: str, made: Made) -> None:
    data = Path("run", name).read_bytes()
    wrong = []
    for damage, change in damages(name).items():
        shutil.rmtree("run")
        shutil.copytree(made.folder / "kept" / "run", "run")
        Path("run", name).write_bytes(change(data))
        code, printed = call(main, *RESUME)
        errors = [line for line in printed.splitlines() if line.startswith("error: ")]
        refused = code == 2 and len(errors) == 1
        if not refused and not (code == 0 and target("run") == made.resumed):
            wrong.append(f"{damage}: {code} {printed[-200:]}")
        if refused and name.endswith(".ckpt") and name not in errors[0]:
            wrong.append(f"{damage}: not named in {errors[0]}")
    assert wrong == []


@pytest.mark.parametrize("name", ["result.json", "predictions.npz", "config.yaml"])
def test_a_report_leaves_out_what_it_cannot_read(name: str, made: Made) -> None:
    shutil.copytree(made.folder / "kept" / "run", "several/whole")
    shutil.copytree(made.folder / "kept" / "run", "several/damaged")
    file = Path("several/damaged", name)
    data = file.read_bytes()
    for damage, change in damages(name).items():
        file.write_bytes(change(data))
        code, printed = call(report, "several", "--output", "page")
        assert code == 0, damage
        left_out = "left out, as its result cannot be read: several/damaged/result.json" in printed
        assert left_out == (name == "result.json"), damage
        assert call(report, "several/damaged", "--output", "page").code == (2 if left_out else 0)
    shutil.rmtree("several")


@pytest.mark.parametrize("damage", DAMAGE)
def test_no_network_is_made_of_a_damaged_checkpoint(damage: str, made: Made) -> None:
    path = Path("run/checkpoints/best.ckpt")
    data = path.read_bytes()
    path.write_bytes(DAMAGE[damage](data))
    for command, arguments in ((predict, ["target"]), (export, ["--format", "torch", "--output", "network.pt2"])):
        code, printed = call(command, "run", *arguments)
        assert code == 2
        assert printed.startswith("error: ")
        assert str(path) in printed
        assert len(printed.splitlines()) == 1
    assert not Path("network.pt2").exists()
    path.write_bytes(data)
    assert call(predict, "run", "target").printed == made.predicted


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_cache_changes_no_result(damage: str, made: Made) -> None:
    """All files of a kind at once, the kinds in turn, and then the same run again."""
    kinds = {path.suffix for path in Path("cache").rglob("*") if path.is_file()} - {".lock"}
    assert kinds >= {".u8", ".sums", ".json", ".pt", ".f32", ".txt"}
    for kind in sorted(kinds):
        shutil.rmtree("cache")
        shutil.copytree(made.folder / "kept" / "cache", "cache")
        for path in Path("cache").rglob(f"*{kind}"):
            path.write_bytes(DAMAGE[damage](path.read_bytes()))
        shutil.rmtree("again", ignore_errors=True)
        code, printed = call(main, *RUN, "hydra.run.dir=again", "report=false")
        assert code == 0, f"{kind}: {printed[-200:]}"
        assert target("again") == made.repeated, kind
