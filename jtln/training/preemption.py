"""Save the training and end where a cluster takes the machine back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning.callbacks import Checkpoint

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class Preempted(SystemExit):
    """The exit after a signal, with the exit code of a process that the signal has ended: 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class SaveOnSignal(Checkpoint):
    """Writes ``last.ckpt`` after the step in which SIGTERM, SIGUSR1 or SIGUSR2 came, and passes the signal on.

    It goes to the handler that was there before the training (submitit's, which requeues the job); where that returns,
    the training goes on. Without a handler the process ends by :class:`Preempted`. In several processes the signal of
    one counts for all. As a ``Checkpoint`` it is called after the callbacks that follow the weights.

    Args:
        path: of the checkpoint.
        requeue: whether SIGUSR1 and SIGUSR2, which Slurm sends ahead of a time limit, put a Slurm job back into its
            queue.

    Raises:
        Preempted: the training is saved, and nothing else handles the signal.
    """

    def __init__(self, path: Path, requeue: bool = False) -> None:
        self.path, self.requeue = path, requeue
        self._before: dict[int, Any] = {}
        self._came: int | None = None
        self._saved: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}  # before Lightning puts its own

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._came = self._saved = None
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                if before is not signal.SIG_IGN:
                    signal.signal(number, self._note)  # Lightning puts back those from before when it ends

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = number

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop
        if loop.epoch_loop.batch_progress.is_last_batch or loop._should_accumulate():
            return  # the epoch's end is saved anyway
        if (number := self._agreed(trainer)) is not None:
            trainer.save_checkpoint(self.path)
            self._saved = number

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._saved is not None:  # and what the step has logged is written
            self._pass_on(self._saved, trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step and self.path.is_file() and (number := self._agreed(trainer)) is not None:
            self._pass_on(number, trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (number := self._agreed(trainer)) is not None:
            self._pass_on(number, trainer)

    def _agreed(self, trainer: pl.Trainer) -> int | None:
        """Return the number of a signal that came to any process."""
        if trainer.world_size == 1:
            return self._came
        came = bool(trainer.strategy.reduce_boolean_decision(self._came is not None, all=False))
        return (self._came or signal.SIGTERM) if came else None

    def _pass_on(self, number: int, trainer: pl.Trainer) -> None:
        self._came = self._saved = None
        if trainer.is_global_zero:
            name, steps = signal.Signals(number).name, trainer.global_step
            print(f"{name}: saved {self.path} after {steps} steps", file=sys.stderr, flush=True)
        if callable(handler := self._before.get(number)):
            handler(number, None)
            return
        if self.requeue and number != signal.SIGTERM and trainer.is_global_zero and SLURMEnvironment.detect():
            requeue_slurm_job()
        raise Preempted(number)


def requeue_slurm_job() -> None:
    """Put this process's Slurm job back into the queue."""
    job = os.environ["SLURM_JOB_ID"]
    if (array := os.environ.get("SLURM_ARRAY_JOB_ID")) is not None:
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    done = subprocess.run(["scontrol", "requeue", job], check=False)
    print(f"scontrol requeue {job}: exit code {done.returncode}", file=sys.stderr, flush=True)
