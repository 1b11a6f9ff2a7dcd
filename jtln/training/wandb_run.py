"""The content of a W&B run beside the curves: tables, plots, the best checkpoint, the direction of each metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from jtln.data.images import ImageSet
from jtln.data.pairs import Pair
from jtln.module import HEADS
from jtln.reporting.numbers import GOALS
from jtln.reporting.predictions import Predictions

SHOWN = 100  # images in the table of predictions
MOST_CLASSES = 100  # of a confusion matrix, which W&B keeps as a row for each pair of classes


class RunLogger(WandbLogger):
    """W&B's logger of a run.

    Args:
        checkpoint: whether the run's best checkpoint becomes an artifact.
    """

    def __init__(self, checkpoint: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.keeps_checkpoint = checkpoint

    def define_metrics(self) -> None:
        """Give W&B the direction of each metric, before any is logged: its summary has the best of each curve."""
        step = "trainer/global_step"
        for head in HEADS:
            for metric, goal in GOALS.items():
                for split in ("train", "val"):
                    self.experiment.define_metric(f"{split}/{head}/{metric}", step_metric=step, summary=goal[:3])
                for split in ("val", "test"):
                    self.experiment.define_metric(f"best/{split}/{head}/{metric}", summary=goal[:3])
        self.experiment.define_metric("train/loss", step_metric=step, summary="min")

    def log_result(
        self,
        result: dict[str, Any],
        pair: Pair,
        predictions: Predictions,
        best: Path,
        cost: Tensor | None = None,
        plan: Tensor | None = None,
    ) -> None:
        """Log the outcome of a run.

        Args:
            result: the content of ``result.json``.
            pair: whose images were tested.
            predictions: for the target's test images.
            best: the best checkpoint.
            cost: (S, T), that of ``cost.csv``; None where the run has none.
            plan: (S, T) of sum 1, the transport plan between what both heads predict, or between the classes, which is
                that of the prior where the run has one; None likewise.
        """
        import wandb

        run, names = self.experiment, pair.target.classes.names
        run.summary.update(_figures(result))
        logged: dict[str, Any] = {"predictions": _predictions(pair.target.test, names, predictions)}
        for name, matrix in (("cost", cost), ("plan", plan)):
            if matrix is not None:
                logged[f"{name}_table"] = _matrix(matrix, pair.source.classes.names, names)
        if len(names) <= MOST_CLASSES:
            logged["confusion_matrix"] = wandb.plot.confusion_matrix(
                y_true=predictions.label.tolist(), preds=predictions.predicted.tolist(), class_names=list(names)
            )
        run.log(logged)
        if self.keeps_checkpoint:
            facts = {key: result[key] for key in ("method", "head", "dataset", "cost", "shots", "seed", "best_epoch")}
            artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=facts)
            artifact.add_file(str(best), name=best.name)
            run.log_artifact(artifact, aliases=["best"])


def _figures(result: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a result that dashboards filter and sort by, and that no curve holds."""
    parts = {name: result[name] for name in ("calibration", "prior", "head_fit", "target_only") if result[name]}
    nested = {f"{name}/{key}": value for name, values in parts.items() for key, value in values.items()}
    numbers = nested | {key: result[key] for key in ("seconds", "images_per_second", "steps", "best_epoch")}
    return {key: value for key, value in numbers.items() if isinstance(value, int | float)}


def _matrix(matrix: Tensor, source: Sequence[str], target: Sequence[str]) -> Any:
    """Return the table of a matrix (S, T), a source class in each row."""
    import wandb

    rows = [[name, *values] for name, values in zip(source, matrix.cpu().tolist(), strict=True)]
    columns: list[str | int] = ["source class", *target]
    return wandb.Table(columns=columns, data=rows)


def _predictions(images: ImageSet, names: Sequence[str], predictions: Predictions) -> Any:
    """Return the table of the test images that were predicted worst, and of as many others."""
    import wandb

    chosen = _chosen(predictions.nll)
    pixels, _ = images.__getitems__(chosen)
    rows = [
        [
            wandb.Image(shown.permute(1, 2, 0).cpu().numpy()),
            images.names[index],
            names[predictions.label[index]],
            names[predictions.predicted[index]],
            bool(predictions.right[index]),
            float(predictions.confidence[index]),
            float(predictions.nll[index]),
        ]
        for index, shown in zip(chosen, pixels, strict=True)
    ]
    columns: list[str | int] = ["image", "name", "class", "predicted", "right", "confidence", "nll"]
    return wandb.Table(columns=columns, data=rows)


def _chosen(nll: NDArray[np.float32]) -> list[int]:
    """Return up to SHOWN images: half of them those of the largest nll (N,), the others evenly spread."""
    worst = np.argsort(-nll, kind="stable")[: SHOWN // 2]
    others = np.setdiff1d(np.arange(len(nll)), worst)
    spread = others[np.linspace(0, len(others) - 1, min(SHOWN - len(worst), len(others))).astype(int)]
    return [*worst.tolist(), *spread.tolist()]
