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

TINY = ["trunk.width=0.05", "epochs=1", "steps_per_epoch=1", "trainer=cpu", "trainer.progress_bar=false"]
PRETRAINED = ["pretrain.epochs=1", "pretrain.steps_per_epoch=1"]
STUDY = ["-m", "study=quick", *TINY, "study.only=[annealed_uniform]", "study.seeds=1", "study.workers=2"]


@pytest.fixture(autouse=True)
def own_workers() -> Iterator[None]:
    """Joblib's processes stay where they were started, in the folder and the environment of this test."""
    yield
    get_reusable_executor().shutdown(wait=True)


def results(pattern: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path().glob(pattern))]


@pytest.mark.parametrize("name", ["joblib", "submitit_local"])
def test_a_study_and_a_sweep_whose_one_job_fails(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are made, in other processes, and what is finished is not made again.

    With joblib, which a study takes itself, they start from one trunk; with submitit that would be one process more.
    """
    launcher = PRETRAINED if name == "joblib" else [f"hydra/launcher={name}", "pretrain=none"]
    call = [*STUDY, *launcher, "study.shots=[1,100000]"]
    assert main(call) == 1
    told = capsys.readouterr().out
    assert f"launcher {name}, 2 at a time" in told
    assert told.count("FAILED: ") == 1
    assert "failed: annealed_uniform, 100000 shots, seed 0: " in told
    (made,) = results("studies/runs/*/result.json")
    assert (made["shots"], made["seed"]) == (1, 0)
    assert (made["trunk"]["pretrained"] or {}).get("cached", False) == (name == "joblib")
    assert not list(Path().glob("studies/runs/*/report.html"))
    (path,) = Path().glob("studies/runs/*/result.json")
    time = path.stat().st_mtime_ns
    assert main([*call[:-1], "study.shots=1"]) == 0
    assert [each.stat().st_mtime_ns for each in Path().glob("studies/runs/*/result.json")] == [time]

    own = [f"hydra/launcher={name}", *(["hydra.launcher.n_jobs=2"] if name == "joblib" else [])]
    small = ["debug=smoke", "trunk.width=0.05", "pretrain=none", "method=consecutive", "report=false"]
    subfolder = "hydra.sweep.subdir=rate/${optimizer.lr}"  # a folder in a folder
    assert main(["-m", *own, *small, "optimizer.lr=-1,0.01", "hydra.sweep.dir=out", subfolder]) == 1
    assert "failed: job rate/-1: " in capsys.readouterr().out
    assert [path.parent.name for path in Path("out").rglob("result.json")] == ["0.01"]
