"""One job of a study: what it resumes, what it leaves alone, and how its process shares the machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from jtln.cli.launcher import _shares
from jtln.cli.study_job import make
from jtln.errors import UserError
from jtln.study.launch import LOCKED


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a Hydra job, that of the run with the settings "hash"."""
    path = tmp_path / "row_1-shot_seed-0_hash"
    path.mkdir()
    hydra = {"runtime": {"output_dir": str(path), "config_sources": []}, "overrides": {"task": ["seed=0"], "hydra": []}}
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create(hydra))
    return path


def config(**more: Any) -> DictConfig:
    return OmegaConf.create({"trainer": {"devices": 1}, "pretrain": {"source": False}, "resume": None, **more})


@pytest.fixture
def trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was resumed, for each run that was made: each writes its result and its checkpoints."""
    calls: list[Any] = []

    def train(config: DictConfig) -> None:
        calls.append(config.resume)
        figures = {"accuracy": 0.5, "n": 4}
        result = {"target": {"test": figures, "val": figures}, "seed": 0, "settings": {"run": "hash"}, "seconds": 1.0}
        (folder / "result.json").write_text(json.dumps(result))
        begin(folder)

    monkeypatch.setattr("jtln.cli.run.train", train)
    return calls


def begin(folder: Path) -> None:
    (folder / "checkpoints").mkdir(exist_ok=True)
    for name in ("overrides.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        (folder / name).write_text("[]")


def test_a_run_is_made_once(folder: Path, trained: list[Any]) -> None:
    assert make(config()) is None
    assert [path.name for path in folder.glob("checkpoints/*")] == ["best.ckpt"]  # what resumes is of no more use
    assert make(config()) is None
    assert trained == [None]


def test_an_interrupted_run_is_resumed(folder: Path, trained: list[Any]) -> None:
    begin(folder)
    assert make(config()) is None
    assert trained == [str(folder)]


def test_a_run_that_cannot_be_resumed_is_begun_anew(
    folder: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(folder)
    (folder / "checkpoints" / "last.ckpt").write_text("half of one")
    from jtln.cli import run

    usual: Callable[[DictConfig], None] = run.train

    def train(config: DictConfig) -> None:
        if config.resume is not None:
            raise UserError("expected a whole checkpoint")
        assert not (folder / "checkpoints").exists()
        usual(config)

    monkeypatch.setattr("jtln.cli.run.train", train)
    assert make(config()) is None
    assert trained == [None]


def test_a_run_that_another_process_makes_is_left_alone(folder: Path, trained: list[Any]) -> None:
    hold = f"from pathlib import Path; from jtln.study.ledger import held\nwith held(Path({str(folder)!r})): "
    hold += "print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline()
        assert make(config()) == LOCKED
        other.kill()
    assert trained == []
    assert make(config()) is None
    assert trained == [None]


@pytest.mark.parametrize(
    ("error", "told"),
    [(UserError("expected 1 shot"), "expected 1 shot"), (ZeroDivisionError("by zero"), "ZeroDivisionError('by zero')")],
)
def test_a_failure_is_one_line_and_its_log(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def train(config: DictConfig) -> None:
        raise error

    monkeypatch.setattr("jtln.cli.run.train", train)
    with pytest.raises(RuntimeError) as raised:
        make(config())
    assert str(raised.value) == f"{told} (see {folder}/log.txt)"
    assert (folder / "log.txt").is_file()


WORKER = """
import os, sys, time
from pathlib import Path
from jtln.cli.study_job import Machine
Machine(Path(sys.argv[1]), 2, 3, ("4", "7")).join()
print(os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"], flush=True)
time.sleep(600)
"""
MAIN = f"""
import subprocess, sys
from jtln.cli.launcher import _machine_folder
call = [sys.executable, "-c", {WORKER!r}, str(_machine_folder())]
workers = [subprocess.Popen(call, stdout=subprocess.PIPE, text=True) for _ in range(2)]
print([worker.pid for worker in workers], sorted(worker.stdout.readline() for worker in workers), flush=True)
for number in (0, 1):
    workers[0].wait()
"""


def test_workers_take_a_gpu_each_and_end_with_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that one is killed, too."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with subprocess.Popen([sys.executable, "-c", MAIN], stdout=subprocess.PIPE, text=True) as main:
        assert main.stdout is not None
        pids, _, shares = main.stdout.readline().partition("] ")
        assert shares.strip() == str(["4 3\n", "7 3\n"])
        main.send_signal(signal.SIGKILL)
        main.wait()
        main.stdout.read()  # until the workers, which have inherited it from nobody, and the main process are gone
    for pid in json.loads(pids + "]"):
        wait_for_the_end(pid)


def wait_for_the_end(pid: int) -> None:
    from time import monotonic, sleep

    until = monotonic() + 600  # on a busy machine
    while monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        sleep(0.1)
    raise AssertionError(pid)


def test_shares_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jtln.cli.launcher._cores", lambda: 8)
    monkeypatch.setattr("jtln.cli.launcher._gpus", tuple)
    monkeypatch.setattr("jtln.cli.launcher._is_apple", lambda: False)
    assert _shares("auto", "auto", 1) == (8, ())
    assert _shares(3, "cpu", 1) == (3, ())
    monkeypatch.setattr("jtln.cli.launcher._gpus", lambda: ("2", "5"))
    assert _shares("auto", "auto", 1) == (2, ("2", "5"))
    assert _shares(4, "gpu", 1) == (4, ("2", "5"))
    assert _shares("auto", "auto", 4) == _shares(3, "gpu", "auto") == (1, ())
    assert _shares("auto", "cpu", 1) == (8, ())
    for wrong in (-1, 0, "many", 1.5, True):
        with pytest.raises(UserError, match=r"study\.workers"):
            _shares(wrong, "auto", 1)
