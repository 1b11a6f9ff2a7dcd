"""Negative transfer: a training is compared with one that had the target alone, of the same split."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn
from tqdm import tqdm

from jtln.methods import Method
from jtln.storage import replacing
from jtln.training.experiment import Experiment
from jtln.training.log import log

METRIC = "val/target/over_target_only"
ERRORS = 2  # standard errors: of two methods that do alike, one warns about once in forty runs; with one, once in six
PATIENCE = 3  # validations in a row that are worse than the target alone, before the end of training is waited for

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

    def state_dict(self) -> dict[str, Any]:
        return {"curve": dict(self.curve)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curve = dict(state_dict["curve"])


class CompareTargetOnly(ValidationCurve):
    """Logs at every validation how far the run is above the target alone, and warns once where it is below.

    Below means: by more than ERRORS standard errors of the difference of two accuracies on so many images, in PATIENCE
    validations in a row, or by the best validation of each at the end.

    Args:
        baseline: the target-only run's curve.
        images: validation images of the target.
        remedies: what the user may try.
    """

    def __init__(self, baseline: Curve, images: int, remedies: str = "") -> None:
        super().__init__()
        self.baseline, self.images, self.remedies = baseline, images, remedies
        self.warned = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        step = trainer.global_step
        if step not in self.baseline or step not in self.curve or not trainer.is_global_zero:
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
        log("transfer", f"{100 * (own - alone):+.1f} points over the target alone, by the best validation of each")

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

    def result(self) -> TargetOnlyComparison:
        """Return the comparison by the best validation accuracy of each training."""
        own, alone = max(self.curve.values()), max(self.baseline.values())
        error = standard_error(own, alone, self.images)
        return TargetOnlyComparison(alone, own - alone, error, is_below(own, alone, self.images))


@dataclass(frozen=True)
class TargetOnlyComparison:
    """A run against one that had the target alone, by the best validation accuracy in the course of each."""

    val_accuracy: float  # of the target alone
    gap: float  # the run's over it
    standard_error: float  # of the gap
    negative: bool  # whether the run is so far below that chance alone would seldom make it


def standard_error(one: float, other: float, images: int) -> float:
    """Return that of the difference between two accuracies in [0, 1], each measured on so many images."""
    return math.sqrt((one * (1 - one) + other * (1 - other)) / images)


def is_below(own: float, alone: float, images: int) -> bool:
    """Return True if ``own`` is below ``alone`` by more than chance explains."""
    return own - alone < -ERRORS * standard_error(own, alone, images)


def compare_target_only(experiment: Experiment, images: int, train: Callable[[Experiment], Curve]) -> CompareTargetOnly:
    """Train with the target alone first, and return the callback that compares the run with it.

    The curve is kept in ``target_only.json`` of the run's folder, for a run that is resumed.

    Args:
        experiment: the run's settings.
        images: validation images of the target.
        train: trains an experiment for its validation curve alone.
    """
    path = experiment.folder / "target_only.json"
    curve = read_curve(path)
    if curve is None:
        pretrained_weights = experiment.make_trunk().pretrained
        factor = experiment.optimization.trunk_lr_factor if pretrained_weights else 1.0  # as conf/method/target_only
        alone = replace(
            experiment,
            method=Method("target_only"),
            pretraining=None,
            fits_source_head=False,
            optimization=replace(experiment.optimization, trunk_lr_factor=factor),
        )
        curve = train(alone)
        with replacing(path) as file:
            file.write(json.dumps({"curve": curve}).encode())
    return CompareTargetOnly(curve, images, _remedies(experiment))


def read_curve(path: Path) -> Curve | None:
    """Return the curve that a file holds; None where there is no file, or a broken one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {int(step): float(accuracy) for step, accuracy in content["curve"].items()} or None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _remedies(experiment: Experiment) -> str:
    """Name the settings of this run that the user may change."""
    method, rate = experiment.method, f"{experiment.optimization.trunk_lr_factor:g}"
    frozen = bool(experiment.trunk.get("freeze"))
    remedies = {
        f"a smaller method.lambda_source (now {method.lambda_source:g})": method.lambda_source > 0,
        f"a smaller method.lambda_ot (now {method.lambda_ot:g})": method.lambda_ot > 0,
        f"a smaller method.lambda_label (now {method.lambda_label:g})": method.lambda_label > 0,
        f"a smaller method.keep (now {method.keep:g})": method.keep > 0,
        f"another cost (now {experiment.cost_name})": experiment.uses_cost,
        "a weaker method.penalty": method.penalty is not None,
        "trunk.freeze=false": frozen,
        f"another trunk_lr_factor (now {rate})": not frozen,
        "pretrain=none": experiment.pretraining is not None or experiment.fits_source_head,
    }
    return "; ".join([*(words for words, fits in remedies.items() if fits), "method=target_only, if nothing else does"])
