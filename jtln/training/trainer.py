"""One training, from a module and its data to the checkpoint that validation chose."""

from __future__ import annotations

import csv
import logging
import math
import os
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, WeightAveraging
from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from jtln.data.loaders import PairData
from jtln.data.pairs import Pair
from jtln.data.transforms import Augment, CentreCrop, ToFloat, Views
from jtln.errors import UserError
from jtln.module import HEADS, JTLN
from jtln.storage import read_torch, save_torch
from jtln.training.callbacks import CheckFinite, Progress, SeedEpochs, TransportDiagnostics
from jtln.training.preemption import Preempted, SaveOnSignal
from jtln.trunks.base import Trunk

Metrics = dict[str, dict[str, dict[str, float] | None]]  # head -> split -> metric
_BUDGET = "set epochs and steps_per_epoch, and pretrain.epochs and pretrain.steps_per_epoch"
REFUSED = {  # options of pl.Trainer that a run sets itself, for its phases differ in them
    "fast_dev_run": "debug=smoke runs a step or two of everything on synthetic images",
    "max_epochs": _BUDGET,
    "min_epochs": _BUDGET,
    "max_steps": _BUDGET,
    "min_steps": _BUDGET,
    "limit_train_batches": _BUDGET,
    "limit_val_batches": "dataset.validation and dataset.source_validation say how many images validate",
    "limit_test_batches": "dataset.test says how many images are tested",
    "limit_predict_batches": "jtln predict RUN IMAGES predicts",
    "val_check_interval": "an epoch is steps_per_epoch steps, and is validated at its end",
    "check_val_every_n_epoch": "an epoch is steps_per_epoch steps, and is validated at its end",
    "overfit_batches": "dataset.shots=1 with augment=false trains on as few images",
    "num_sanity_val_steps": "debug=smoke tries every step of a run",
    "logger": "choose them with logger=csv, wandb, tensorboard, mlflow, or several: logger=[wandb,tensorboard]",
    "callbacks": "choose them with callbacks=early_stopping, or several: callbacks=[early_stopping,lr_monitor]",
    "default_root_dir": "hydra.run.dir=DIR names the folder of the run",
    "enable_checkpointing": "a run keeps its best and its last checkpoint",
    "enable_progress_bar": "set trainer.progress_bar",
    "enable_model_summary": "a run prints its trunk, objective and head",
    "use_distributed_sampler": "the loaders share out batches among the processes themselves",
    "barebones": "a run keeps checkpoints and logs; debug=smoke is quick",
    "compile": "torch.compile is not used; trainer.precision=bf16-mixed and trunk.freeze=true are quick",
    "reload_dataloaders_every_n_epochs": "the loaders go on from epoch to epoch",
}

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")


@dataclass(frozen=True)
class Budget:
    """The length of a training, and its batches.

    Attributes:
        epochs: how often it is validated; an epoch is ``steps_per_epoch`` steps, not a pass over a data set.
        steps_per_epoch: steps from one validation to the next.
        source_batch_size, target_batch_size: images of each task in a step, over all processes together.
    """

    epochs: int
    steps_per_epoch: int
    source_batch_size: int
    target_batch_size: int

    @property
    def steps(self) -> int:
        """The number of steps of the whole training."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class TrainerSettings:
    """Options of every ``pl.Trainer``: accelerator, devices, strategy, precision and the like.

    Attributes:
        options: of ``pl.Trainer``, but for those in REFUSED.
        progress_bar: whether a bar is shown.

    Raises:
        UserError: an option is one that a run sets itself, or a value cannot work.
    """

    options: dict[str, Any] = field(default_factory=dict)
    progress_bar: bool = True

    def __post_init__(self) -> None:
        for key, instead in REFUSED.items():
            if key in self.options:
                raise UserError(f"expected no {key}, but got {self.options[key]!r}: {instead}")
        if (precision := str(self.options.get("precision"))) in ("64-true", "bf16-true", "16-true", "64", "16"):
            raise UserError(f"expected precision 32-true, bf16-mixed or 16-mixed, but got {precision}")
        strategy = self.options.get("strategy", "auto")
        if (
            isinstance(strategy, str) and strategy not in STRATEGIES
        ):  # a run goes on after the training, in all processes
            raise UserError(f"expected strategy to be one of {', '.join(STRATEGIES)}, but got {strategy}")
        clip = self.options.get("gradient_clip_val")
        if clip is not None and (isinstance(clip, bool) or not (isinstance(clip, int | float) and 0 < clip < math.inf)):
            raise UserError(f"expected gradient_clip_val to be a number > 0, or null, but got {clip!r}")
        for key in ("accumulate_grad_batches", "log_every_n_steps", "num_nodes"):
            count = self.options.get(key, 1)
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise UserError(f"expected {key} to be a whole number >= 1, but got {count!r}")
        for key in ("sync_batchnorm", "benchmark", "detect_anomaly", "inference_mode", "barebones"):
            if self.options.get(key) not in (True, False, None) or type(self.options.get(key)) in (int, float):
                raise UserError(f"expected {key} to be true or false, but got {self.options[key]!r}")
        if isinstance(self.options.get("devices"), bool):
            raise UserError(f"expected devices to be a whole number, or auto, but got {self.options['devices']}")


def pair_data(
    pair: Pair,
    trunk: Trunk,
    budget: Budget,
    *,
    seed: int,
    augment: Augment | None,
    eval_batch_size: int = 256,
    num_workers: int | None = None,
    test_views: str = "none",
) -> PairData:
    """Return the loaders of a pair for a trunk: normalised as the trunk wants it, augmented in training.

    Where the sets' images are larger than the network's, evaluation takes the square in their middle, or the
    ``test_views`` of them: "none", "flip" or "ten_crop".
    """
    to_float, middle = ToFloat(trunk.mean, trunk.std), CentreCrop(pair.image_size)
    return PairData(
        pair,
        source_batch_size=budget.source_batch_size,
        target_batch_size=budget.target_batch_size,
        steps_per_epoch=budget.steps_per_epoch,
        eval_batch_size=eval_batch_size,
        seed=seed,
        num_workers=num_workers,
        transform_train=torch.nn.Sequential(middle if augment is None else augment, to_float),
        transform_eval=torch.nn.Sequential(middle, to_float),
        views=None if test_views == "none" else Views(test_views, pair.image_size),
    )


def make_trainer(
    settings: TrainerSettings,
    budget: Budget,
    folder: Path,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    description: str = "training",
    keep_checkpoints: bool = True,
    hidden: tuple[str, ...] = (),
    validates: bool = True,
    requeue: bool = False,
) -> pl.Trainer:
    """Return a Trainer that keeps the checkpoint with the best target validation accuracy, and the last one.

    Args:
        settings: the user's options.
        budget: the number of epochs and steps.
        folder: gets the checkpoints.
        loggers: of the metrics.
        callbacks: beside those that every training has.
        description: stands before the progress bar.
        keep_checkpoints: False writes no checkpoint.
        hidden: figures that the progress bar leaves out.
        validates: whether there are validation images; without any, the weights of the last epoch are the best.
        requeue: whether a Slurm job that is warned of its time limit is put back into the queue.
    """
    _quiet_lightning()
    extra: list[Callback] = [
        SeedEpochs(),
        CheckFinite(),
        TransportDiagnostics(),
        *([Progress(description, hidden)] if settings.progress_bar else []),
    ]
    if keep_checkpoints:
        averages = any(isinstance(each, WeightAveraging) for each in callbacks)
        extra.extend(
            [*best_and_last(folder, validates, averages), SaveOnSignal(folder / "checkpoints" / "last.ckpt", requeue)]
        )
    options: dict[str, Any] = {
        "log_every_n_steps": max(1, min(10, budget.steps_per_epoch)),
        **settings.options,
        **({} if validates else {"limit_val_batches": 0}),
    }
    try:
        return pl.Trainer(
            max_epochs=budget.epochs,
            logger=list(loggers) or False,
            callbacks=[*extra, *callbacks],
            default_root_dir=folder,
            enable_checkpointing=keep_checkpoints,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the loaders share out global batches among the processes themselves
            plugins=[WholeCheckpoints(), *listed(options.pop("plugins", None))],
            **options,
        )
    except (MisconfigurationException, ImportError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"expected values that pytorch_lightning.Trainer takes in trainer.*, but got: {error}"
        ) from error


def check_trainer(settings: TrainerSettings, budget: Budget, folder: Path) -> None:
    """Raise a UserError for options that Lightning refuses, before anything is computed; it has no check of its own."""
    make_trainer(settings, budget, folder, keep_checkpoints=False)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces, and renames it.

    Lightning writes it to the temporary folder and copies it from there, which a full disk cuts off.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_torch(checkpoint, Path(path))


def listed(value: Any) -> list[Any]:
    """Return a list as it is, nothing for None, and a single value as a list of one."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def best_and_last(folder: Path, validates: bool = True, averages: bool = False) -> list[ModelCheckpoint]:
    """Return callbacks that keep ``best.ckpt``, the weights alone, and ``last.ckpt``, the whole state for resuming.

    Where a callback averages weights, both have it all: Lightning puts the average into whole checkpoints only.

    Two callbacks, the best one first: Lightning's ``save_last`` writes the last one only where it is the best as well.
    """
    folder = folder / "checkpoints"
    best = _Movable(
        folder,
        filename="best",
        monitor="val/target/selection" if validates else None,
        mode="max",
        save_weights_only=not averages,
        save_on_train_epoch_end=None if validates else True,
        enable_version_counter=False,
    )
    return [best, _Movable(folder, filename="last", enable_version_counter=False)]


class _Movable(ModelCheckpoint):
    """Goes on where its folder has been moved in the meantime, too: Lightning would forget which was the best one."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        moved = {key: here(value) if key.endswith("_path") else value for key, value in state_dict.items()}
        moved["best_k_models"] = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**moved, "dirpath": str(self.dirpath)})


@dataclass(frozen=True)
class Fitted:
    """The result of a training: its time, and the weights that validation chose."""

    seconds: float  # of fitting
    images_per_second: float  # training images, both tasks, over fitting including its validations
    best: Path  # the checkpoint that validation chose
    best_epoch: int
    steps: int  # of the optimizer; fewer than the budget's where a callback or max_time ended it


def fit(trainer: pl.Trainer, module: JTLN, data: PairData, checkpoint: Path | None = None) -> None:
    """Fit the module; Ctrl-C stays a KeyboardInterrupt."""
    with _interruptible():
        trainer.fit(module, data, ckpt_path=None if checkpoint is None else str(checkpoint), weights_only=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Keep Ctrl-C a KeyboardInterrupt, which Lightning would turn into an exit, and give SIGTERM its exit code."""
    try:
        yield
    except SIGTERMException:
        raise Preempted(signal.SIGTERM) from None
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def fit_best(
    trainer: pl.Trainer, module: JTLN, data: PairData, checkpoint: Path | None = None, first_step: int = 0
) -> Fitted:
    """Fit, and leave the module with the weights that validation chose.

    Args:
        trainer: made by :func:`make_trainer`.
        module: trained in place.
        data: the loaders.
        checkpoint: a ``last.ckpt`` to continue from.
        first_step: the steps behind it.
    """
    started = time.perf_counter()
    accumulated = trainer.accumulate_grad_batches
    epoch, step = divmod(first_step, math.ceil(data.steps_per_epoch / accumulated))
    data.first_batch = epoch * data.steps_per_epoch + step * accumulated
    fit(trainer, module, data, checkpoint)
    seconds = time.perf_counter() - started
    sizes = {"source": data.source_batch_size, "target": data.target_batch_size}
    images = (trainer.global_step - first_step) * sum(size for side, size in sizes.items() if module.reads(side))
    path = Path(trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    if not path.is_file():
        raise UserError(
            f"expected the end of an epoch before the training stopped, but got {trainer.global_step} steps: lower "
            "steps_per_epoch, or raise trainer.max_time"
        )
    best = read_torch(path)
    own = module.state_dict()  # without a trunk whose features are computed; a checkpoint of a finished run has it
    state = {name: value for name, value in best["state_dict"].items() if name in own or not name.startswith("trunk.")}
    module.load_state_dict(state)
    return Fitted(seconds, images / max(seconds, 1e-9), path, int(best["epoch"]), trainer.global_step)


def keep_untrained(trainer: pl.Trainer, module: JTLN) -> Fitted:
    """Write the checkpoint of a run whose objective has no term: there is nothing to train before the head."""
    trainer.strategy.connect(module)
    path = Path(trainer.checkpoint_callback.dirpath or "", "best.ckpt")  # type: ignore[union-attr]
    trainer.save_checkpoint(path, weights_only=True)
    return Fitted(0.0, 0.0, path, 0, 0)


def evaluate(trainer: pl.Trainer, module: JTLN, data: PairData) -> Metrics:
    """Measure the module on validation and test images; where a task has none of a part, there is None."""
    values: dict[str, Any] = {}
    # Only the test is logged: the curves hold the chosen checkpoint's validation already, at its own step, as trained.
    measures: list[tuple[Any, Any]] = [(trainer.validate, [])] if len(data.pair.target.val) else []
    for measure, loggers in [*measures, (trainer.test, trainer.loggers)]:
        trainer.loggers = loggers
        with _interruptible():
            for part in measure(module, datamodule=data, verbose=False):
                values.update(part)

    def found(head: str, split: str) -> dict[str, float] | None:
        images = len(getattr(getattr(data.pair, head), split))
        metrics = {
            key.rpartition("/")[2]: float(value)
            for key, value in values.items()
            if key.startswith(f"{split}/{head}/") and not key.endswith("/selection")
        }
        return {**metrics, "n": images} if metrics else None

    return {head: {split: found(head, split) for split in ("val", "test")} for head in HEADS}


def steps_done(checkpoint: Path | None) -> int:
    """Return the steps behind a ``last.ckpt``, 0 without one.

    Raises:
        UserError: the checkpoint is damaged, or the ``best.ckpt`` beside it, with which the run would end, is.
    """
    if checkpoint is None:
        return 0
    path = checkpoint
    try:
        steps = int(read_torch(path)["global_step"])
        path = checkpoint.with_name("best.ckpt")
        read_torch(path)["state_dict"]
        return steps
    except Exception as error:  # what it is depends on where the file was cut off
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"expected a whole checkpoint to go on from in {path}, but it cannot be read ({reason}): start the run "
            "anew, in another folder"
        ) from error


def csv_logger(folder: Path, keep_steps: int = 0) -> CSVLogger:
    """Write ``metrics.csv`` into the folder itself, after the first ``keep_steps`` steps of one that is there.

    The logger deletes the file when it begins: the earlier one lies beside it until its rows are in the new one.
    """
    _quiet_lightning()
    path, earlier = folder / "metrics.csv", folder / "metrics.csv.earlier"
    rows: list[dict[str, str]] = []
    if getattr(rank_zero_only, "rank", 0) != 0:
        pass  # the first process has the file
    elif not keep_steps:
        earlier.unlink(missing_ok=True)
    elif earlier.is_file() or path.is_file():
        if not earlier.is_file():  # else an earlier resumption was cut off here
            os.replace(path, earlier)
        with open(earlier, newline="", encoding="utf-8", errors="replace") as file, suppress(csv.Error):
            rows = [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]
    logger = CSVLogger(folder.parent, name=folder.name, version="", flush_logs_every_n_steps=10)
    for row in rows:
        if (step := int(row.pop("step"))) < keep_steps:
            values = {key: value for key, value in row.items() if value}
            logger.experiment.log_metrics(values, step)  # type: ignore[misc, arg-type]
    if rows:
        logger.experiment.save()  # type: ignore[misc]
        earlier.unlink(missing_ok=True)
    return logger


def _quiet_lightning() -> None:
    """Silence Lightning's messages that the run's own log repeats, and hints that do not apply to loaders in memory."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*The number of training batches.*",
        ".*Total length of `list` across ranks is zero.*",  # no validation images of the target
        ".*in eval mode at the start of training.*",  # a frozen trunk, a penalty's copy of the pre-trained one
        ".*Experiment logs directory.*",
        ".*Checkpoint directory.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*GPU available but not used.*",
        ".*resuming from a checkpoint that ended before the epoch ended.*",  # the loaders go on from that step
        ".*total number of parameters detected may be inaccurate.*",
        ".*recommended to use `self.log.*sync_dist=True.*",  # torchmetrics has counted over all processes
    ):
        warnings.filterwarnings("ignore", message)
