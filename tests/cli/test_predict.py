"""``jtln predict`` and ``jtln export``: what a run learned, used on images outside it."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import without_drawing

from jtln.cli.export import main as export
from jtln.cli.predict import main as predict
from jtln.cli.train import main as train
from jtln.data.files import BadImage
from jtln.inference import load

pytestmark = [pytest.mark.usefixtures("in_a_folder_of_its_own"), pytest.mark.slow]

CLASSES = {"source": ("apple", "pear", "plum"), "target": ("elk", "fox, red", "gnu", "yak")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with PHOTOS/{source,target}/{train,test}/CLASS/*.png, oblong, and a run that learned them."""
    here, generator = tmp_path_factory.mktemp("trained"), np.random.default_rng(0)
    for side, classes in CLASSES.items():
        for label, name in enumerate(classes):
            for part, count in (("train", 8), ("test", 12)):
                (folder := here / "PHOTOS" / side / part / name).mkdir(parents=True)
                for k in range(count):
                    shape = (24, 30, 3) if k % 2 else (30, 24, 3)
                    colour = generator.normal((60 + 40 * label, 128, 200 - 40 * label), 40)
                    pixels = generator.normal(colour, 60, shape).clip(0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / f"{k:02d}.png")
    data = [f"dataset.{side}.root={here / 'PHOTOS' / side}" for side in CLASSES]
    sizes = ["dataset/protocol=small", "dataset.image_size=16", "dataset.stored_size=20", "dataset.fit=pad"]
    parts = ["dataset.validation=3", "dataset.source_validation=2", "dataset.shots=4"]
    quick = ["trunk.width=0.05", "trunk.dropout=0", "pretrain=none", "epochs=2", "steps_per_epoch=20", "cost=uniform"]
    quick += ["batch_size.source=12", "batch_size.target=8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JTLN_CACHE", str(here / "cache"))
        without_drawing(patch)
        call = ["dataset=folder", *data, *sizes, *parts, *quick, "test_views=ten_crop", "trainer.progress_bar=false"]
        assert train([*call, f"hydra.run.dir={here / 'run'}"]) == 0
    return here


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize("head", ["target", "source"])
def test_predictions_are_those_of_the_runs_test(
    trained: Path, head: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained / "run" / "checkpoints" / "best.ckpt", tmp_path / "taken.ckpt")  # all that is needed
    images = trained / "PHOTOS" / head / "test"
    assert predict([str(tmp_path / "taken.ckpt"), str(images), "--head", head, "--batch-size", "7"]) == 0
    found = rows(capsys.readouterr().out)
    assert [row["image"] for row in found] == sorted(map(str, images.glob("*/*.png")))
    right = [row["class"] == Path(row["image"]).parent.name for row in found]
    tested = json.loads((trained / "run" / "result.json").read_text())[head]["test"]
    assert len(right) == tested["n"]
    assert np.mean(right) == pytest.approx(tested["accuracy"])
    assert 1 / len(CLASSES[head]) < np.mean(right) < 1  # so that this says something


def test_several_classes_an_image_and_broken_ones(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = trained / "PHOTOS" / "target" / "test" / "yak" / "00.png"
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 and no more")
    call = [str(trained / "run"), str(tmp_path / "broken.jpg"), str(good), "--top", "9", "--output", "found.csv"]
    assert predict(call) == 1
    told = capsys.readouterr()
    assert told.out == "1 images: found.csv\n"
    assert f"left out {tmp_path / 'broken.jpg'}: " in told.err
    (row,) = rows((tmp_path / "found.csv").read_text())
    names = [row["class"], *(row[f"class_{k}"] for k in (2, 3, 4))]
    shares = [float(row[name]) for name in ("probability", "probability_2", "probability_3", "probability_4")]
    assert sorted(names) == sorted(CLASSES["target"])
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=2e-4)

    ((_, whole),) = load(trained / "run").predict([good])
    assert not isinstance(whole, BadImage)
    assert dict(zip(names, shares, strict=True)) == pytest.approx(
        dict(zip(CLASSES["target"], whole.tolist(), strict=True)), abs=6e-5
    )
    ((_, middle),) = load(trained / "run", views="none").predict([good])
    assert not isinstance(middle, BadImage)
    assert not torch.allclose(middle, whole, atol=1e-4)  # the ten views count


@pytest.mark.slow
def test_an_exported_network_is_in_a_file_with_its_classes(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it computes: tests/inference/test_export.py."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert export([str(trained / "run"), "--output", "new/net.onnx"]) == 0
    assert export([str(trained / "run" / "checkpoints" / "best.ckpt"), "--format", "torch", "--output", "net.pt2"]) == 0
    assert "images (N, 3, 20, 20) as bytes -> probabilities (N, 4): new/net.onnx" in capsys.readouterr().out
    extra = {"classes.json": ""}
    program = torch.export.load("net.pt2", extra_files=extra).module()
    session = onnxruntime.InferenceSession("new/net.onnx")
    assert json.loads(extra["classes.json"]) == list(CLASSES["target"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(CLASSES["target"])
    images = torch.randint(0, 256, (5, 3, 20, 20), dtype=torch.uint8)
    expected = load(trained / "run")(images).detach()
    torch.testing.assert_close(program(images), expected)
    (found,) = session.run(["probabilities"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_a_file_whose_name_is_no_text(trained: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(trained / "PHOTOS" / "target" / "test" / "yak" / "00.png", tmp_path / name)
    assert predict([str(trained / "run"), name, "--output", "found.csv"]) == 0
    assert (tmp_path / "found.csv").read_text().splitlines()[1].startswith("caf\\udce9.png,")


def test_a_trunk_that_is_not_here(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = torch.load(trained / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["model"]["trunk"]["_target_"] = "mine.trunk"
    torch.save(checkpoint, "other.ckpt")
    assert predict(["other.ckpt", str(trained / "PHOTOS"), "--trust"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: expected the trunk mine.trunk of other.ckpt in this folder or installed, ")
    assert len(told.splitlines()) == 1


MISTAKES: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "RUN nothing": (predict, "there is no nothing"),
    "RUN . --head both": (predict, "unknown head 'both': expected one of target, source"),
    "RUN . --top 0": (predict, "expected --top of 1 or more, but got 0"),
    "RUN . --views many": (predict, "unknown test_views 'many'"),
    "RUN . --device tpu9": (predict, "expected a device that this machine has for --device, but got tpu9"),
    "no/such/run .": (predict, "expected a run's folder or checkpoint, but there is no no/such/run"),
    ". .": (predict, "expected a run's folder, but there is no checkpoints/best.ckpt"),
    "file.txt .": (predict, "expected a checkpoint of a run, with a description of its network, in file.txt"),
    "RUN empty": (predict, "expected images in the folder empty, but there is none"),
    "RUN --format tflite": (export, "unknown --format 'tflite': expected one of onnx, torch"),
    "RUN --format torch --output net.bin": (export, "expected --output to end in .pt2"),
    "RUN --format torch --output /dev/full/x.pt2": (export, "/dev/full"),
    "other.ckpt": (export, "expected a checkpoint of a run, with a description of its network, in other.ckpt"),
}


@pytest.mark.parametrize("call", MISTAKES)
def test_a_mistake_is_one_line(call: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file.txt").write_text("no checkpoint")
    Path("empty").mkdir()
    torch.save({"state_dict": {}}, "other.ckpt")
    command, expected = MISTAKES[call]
    assert command([word.replace("RUN", str(trained / "run")) for word in call.split()]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert told.err.startswith("error: ")
    assert expected in told.err


def test_options_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(["--help"]) == 0
    assert "usage: jtln predict" in capsys.readouterr().out
    assert predict([]) == 2
    assert "the following arguments are required: RUN, IMAGE" in capsys.readouterr().err
