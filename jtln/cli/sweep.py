"""The end of a multirun: one table over its jobs."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from jtln.reporting.numbers import NONE, mean_and_spread
from jtln.reporting.tables import Column, markdown, show

SWEEP_FOLDER = "JTLN_SWEEP_FOLDER"  # environment variable: tells the processes that this one starts where to write
COLUMNS = (
    ("target test", ("target", "test", "accuracy")),
    ("target val", ("target", "val", "accuracy")),
    ("source test", ("source", "test", "accuracy")),
)


class SweepTable(Callback):
    """Writes ``table.md`` and ``table.csv`` into a multirun's folder and prints the table.

    Attributes:
        failed: the jobs of this process's last multirun that left an error, in whatever process they were made.
    """

    failed: ClassVar[list[str]] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir).resolve()
        os.environ[SWEEP_FOLDER] = str(folder)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            for path in folder.rglob("error.txt"):  # of an earlier try
                path.unlink()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        os.environ.pop(SWEEP_FOLDER, None)
        folder = Path(config.hydra.sweep.dir)
        self.failed[:] = [str(path.parent.relative_to(folder)) for path in folder.rglob("error.txt")]
        from pytorch_lightning.utilities.rank_zero import rank_zero_only

        if getattr(rank_zero_only, "rank", 0) == 0:
            summarize(folder)


def summarize(folder: Path) -> None:
    """Collect the results below ``folder``, one row for each setting, mean and standard deviation over its seeds."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("result.json"), key=_order)]
    failed = sorted(folder.rglob("error.txt"), key=_order)
    rows = [_row(label, members) for label, members in _by_setting(results).items()]
    columns = [
        Column("setting"),
        Column("seeds", right=True),
        *(Column(name, right=True) for name, _ in COLUMNS),
        Column("seconds", right=True),
    ]
    if rows:
        show("accuracy in %, mean ± standard deviation over the seeds", columns, rows)
        (folder / "table.md").write_text(markdown(columns, rows), encoding="utf-8")
        _write_csv(folder / "table.csv", results)
    for path in failed:
        job = path.parent.relative_to(folder)
        print(f"failed: job {job}: {path.read_text(encoding='utf-8').strip().splitlines()[-1]}")
    print(f"sweep folder: {folder}")


def _order(path: Path) -> tuple[int, str]:
    name = path.parent.name
    return (int(name) if name.isdigit() else 1 << 30, name)


def _by_setting(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group the results by the overrides in which they differ, the seed aside."""
    shared = set.intersection(*(set(result["overrides"]) for result in results)) if len(results) > 1 else set()
    settings: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        own = [o for o in result["overrides"] if o not in shared and not o.startswith("seed=")]
        settings.setdefault(" ".join(own) or "(all)", []).append(result)
    return settings


def _row(label: str, members: list[dict[str, Any]]) -> list[str]:
    cells = [label, str(len(members))]
    for _, path in COLUMNS:
        values = [100 * _value(member, path) for member in members]
        cells.append(NONE if any(map(math.isnan, values)) else mean_and_spread(values, digits=1))
    return [*cells, mean_and_spread([member["seconds"] for member in members], digits=0)]


def _value(result: dict[str, Any], path: tuple[str, ...]) -> float:
    node: Any = result
    for key in path:
        node = node.get(key, math.nan) if isinstance(node, dict) else math.nan
    return float(node)


def _write_csv(path: Path, results: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "method",
                "dataset",
                "cost",
                "shots",
                "seed",
                "overrides",
                *(name for name, _ in COLUMNS),
                "seconds",
            ]
        )
        for result in results:
            facts = [result[key] for key in ("method", "dataset", "cost", "shots", "seed")]
            values = [_value(result, where) for _, where in COLUMNS]
            writer.writerow([*facts, " ".join(result["overrides"]), *values, result["seconds"]])
