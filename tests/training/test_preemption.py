"""A training that a cluster ends, and the same one gone on with: the numbers are those of one that was left alone."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from runs import column
from tiny import CPU, TinySpec, tiny_trunk

from jtln.costs import UniformCost
from jtln.heads import Linear
from jtln.methods import Method
from jtln.module import Optimization
from jtln.training.experiment import Experiment
from jtln.training.preemption import Preempted
from jtln.training.run import run
from jtln.training.trainer import Budget, TrainerSettings
from jtln.transport import TransportSettings

pytestmark = pytest.mark.slow

EVERY_STEP = TrainerSettings({**CPU.options, "log_every_n_steps": 1}, progress_bar=False)


def experiment(folder: Path, **changes: Any) -> Experiment:
    """Return a run of 3 epochs of 4 steps, with dropout, augmentation and momentum."""
    made = Experiment(
        method=Method("joint", lambda_source=1.0),
        head=Linear(),
        cost=UniformCost(),
        transport=TransportSettings(),
        spec=TinySpec(),
        make_trunk=partial(tiny_trunk, 0.2),
        budget=Budget(3, 4, 8, 6),
        optimization=Optimization(partial(torch.optim.SGD, lr=0.1, momentum=0.9)),
        trainer=EVERY_STEP,
        folder=folder,
        dataset="tiny",
        cost_name="uniform",
        report=False,
    )
    return replace(made, **changes)


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, signal.Signals]]:
    """Return a dictionary: after these steps this process gets these signals."""
    due: dict[int, signal.Signals] = {}

    class Killing(CSVLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            super().log_metrics(metrics, step)
            if "train/loss" in metrics and step is not None and step + 1 in due:
                os.kill(os.getpid(), due.pop(step + 1))

    monkeypatch.setattr("jtln.training.trainer.CSVLogger", Killing)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    yield due
    for number, handler in before.items():
        signal.signal(number, handler)


def kept(folder: Path) -> tuple[int, dict[str, torch.Tensor]]:
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return last["global_step"], last["state_dict"]


@pytest.mark.parametrize(
    ("after", "number", "saved"),
    [(5, signal.SIGTERM, 6), (6, signal.SIGUSR1, 7), (7, signal.SIGUSR2, 8), (11, signal.SIGTERM, 12)],
    ids=["in an epoch", "its last step but one", "at its end", "in the last step"],
)
def test_goes_on_as_if_nothing_had_happened(
    after: int, number: signal.Signals, saved: int, signalled: dict[int, signal.Signals], tmp_path: Path
) -> None:
    whole = run(experiment(tmp_path / "whole"))
    signalled[after] = number
    with pytest.raises(Preempted) as ended:
        run(experiment(tmp_path / "cut"))
    assert ended.value.code == 128 + number
    assert kept(tmp_path / "cut")[0] == saved
    assert not (tmp_path / "cut" / "result.json").exists()
    assert signal.getsignal(number) == signal.SIG_DFL
    again = run(experiment(tmp_path / "cut", resume=True))
    assert again["target"] == whole["target"]
    curve = column(tmp_path / "whole", "train/loss")
    assert sorted(curve) == list(range(12))
    assert column(tmp_path / "cut", "train/loss") == curve
    weights, others = kept(tmp_path / "whole")[1], kept(tmp_path / "cut")[1]
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


def test_accumulated_gradients_are_not_lost(signalled: dict[int, signal.Signals], tmp_path: Path) -> None:
    settings = TrainerSettings({**EVERY_STEP.options, "accumulate_grad_batches": 2}, progress_bar=False)
    run(experiment(tmp_path / "whole", trainer=settings))
    signalled[3] = signal.SIGTERM
    with pytest.raises(Preempted):
        run(experiment(tmp_path / "cut", trainer=settings))
    run(experiment(tmp_path / "cut", trainer=settings, resume=True))
    (steps, weights), (same, others) = kept(tmp_path / "whole"), kept(tmp_path / "cut")
    assert steps == same == 6
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


def test_submitits_handler_is_called_once_the_training_is_saved(
    signalled: dict[int, signal.Signals], tmp_path: Path
) -> None:
    """One that only notes SIGTERM, as submitit's does, lets the training go on."""
    seen: list[tuple[int, int]] = []

    def requeues(number: int, frame: object) -> None:
        seen.append((number, kept(tmp_path)[0]))
        if number == signal.SIGUSR2:
            raise SystemExit(-1)

    signal.signal(signal.SIGTERM, requeues)
    signal.signal(signal.SIGUSR2, requeues)
    signalled.update({1: signal.SIGTERM, 5: signal.SIGUSR2})
    with pytest.raises(SystemExit) as ended:
        run(experiment(tmp_path))
    assert (ended.value.code, seen) == (-1, [(signal.SIGTERM, 2), (signal.SIGUSR2, 6)])
    assert signal.getsignal(signal.SIGUSR2) is requeues


@pytest.mark.parametrize(("number", "calls"), [(signal.SIGUSR1, ["requeue 7_3"]), (signal.SIGTERM, [])])
def test_a_slurm_job_that_runs_out_of_time_is_requeued(
    number: signal.Signals,
    calls: list[str],
    signalled: dict[int, signal.Signals],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slurm itself requeues a job that it ends for another, by SIGTERM."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/calls"\n', encoding="utf-8")
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    slurm = {"JOB_ID": "9", "ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "3", "NTASKS": "1", "JOB_NAME": "mine", "PROCID": "0"}
    for name, value in {**slurm, "LOCALID": "0", "NODELIST": "localhost", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    signalled[5] = number
    with pytest.raises(Preempted):
        run(experiment(tmp_path / "run", requeue=True))
    assert kept(tmp_path / "run")[0] == 6
    assert not list((tmp_path / "run").rglob("hpc_ckpt*"))
    found = tmp_path / "calls"
    assert (found.read_text(encoding="utf-8").splitlines() if found.exists() else []) == calls
