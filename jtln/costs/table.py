"""The cost matrix as a file that people read: CSV with class names on both axes."""

from __future__ import annotations

import csv
from pathlib import Path

from torch import Tensor

from jtln.classes import ClassSet


def save_cost(path: Path, cost: Tensor, source: ClassSet, target: ClassSet) -> None:
    """Write C (S, T): a row for each source class, a column for each target class."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["source \\ target", *target.names])
        for name, row in zip(source.names, cost.tolist(), strict=True):
            writer.writerow([name, *(f"{value:.6g}" for value in row)])
