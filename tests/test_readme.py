"""The README's commands and code are run as they stand there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

import jtln
from jtln.cli.train import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTOGRAMS = Path(jtln.__file__).parent / "assets" / "pictograms"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    calls = [part.strip() for line in lines for part in line.split("&&")]
    return [call for call in calls if call.startswith("python train.py") and "resume=" not in call]


def test_the_two_commands_of_the_first_screen() -> None:
    first_screen = README[:2500]
    assert "pip install -e . && python train.py" in first_screen
    assert 'pip install -e ".[dev]" && pytest' in first_screen


@pytest.mark.parametrize("command", commands())
def test_every_command_composes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = shlex.split(command)[2:]
    if "-m" in arguments:  # one job of it
        arguments = [argument.partition(",")[0] for argument in arguments if argument != "-m"]
    try:
        code = main([*arguments, "--cfg", "job"])
    except SystemExit as stop:  # --help
        code = int(stop.code or 0)
    assert code == 0
    assert capsys.readouterr().err == ""


def test_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = next(block for block in blocks("python") if "class MyPair" in block)
    (tmp_path / "mine.py").write_text(module, encoding="utf-8")
    config = tmp_path / "myconf" / "dataset"
    config.mkdir(parents=True)
    (config / "mine.yaml").write_text(next(b for b in blocks("yaml") if "mine.MyPair" in b), encoding="utf-8")
    for side, names in {"source": ("cat", "rabbit", "bus-stop"), "target": ("tiger", "ambulance")}.items():
        for name in names:
            shutil.copytree(PICTOGRAMS / name, tmp_path / "photos" / side / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("JTLN_CACHE", str(tmp_path / "cache"))
    short = ["epochs=1", "steps_per_epoch=2", "pretrain.epochs=1", "pretrain.steps_per_epoch=2", "dataset.shots=2"]
    run = [f"hydra.run.dir={tmp_path / 'run'}", "--config-dir", str(tmp_path / "myconf")]
    assert main(["dataset=mine", *short, *run]) == 0
    assert (tmp_path / "run" / "result.json").is_file()

    code = next(block for block in blocks("python") if "import load" in block)
    image = next((tmp_path / "photos" / "target" / "tiger").iterdir())
    code = code.replace("outputs/folder/2026-11-22_20-00-00", "run").replace("photos/1.jpg", str(image))
    capsys.readouterr()
    exec(compile(code.replace("photos/2.jpg", str(image)), "README.md", "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert first.split()[-1] in ("tiger", "ambulance")


def test_python_example() -> None:
    code = next(block for block in blocks("python") if "TransportLoss(WordNetCost" in block)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert isinstance(names["loss"].last.value, torch.Tensor)  # type: ignore[attr-defined]


def test_no_placeholder_is_left() -> None:
    assert "@@" not in README


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).is_file(), target
