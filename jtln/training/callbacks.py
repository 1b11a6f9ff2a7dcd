"""Callbacks of a run: progress, random streams, diagnostics of the transport loss, and the test's predictions."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from tqdm import tqdm

from jtln.distributed import gather_in_order
from jtln.errors import UserError
from jtln.module import HEADS, JTLN, not_finite
from jtln.reporting.predictions import Predictions, predicted_of

_WATCHED = {"train/loss": "loss", "val/target/accuracy": "target val", "val/source/accuracy": "source val"}


class SeedEpochs(Callback):
    """A seed for dropout and augmentation at each epoch, so that a resumed run draws as an uninterrupted one.

    Each process has its own stream.

    A checkpoint holds the state of the first process's stream. In several processes a run that was cut off within an
    epoch draws the rest of it from streams of its own.
    """

    def __init__(self) -> None:
        self._states: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Tensor]:
        cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
        return {"cpu": torch.get_rng_state(), **cuda}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self._states = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on in the middle of an epoch; at the start of one, :meth:`on_train_epoch_start` follows."""
        states, self._states = self._states, {}
        if states and trainer.world_size > 1:
            _seed(trainer, trainer.global_step)
        elif states:
            torch.set_rng_state(states["cpu"].cpu())
            if "cuda" in states and torch.cuda.is_available():
                torch.cuda.set_rng_state(states["cuda"].cpu())

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _seed(trainer)


def _seed(trainer: pl.Trainer, *more: int) -> None:
    seed = getattr(getattr(trainer, "datamodule", None), "seed", 0)
    entropy = [seed, trainer.current_epoch, trainer.global_rank, *more]
    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


class CheckFinite(Callback):
    """Ends a training that diverges, before anything of it is kept.

    The terms are looked at in each step on a CPU, and at the trainer's pace on other devices, which need not wait for
    them; the weights before each validation, and so before each checkpoint.

    Raises:
        UserError: a term or a weight is not finite.
    """

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        scaled = str(trainer.precision) == "16-mixed"  # steps that overflow are skipped
        if not isinstance(pl_module, JTLN) or scaled or not (loss.device.type == "cpu" or _is_logged(trainer)):
            return
        values = {name: value for name, value in pl_module.latest.items() if not name.startswith("features/")}
        if wrong := [f"{name} {value.item()}" for name, value in values.items() if not bool(value.isfinite().all())]:
            raise _diverged(", ".join(wrong), trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and (name := not_finite(pl_module.state_dict())) is not None:
            raise _diverged(f"the weights {name}", trainer)


def _diverged(what: str, trainer: pl.Trainer) -> UserError:
    rates = {group.get("name", ""): group["lr"] for group in trainer.optimizers[0].param_groups}
    named = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
    return UserError(
        f"expected finite losses and weights, but got {what} at step {trainer.global_step}: lower the learning rate "
        f"(optimizer.lr or pretrain.optimizer.lr; now {named}), or set trainer.gradient_clip_val"
    )


def _is_logged(trainer: pl.Trainer) -> bool:
    return (trainer.global_step + 1) % max(1, int(getattr(trainer, "log_every_n_steps", 1))) == 0


class TransportDiagnostics(Callback):
    """Logs, at the trainer's pace, whether the transport loss's solver converged and how strongly the loss pulls.

    ``train/ot_gradient_ratio`` is the norm of the weighted transport loss's gradient in the features over that of the
    cross-entropies.
    """

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        if not isinstance(pl_module, JTLN) or "ot" not in pl_module.latest or not _is_logged(trainer):
            return
        assert pl_module.transport is not None
        values = {f"train/{name}": value for name, value in pl_module.transport.readings().items()}
        features = [value for name, value in pl_module.latest.items() if name.startswith("features/")]
        if features[0].requires_grad:  # not where the trunk is frozen
            pulls = {kind: _pull(pl_module, names, features) for kind, names in _KINDS.items()}
            values["train/ot_gradient_ratio"] = pulls["ot"] / pulls["cross_entropies"].clamp_min(1e-12)
        pl_module.log_dict(values, sync_dist=True, batch_size=1)


_KINDS = {"ot": ("ot",), "cross_entropies": ("target_loss", "source_loss")}


def _pull(module: JTLN, names: tuple[str, ...], features: list[Tensor]) -> Tensor:
    """Norm of the gradient of these weighted terms in the features."""
    terms = [term for term in module.terms if term.name in names]
    parts = [term.weight * term.schedule(module.progress) * module.latest[term.name] for term in terms]
    if not parts:
        return features[0].new_zeros(())
    gradients = torch.autograd.grad(torch.stack(parts).sum(), features, retain_graph=True, allow_unused=True)
    return torch.linalg.vector_norm(torch.cat([each.flatten() for each in gradients if each is not None]))


class CollectPredictions(Callback):
    """Collects the prediction for each test image of the target, over all processes.

    Attributes:
        found: after a test, in every process, in the order of the test part; None before.
    """

    def __init__(self) -> None:
        self.found: Predictions | None = None
        self._batches: list[tuple[Tensor, Tensor]] = []

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batches = []

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if HEADS[dataloader_idx] == "target":
            self._batches.append(predicted_of(outputs, batch[1]))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        classes, figures = (gather_in_order(torch.cat(rows)).cpu() for rows in zip(*self._batches, strict=True))
        whole, real = classes.int().numpy(), figures.numpy()  # (N, 2) each
        self.found = Predictions(whole[:, 0], whole[:, 1], real[:, 0], real[:, 1])
        self._batches = []


class Progress(Callback):
    """One bar for a whole training, where Lightning's begin anew at each epoch.

    In a file or a pipe, which would keep every refresh, it prints a line for each validation instead.

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
