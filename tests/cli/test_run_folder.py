"""A run's folder is its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filelock import FileLock

from jtln.cli.run_folder import new_sweep_folder
from jtln.cli.train import main

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own", "no_drawing")

RUN = ["debug=smoke", "trunk.width=0.05", "trainer.progress_bar=false", "method=consecutive", "pretrain=none"]


@pytest.mark.slow
def test_runs_of_the_same_time_have_a_folder_each(tmp_path: Path) -> None:
    """The year in place of the second."""
    for seed in (1, 2, 3):
        assert main([*RUN, f"seed={seed}", "hydra.run.dir=out/${now:%Y}"]) == 0
    folders = sorted((tmp_path / "out").iterdir())
    assert [path.name[4:] for path in folders] == ["", "-2", "-3"]
    assert [json.loads((path / "result.json").read_text())["seed"] for path in folders] == [1, 2, 3]
    assert not any((path / ".lock").exists() for path in folders)


@pytest.mark.slow
def test_a_folder_in_which_a_run_is_under_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    with FileLock(tmp_path / "mine" / ".lock"):
        assert main([*RUN, "hydra.run.dir=mine"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: expected a folder that no other run writes into, but one is under way in ")
    assert told.count("\n") == 1
    assert [path.name for path in (tmp_path / "mine").iterdir() if path.name != ".lock"] == []
    assert main([*RUN, "hydra.run.dir=mine"]) == 0


@pytest.mark.slow
def test_a_run_is_not_begun_anew_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With resume=auto the same command starts it, goes on with it, and leaves it alone once it is finished."""
    here = [*RUN, "report=false", "hydra.run.dir=mine"]
    assert main([*here, "resume=auto"]) == 0
    capsys.readouterr()
    result = (tmp_path / "mine" / "result.json").read_bytes()
    assert main(here) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"error: expected a folder without a run for hydra.run.dir, but there is one in {tmp_path}")
    assert "resume=auto" in told
    assert main([*here, "resume=auto"]) == 0
    assert (tmp_path / "mine" / "result.json").read_bytes() == result
    assert main([*here, "resume=auto", "epochs=3", "debug.batch_size=8"]) == 0
    (tmp_path / "mine" / "result.json").unlink()  # killed after the last epoch
    capsys.readouterr()
    assert main([*here, "resume=auto"]) == 0
    assert "resumed    after 2 steps" in capsys.readouterr().out
    assert main([*here, "resume=auto", "seed=1"]) == 2
    assert "seed (then 0, now 1)" in capsys.readouterr().err
    assert main([*RUN, "resume=auto"]) == 2
    assert "give hydra.run.dir=DIR" in capsys.readouterr().err


@pytest.mark.slow
def test_the_runs_of_a_sweep_are_not_begun_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["-m", *RUN, "report=false", "hydra.sweep.dir=out"]
    assert main([*call, "seed=0", "resume=auto"]) == 0
    time = (tmp_path / "out" / "0" / "result.json").stat().st_mtime_ns
    assert main([*call, "seed=0,1"]) == 2
    assert "for hydra.sweep.dir, but there is one in out/0: give resume=auto" in capsys.readouterr().err
    assert main([*call, "seed=0,1", "resume=auto"]) == 0
    assert (tmp_path / "out" / "0" / "result.json").stat().st_mtime_ns == time
    assert json.loads((tmp_path / "out" / "1" / "result.json").read_text())["seed"] == 1


def test_without_locks_a_fault_is_not_blamed_on_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(1, "no locks here", "mine/.lock")

    def build(config: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(FileLock, "acquire", fails)
    monkeypatch.setattr("jtln.cli.build.build", build)
    with pytest.raises(ZeroDivisionError):
        main([*RUN, "hydra.run.dir=mine"])
    assert "no locks here" not in capsys.readouterr().err


def test_multiruns_of_the_same_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda form: "now")
    assert [str(new_sweep_folder()) for _ in range(3)] == ["multirun/now", "multirun/now-2", "multirun/now-3"]


def test_a_multirun_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    assert main(["-m", *RUN, "seed=1,2", "nonsense=1"]) == 2
    assert list((tmp_path / "multirun").iterdir()) == []
