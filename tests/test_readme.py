"""The README's commands and code are run as they stand there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import jtln
from jtln.cli.overrides import config_dir
from jtln.cli.train import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
PICTOGRAMS = Path(jtln.__file__).parent / "assets" / "pictograms"


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    calls = [part.strip() for line in lines for part in line.split("&&")]
    return [call for call in calls if call.startswith("python train.py") and "resume=" not in call]


def studies() -> list[str]:
    """The commands that made the tables; a line that ends in \\ goes on in the next."""
    text = re.sub(r" \\\n +", " ", README)
    return re.findall(r"^    (python train\.py -m study=.*)$", text, re.MULTILINE)


def overrides() -> list[str]:
    """The overrides that stand in the prose and its tables, without those with a place for a value of the user's."""
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    spans = [span for span in re.findall(r"`([^`\n]+)`", prose) if re.match(r"[a-z_][\w./@]*=\S", span)]
    return list(dict.fromkeys(span for span in spans if not re.search(r"[A-Z]{3}", span)))


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


@pytest.mark.parametrize("command", studies())
def test_every_command_of_a_table_names_rows_that_there_are(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [argument for argument in shlex.split(command)[2:] if argument != "-m"]
    assert main([*arguments, "--cfg", "job"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    study = OmegaConf.create(out).study
    assert set(study.only or ()) <= set(study.rows)


def related(one: str, other: str) -> bool:
    """Tell whether one key is the other or above it, so that one may take the other away."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def test_every_override_in_the_prose_composes() -> None:
    batches: list[dict[str, str]] = []  # overrides by their keys, many at a time: to compose takes a second
    for given in overrides():
        more = {each.partition("=")[0]: each for each in shlex.split(given)}
        batch = next((batch for batch in batches if not any(related(a, b) for a in batch for b in more)), None)
        if batch is None:
            batches.append(more)
        else:
            batch |= more
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        for batch in batches:
            compose("train", ["study=few_shot", "dataset=folder", *batch.values()])  # raises for an unknown key


def test_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = next(block for block in blocks("python", CONTRIBUTING) if "class MyPair" in block)
    (tmp_path / "mine.py").write_text(module, encoding="utf-8")
    config = tmp_path / "myconf" / "dataset"
    config.mkdir(parents=True)
    (config / "mine.yaml").write_text(
        next(b for b in blocks("yaml", CONTRIBUTING) if "mine.MyPair" in b), encoding="utf-8"
    )
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
    for text, folder in ((README, ROOT), (CONTRIBUTING, ROOT / ".github")):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("http") or (folder / target).is_file(), target


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= 12_000
