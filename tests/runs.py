"""The curves in a run's folder, and a run that is cut off."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
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
