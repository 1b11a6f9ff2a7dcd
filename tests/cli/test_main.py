"""The console script ``jtln``."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig

from jtln.__main__ import main
from jtln.cli.hydra_app import run_hydra


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["jtln", *arguments])
    return main()


def test_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--help") == 0
    assert "jtln cost" in capsys.readouterr().out
    assert call(monkeypatch, "trian") == 2
    assert "unknown command 'trian'" in capsys.readouterr().err


def test_train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "train", "seed=7", "--cfg", "job") == 0
    assert "seed: 7" in capsys.readouterr().out


def test_a_whole_configuration_is_resolved(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "train", "seed=7", "--cfg", "all", "--resolve") == 0
    printed = capsys.readouterr().out
    assert "  split_seed: 0" in printed
    assert "${" not in printed.replace("${hydra:help", "")


def test_one_mode_at_a_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "train", "-m", "seed=1,2", "--cfg", "job") == 2
    assert capsys.readouterr().err.startswith("error: expected one of these options at a time, but got -m and --cfg")


def test_a_process_that_lightning_starts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning repeats the arguments as training saw them, without the command."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert call(monkeypatch, "seed=7", "--cfg", "job") == 0
    assert "seed: 7" in capsys.readouterr().out


def test_cost(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call(monkeypatch, "cost", "cost=wordnet", f"hydra.run.dir={tmp_path / 'here'}") == 0
    out = capsys.readouterr().out
    assert "Sneaker" in out
    assert "Sandal 0.25" in out
    assert (tmp_path / "here" / "cost.csv").read_text(encoding="utf-8").splitlines()[0].endswith("Sneaker,Bag")
    assert (tmp_path / "here" / "cost.png").is_file()
    assert call(monkeypatch, "cost", "--help") == 0
    assert "usage: jtln cost" in capsys.readouterr().out
    assert call(monkeypatch, "classes", "--help") == 0
    assert "usage: jtln classes" in capsys.readouterr().out
    assert call(monkeypatch, "cost", "cost=centroid", f"hydra.run.dir={tmp_path}") == 2
    assert "read off trained features" in capsys.readouterr().err


def test_a_finished_run_is_not_resumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("jtln.training.run.run", lambda experiment: pytest.fail("resumed"))
    result = json.dumps({"target": {split: {"accuracy": 0.5} for split in ("test", "val")}, "seed": 3})
    (tmp_path / "overrides.yaml").write_text("- seed=3\n", encoding="utf-8")
    (tmp_path / "result.json").write_text(result, encoding="utf-8")
    assert call(monkeypatch, "train", f"resume={tmp_path}") == 2
    assert "is finished" in capsys.readouterr().err
    assert (tmp_path / "result.json").read_text(encoding="utf-8") == result


@pytest.mark.slow
def test_what_to_type_after_a_signal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def job(config: DictConfig) -> None:
        raise SystemExit(128 + 15)

    assert run_hydra(["seed=3", f"hydra.run.dir={tmp_path}"], job) == 143
    (told,) = capsys.readouterr().err.splitlines()
    assert told.endswith(f"python train.py resume={tmp_path}")


@pytest.mark.slow
def test_what_to_type_after_an_interruption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def job(config: DictConfig) -> None:
        raise KeyboardInterrupt

    given, run = tmp_path / "my conf", tmp_path / "run"
    given.mkdir()
    assert run_hydra(["seed=3", "--config-dir", str(given), f"hydra.run.dir={run}"], job) == 130
    (told,) = capsys.readouterr().err.splitlines()
    again = shlex.split(told)[3:]
    assert again == ["python", "train.py", "--config-dir", str(given), f"resume={run}"]
    seen: list[DictConfig] = []
    (run / "overrides.yaml").write_text("- seed=4\n", encoding="utf-8")
    assert run_hydra(again[2:], seen.append) == 0
    assert (seen[0].seed, seen[0].resume) == (4, str(run))
    assert run_hydra(["seed=3", f"hydra.run.dir={run}"], job) == 130
    (told,) = capsys.readouterr().err.splitlines()
    assert shlex.split(told)[3:] == ["python", "train.py", f"resume={run}"]
