"""Studies and sweeps under Hydra's launchers, in processes of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from joblib.externals.loky import get_reusable_executor

from jtln.cli.train import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_a_folder_of_its_own")]

TINY = ["trunk.width=0.05", "pretrain.epochs=1", "pretrain.steps_per_epoch=1", "epochs=1", "steps_per_epoch=1"]
TINY += ["trainer=cpu", "trainer.progress_bar=false"]
STUDY = ["-m", "study=quick", *TINY, "study.only=[annealed_uniform]", "study.seeds=2", "study.workers=2"]


@pytest.fixture(autouse=True)
def own_workers() -> Iterator[None]:
    """Joblib's processes stay where they were started, in the folder and the environment of this test."""
    yield
    get_reusable_executor().shutdown(wait=True)


def results(pattern: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path().glob(pattern))]


@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=submitit_local"]])
def test_a_study_whose_one_job_fails(launcher: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The others are made, in other processes and from one trunk, and what is finished is not made again."""
    call = [*STUDY, *launcher, "study.shots=[1,100000]"]
    assert main(call) == 1
    told = capsys.readouterr().out
    assert f"launcher {'submitit_local' if launcher else 'joblib'}, 2 at a time" in told
    assert told.count("FAILED: ") == 2
    assert "failed: annealed_uniform, 100000 shots, seed 1: " in told
    made = results("studies/runs/*/result.json")
    assert [(each["shots"], each["seed"]) for each in made] == [(1, 0), (1, 1)]
    assert all(each["trunk"]["pretrained"]["cached"] for each in made)
    assert not list(Path().glob("studies/runs/*/report.html"))
    times = [path.stat().st_mtime_ns for path in sorted(Path().glob("studies/runs/*/result.json"))]
    assert main([*call[:-1], "study.shots=1"]) == 0
    assert times == [path.stat().st_mtime_ns for path in sorted(Path().glob("studies/runs/*/result.json"))]


@pytest.mark.parametrize(
    "launcher", [["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], ["hydra/launcher=submitit_local"]]
)
def test_a_sweep_whose_one_job_fails_in_another_process(
    launcher: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["debug=smoke", "trunk.width=0.05", "pretrain=none", "method=consecutive", "report=false"]
    subfolder = "hydra.sweep.subdir=rate/${optimizer.lr}"  # a folder in a folder
    assert main(["-m", *launcher, *small, "optimizer.lr=-1,0.01", "hydra.sweep.dir=out", subfolder]) == 1
    assert "failed: job rate/-1: " in capsys.readouterr().out
    assert [path.parent.name for path in Path("out").rglob("result.json")] == ["0.01"]
