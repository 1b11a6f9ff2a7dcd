"""The curves in a run's folder, a run that is cut off, and runs without figures."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

from jtln.training.experiment import Experiment
from jtln.training.run import run


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def column(folder: Path, name: str) -> dict[int, float]:
    """{step: value} of the rows of metrics.csv that hold a value."""
    return {int(row["step"]): float(row[name]) for row in rows(folder) if row[name]}


class _CutOff(CSVLogger):
    """Ctrl-C after the sixth step."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        if step == 5:
            raise KeyboardInterrupt


def cut_off(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the experiment until Ctrl-C after its sixth step."""
    with monkeypatch.context() as patch:
        patch.setattr("jtln.training.trainer.CSVLogger", _CutOff)
        patch.setattr("signal.signal", lambda *_: None)  # Lightning would ignore Ctrl-C from now on
        with pytest.raises(KeyboardInterrupt):
            run(experiment)


class _NoFigure:
    """In place of the module that makes a run's figures, and of each of them."""

    def __getattr__(self, name: str) -> Callable[..., _NoFigure]:
        return lambda *_: self

    def savefig(self, path: Path, **_: Any) -> None:
        Image.new("RGB", (1, 1), "white").save(path)


def without_drawing(patch: pytest.MonkeyPatch) -> None:
    """Write a white pixel for each figure: figures take most of the time of a tiny run."""
    none = _NoFigure()
    patch.setattr("jtln.training.run_folder.plots", none)
    patch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **options: none.savefig(path))
