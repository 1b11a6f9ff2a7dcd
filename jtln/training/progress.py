"""What is seen while a network trains."""

from __future__ import annotations

import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from tqdm import tqdm

_WATCHED = {"train/loss": "loss", "val/target/accuracy": "target val", "val/source/accuracy": "source val"}


class Progress(Callback):
    """One bar for a whole training (Lightning's begin anew at each epoch); in a file or a pipe, which would keep every
    refresh, a line for each validation instead.

    Args:
        description: what stands before the bar.
        hidden: figures that mean nothing in this training.
    """

    def __init__(self, description: str, hidden: tuple[str, ...] = ()) -> None:
        self.description = description
        self.watched = {key: name for key, name in _WATCHED.items() if name not in hidden}
        self.bar: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and sys.stderr.isatty():
            steps = int(trainer.estimated_stepping_batches)
            self.bar = tqdm(total=steps, initial=trainer.global_step, desc=self.description, dynamic_ncols=True)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.bar is not None:
            self.bar.update(trainer.global_step - self.bar.n)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seen = trainer.callback_metrics
        figures = {name: f"{float(seen[key]):.3f}" for key, name in self.watched.items() if key in seen}
        if self.bar is not None:
            self.bar.set_postfix(figures)
        elif trainer.is_global_zero:
            text = ", ".join(f"{name} {value}" for name, value in figures.items())
            print(f"{self.description}: step {trainer.global_step}, {text}", flush=True)

    def on_train_end(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, *_: Any) -> None:
        self.on_train_end()
