"""Negative transfer: training is watched against a run that had the target alone, of the same split."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn
from tqdm import tqdm

import jtln
from jtln.data.pairs import Pair
from jtln.data.transforms import Augment
from jtln.module import JTLN
from jtln.storage import kept_if_possible, replacing
from jtln.training.experiment import Experiment, Method
from jtln.training.log import say
from jtln.training.trainer import fit, make_trainer, pair_data
from jtln.trunks.base import Trunk

METRIC = "val/target/over_target_only"
ERRORS = 2  # standard errors: of two methods that do alike, one warns about once in forty runs; with one, once in six
PATIENCE = 3  # validations in a row that are worse than the target alone, before the end of training is waited for

_DECISION = "JTLN_TARGET_ONLY"  # what the first process found in the cache, for those that it starts
_FORMAT = 1  # of the cached file; raised when what a key stands for changes
Curve = dict[int, float]  # training steps done -> target validation accuracy in [0, 1]


class ValidationCurve(Callback):
    """Records the target's validation accuracy over a training, across resumptions.

    Attributes:
        curve: by the number of steps done.
    """

    def __init__(self) -> None:
        self.curve: Curve = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.curve[trainer.global_step] = float(trainer.callback_metrics["val/target/accuracy"])
            self.validated(trainer)

    def validated(self, trainer: pl.Trainer) -> None:
        """What is done with the new point of the curve."""

    def state_dict(self) -> dict[str, Any]:
        return {"curve": dict(self.curve)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curve = dict(state_dict["curve"])


class KeepCurve(ValidationCurve):
    """A target-only run: at the end its curve, if it is whole, goes into the cache.

    Where there is one already, that of the better run stays: how fast the trunk learns is no part of the key, because
    a random trunk wants another rate than a pre-trained one.

    Args:
        path: the file.
        steps: how many there are from one validation to the next, and in all.
        facts: what else the file says, for people.
    """

    def __init__(self, path: Path, steps: range, facts: dict[str, Any]) -> None:
        super().__init__()
        self.path, self.steps, self.facts = path, steps, facts

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and set(self.curve) >= set(self.steps):
            keep(self.path, {step: self.curve[step] for step in self.steps}, self.facts)


class NegativeTransfer(ValidationCurve):
    """Logs at every validation how far the run is above the target alone, and warns where it is below.

    Below means: by more than ERRORS standard errors of the difference of two accuracies on so many images. The warning
    comes once: when PATIENCE validations in a row were below, or at the end, if the best one is.

    Args:
        baseline: the target-only run's curve.
        key: of the target-only run in the cache.
        images: validation images of the target.
        remedies: what the user may try.
    """

    def __init__(self, baseline: Curve, key: str, images: int, remedies: str) -> None:
        super().__init__()
        self.baseline, self.key, self.images, self.remedies = baseline, key, images, remedies
        self.warned = False

    def validated(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        if step not in self.baseline or not trainer.is_global_zero:
            return
        gap = self.curve[step] - self.baseline[step]
        for logger in trainer.loggers:  # beside the validation's other figures, whose step this is
            logger.log_metrics({METRIC: gap}, step=step - 1)
        last = sorted(self.curve.keys() & self.baseline.keys())[-PATIENCE:]
        if len(last) == PATIENCE and all(is_below(self.curve[s], self.baseline[s], self.images) for s in last):
            self._warn(f"below it {PATIENCE} validations in a row", self.curve[step], self.baseline[step])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or not self.curve:
            return
        own, alone = max(self.curve.values()), max(self.baseline.values())
        if is_below(own, alone, self.images):
            self._warn("below it by the best validation of each", own, alone)
        gap = f"{100 * (own - alone):+.1f} points over the target alone"
        say("transfer", f"{gap}, by the best validation in the course of each")

    def _warn(self, what: str, own: float, alone: float) -> None:
        if not self.warned:
            self.warned = True
            tqdm.write(  # above the progress bar
                f"warning    negative transfer: validation accuracy {own:.1%}, that of the target alone {alone:.1%}: "
                f"{what}, by more than {ERRORS} standard errors. What may help: {self.remedies}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "warned": self.warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.warned = bool(state_dict["warned"])

    def result(self, accuracy: float) -> dict[str, Any]:
        """What ``result.json`` says: the target-only run's best validation accuracy, and the run's own best over it.

        Args:
            accuracy: on the validation images after training; counts where none was measured in its course, for a
                head's end is fitted to these images, and the target-only run had none.
        """
        alone, own = max(self.baseline.values()), max(self.curve.values(), default=accuracy)
        return {
            "key": self.key,
            "val_accuracy": alone,
            "gap": own - alone,
            "standard_error": standard_error(own, alone, self.images),
            "negative": is_below(own, alone, self.images),
        }


def standard_error(one: float, other: float, images: int) -> float:
    """Of the difference between two accuracies in [0, 1], each measured on so many images."""
    return math.sqrt((one * (1 - one) + other * (1 - other)) / images)


def is_below(own: float, alone: float, images: int) -> bool:
    """Whether ``own`` is so far below ``alone`` that chance alone would seldom make it."""
    return own - alone < -ERRORS * standard_error(own, alone, images)


def is_target_only(experiment: Experiment) -> bool:
    """Whether nothing of the source is in a run: its images train neither the trunk nor a term of the objective."""
    method = experiment.method
    reads_source = method.lambda_source > 0 or method.uses_cost or experiment.pretraining is not None
    return not (reads_source or method.penalty is not None or method.freeze_trunk)


def watch(
    experiment: Experiment, pair: Pair, augment: Augment | None, build_module: Callable[[Experiment, Pair], JTLN]
) -> ValidationCurve | None:
    """The callback that a run needs: it keeps a target-only run's curve, or compares another run with one.

    Args:
        build_module: ``jtln.training.run.build_module``.

    Returns:
        None where there is nothing to compare with, or the user does not want it.
    """
    if experiment.negative_transfer == "off":
        return None
    trunk = experiment.make_trunk()
    key = baseline_key(experiment, pair, augment, trunk)
    path = None if experiment.cache is None else experiment.cache / "baselines" / f"{key}.json"
    if is_target_only(experiment):
        return None if path is None else KeepCurve(path, _steps(experiment), _facts(experiment))
    curve = None if path is None else read(path)
    if experiment.negative_transfer == "train" and not _first_says(key, curve is not None):
        alone = replace(
            experiment,
            method=Method("target_only"),
            pretraining=None,
            trunk_lr_factor=experiment.trunk_lr_factor if trunk.pretrained else 1.0,  # as conf/method/target_only
        )
        curve = _trained(alone, pair, augment, build_module)
        if path is not None and os.environ.get("LOCAL_RANK", "0") == "0":
            keep(path, curve, _facts(alone))
            curve = read(path)
    if not curve:
        if path is not None:
            say("transfer", "not compared with the target alone: train method=target_only, or negative_transfer=train")
        return None
    return NegativeTransfer(curve, key, len(pair.target.val), _remedies(experiment))


def baseline_key(experiment: Experiment, pair: Pair, augment: Augment | None, trunk: Trunk) -> str:
    """The hash of what has to be the same for a run to be comparable with one that had the target alone."""
    budget, depends = experiment.budget, experiment.pretraining_depends
    facts = {
        "format": _FORMAT,
        "versions": [jtln.__version__, torch.__version__.split("+")[0]],
        "images": [pair.target.train.fingerprint(), pair.target.val.fingerprint()],
        "classes": pair.target.classes.names,
        "image_size": pair.image_size,
        "trunk": [trunk.name, *(depends.get(name) for name in ("trunk", "weights", "torchvision"))],
        "budget": [budget.epochs, budget.steps_per_epoch, budget.target_batch_size],
        "optimizer": repr(experiment.optimizer),
        "clip": experiment.trainer.options.get("gradient_clip_val"),
        "lr_schedule": repr(experiment.lr_schedule),
        "seed": experiment.seed,
        "augment": None if augment is None else repr(augment),
        "test_views": experiment.test_views,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:20]


def read(path: Path) -> Curve | None:
    """What the cache holds; None where there is no file, or a broken one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {int(step): float(accuracy) for step, accuracy in content["curve"].items()} or None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def keep(path: Path, curve: Curve, facts: dict[str, Any]) -> None:
    """Put a curve into the cache, unless a better one is there; a reader sees the whole file or none."""
    there = read(path)
    if there is not None and max(there.values()) >= max(curve.values()):
        return
    lost = "other runs cannot be compared with it"
    with kept_if_possible("the curve of the target alone", lost), replacing(path) as file:
        file.write(json.dumps({"curve": curve, **facts}, indent=1).encode())


def _trained(
    alone: Experiment, pair: Pair, augment: Augment | None, build_module: Callable[[Experiment, Pair], JTLN]
) -> Curve:
    """Train with the target alone, for its curve."""
    pl.seed_everything(alone.seed, verbose=False)
    module = build_module(alone, pair)
    data = pair_data(
        pair,
        module.trunk,
        alone.budget,
        seed=alone.seed,
        augment=augment,
        use_source=False,
        num_workers=alone.num_workers,
        test_views=alone.test_views,
    )
    recorder = ValidationCurve()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            alone.trainer,
            alone.budget,
            Path(folder),
            callbacks=[recorder],
            description="target alone",
            keep_checkpoints=False,
            hidden=("source val",),
        )
        fit(trainer, module, data)
    return recorder.curve


def _first_says(key: str, found: bool) -> bool:
    """Whether the first process found the curve: all train one together, or none does.

    Those that it starts later hear it through the environment; those that run already, over the network.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        said: list[Any] = [found]
        torch.distributed.broadcast_object_list(said, src=0)
        return bool(said[0])
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[_DECISION] = f"{key}:{int(found)}"
        return found
    name, _, value = os.environ.pop(_DECISION, "").partition(":")
    return bool(int(value)) if name == key else found


def _steps(experiment: Experiment) -> range:
    budget = experiment.budget
    return range(budget.steps_per_epoch, budget.steps + 1, budget.steps_per_epoch)


def _facts(experiment: Experiment) -> dict[str, Any]:
    return {
        "dataset": experiment.dataset,
        "shots": experiment.spec.shots,
        "rate": experiment.spec.rate,
        "seed": experiment.seed,
        "trunk_lr_factor": experiment.trunk_lr_factor,
        "command": experiment.command,
    }


def _remedies(experiment: Experiment) -> str:
    """What of this run's settings the user may change."""
    method, rate = experiment.method, f"{experiment.trunk_lr_factor:g}"
    remedies = {
        f"a smaller method.lambda_source (now {method.lambda_source:g})": method.lambda_source > 0,
        f"a smaller method.lambda_ot (now {method.lambda_ot:g})": method.lambda_ot > 0,
        f"a smaller method.lambda_label (now {method.lambda_label:g})": method.lambda_label > 0,
        f"another cost (now {experiment.cost_name})": method.uses_cost,
        "a weaker method.penalty": method.penalty is not None,
        "a trunk that learns, such as method=consecutive": method.freeze_trunk,
        f"another trunk_lr_factor (now {rate})": not method.freeze_trunk,
        "pretrain=none": experiment.pretraining is not None,
    }
    return "; ".join([*(words for words, fits in remedies.items() if fits), "method=target_only, if nothing else does"])
