"""The cost matrix as a readable file with class names on both axes."""

from __future__ import annotations

import csv
import difflib
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jtln.costs.base import Cost
from jtln.errors import UserError
from jtln.names.class_set import ClassSet, composed
from jtln.storage import given_path

KEYS = ("cost", "source", "target")  # of an .npz file


class FileCost(Cost):
    """C[i, j] from a file, such as an expert's judgement or another program's output.

    Args:
        file: a CSV file with the target classes' names in its first line and, for each source class, a line with its
            name and numbers >= 0 (such as a run's ``cost.csv``); or an .npz file with ``cost`` (S, T) and the names
            ``source`` (S,) and ``target`` (T,). Classes are matched by name, in any order; the file may have more.
        scale: see :class:`Cost`.

    Raises:
        UserError: on :meth:`distances`, the file is missing or is no such table, or a class is missing in it.
    """

    def __init__(self, file: str | Path | None, scale: str = "max") -> None:
        super().__init__(scale)
        self.file = given_path(file, "cost.file", "a CSV or .npz file")

    def distances(self, source: ClassSet, target: ClassSet) -> Tensor:
        cost, rows, columns = load_cost(self.file)
        here = [_places(names, there, side, self.file) for names, there, side in
                ((source.names, rows, "source"), (target.names, columns, "target"))]  # fmt: skip
        return cost[here[0]][:, here[1]]


def save_cost(path: Path, cost: Tensor, source: ClassSet, target: ClassSet) -> None:
    """Write C (S, T): a row for each source class, a column for each target class."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["source \\ target", *target.names])
        for name, row in zip(source.names, cost.tolist(), strict=True):
            writer.writerow([name, *(f"{value:.6g}" for value in row)])


def load_cost(path: Path) -> tuple[Tensor, list[str], list[str]]:
    """Read a file's matrix (S, T) float32, its source names (S) and its target names (T).

    Raises:
        UserError: the file cannot be read, or is no such table; the message names the place.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                if missing := [key for key in KEYS if key not in arrays]:
                    raise UserError(f"expected the arrays {', '.join(KEYS)} in {path}, but there is no {missing[0]}")
                cost, rows, columns = (arrays[key] for key in KEYS)
            if not np.isrealobj(cost):
                raise ValueError("its cost holds complex numbers")
            matrix, names = (
                torch.from_numpy(np.asarray(cost, dtype=np.float32)),
                [list(map(str, rows)), list(map(str, columns))],
            )
        else:
            matrix, names = _read_csv(path)
        names = [list(map(composed, axis)) for axis in names]
    except (OSError, ValueError, TypeError, csv.Error, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"expected a cost matrix (CSV or .npz) in {path}, but it cannot be read: {error}") from error
    if matrix.shape != (len(names[0]), len(names[1])) or not matrix.numel():
        raise UserError(
            f"expected a cost of {len(names[0])} x {len(names[1])} in {path}, by the numbers of its names, but got "
            f"{' x '.join(map(str, matrix.shape))}"
        )
    for side, axis in zip(("source", "target"), names, strict=True):
        if twice := sorted({name for name in axis if axis.count(name) > 1}):
            raise UserError(f"expected each {side} class once in {path}, but got '{twice[0]}' twice")
    return matrix, names[0], names[1]


def _read_csv(path: Path) -> tuple[Tensor, list[list[str]]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if any(cell.strip() for cell in line)]
    columns = [cell.strip() for cell in lines[0][1:]] if lines else []
    if len(lines) < 2 or not columns:
        raise UserError(f"expected a first line of target classes and a line for each source class in {path}")
    values = []
    for line in lines[1:]:
        name = line[0].strip()
        if len(line) != len(lines[0]):
            raise UserError(f"expected {len(columns)} numbers for '{name}' in {path}, but got {len(line) - 1}")
        for column, cell in zip(columns, line[1:], strict=True):
            values.append(_number(cell, f"for '{name}' and '{column}' in {path}"))
    return torch.tensor(values).reshape(-1, len(columns)), [[line[0].strip() for line in lines[1:]], columns]


def _number(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UserError(f"expected a number >= 0 {where}, but got '{cell.strip()}'")
    return value


def _places(names: Sequence[str], there: Sequence[str], side: str, path: Path) -> list[int]:
    index = {name: place for place, name in enumerate(there)}
    names = [name if name in index else composed(name) for name in names]
    if missing := [name for name in names if name not in index]:
        near = difflib.get_close_matches(missing[0], there, n=3)
        hint = f"; near to it: {', '.join(near)}" if near else ""
        raise UserError(
            f"expected all {len(names)} {side} classes in {path}, but {len(missing)} are missing, '{missing[0]}' "
            f"among them{hint}: `jtln cost` with cost=uniform writes a cost.csv with the right names to fill in"
        )
    return [index[name] for name in names]
