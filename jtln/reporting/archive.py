"""The archive of a report: its runs in three small files, from which every table can be computed again.

    runs.csv         a line for each run: its row, labels, seed, test and validation figures, and the fit of its prior
    images.npz       ``label_K`` (N,) the classes of the N test images of test set K, and ``right_K`` (R, ceil(N / 8))
                     uint8, a bit for each image, 1 where the prediction is right: :func:`numpy.packbits` of the R runs
                     that runs.csv gives the test set K, in its order
    provenance.json  the command, the day of the last run, versions, class names, and the settings of each row

A run folder is a few hundred kilobytes or more; in an archive a run with 2,000 test images takes half a kilobyte.
Paths of the machine are left out: ``PATH`` stands in place of each.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jtln.errors import UserError
from jtln.reporting.naming import Run, given
from jtln.reporting.predictions import Correctness
from jtln.storage import replacing, write_text

FILES = ("runs.csv", "images.npz", "provenance.json")
_METRICS = ("accuracy", "mean_class_accuracy", "macro_f1", "ece")


def _flag(text: str) -> bool:
    return text == "True"


# Column of runs.csv -> where result.json holds the value, and its type.
_COLUMNS: dict[str, tuple[tuple[str, ...], Callable[[str], Any]]] = {
    "dataset": (("dataset",), str),
    "shots": (("shots",), int),
    "rate": (("rate",), float),
    "seed": (("seed",), int),
    **{f"{part}_{metric}": (("target", part, metric), float) for part in ("test", "val") for metric in _METRICS},
    **{name: (("prior", name), float) for name in ("alpha", "epsilon", "exponent", "nll")},
    "seconds": (("seconds_in_all",), float),
    "trunk_cached": (("trunk", "pretrained", "cached"), _flag),
    "seeds_differ_in_test": (("seeds_differ_in_test",), _flag),
    "synthetic_images": (("synthetic_images",), _flag),
    "hardware": (("hardware",), str),
    "git_commit": (("git_commit",), str),
}
# What all runs of a row share.
_SETTINGS = {
    "method": ("method",),
    "head": ("head",),
    "cost": ("cost",),
    "lambda_ot": ("transport", "lambda_ot"),
    "lambda_label": ("transport", "lambda_label"),
}
_MACHINE_PATH = re.compile(r"(?<![\w./:~-])(?:[A-Za-z]:[\\/]|~?/)[^'\",\]}]*")


def write_archive(runs: Sequence[Run], folder: Path, command: str | None = None) -> None:
    """Write the archive of some runs into ``folder``.

    Args:
        runs: with the names of their rows; as ``Evidence.runs`` holds them, one for each row, labels and seed.
        folder: made where it is missing.
        command: the command that made the runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = [_images_of(run) for run in runs]
    sets = _test_sets(images)
    lines: list[dict[str, Any]] = []
    right: list[list[NDArray[np.uint8]]] = [[] for _ in sets]
    for run, each in zip(runs, images, strict=True):
        line = {"row": run.row} | {name: _get(run.result, path) for name, (path, _) in _COLUMNS.items()}
        if line["seconds"] is None:
            line["seconds"] = run.result.get("seconds")
        if each is not None:
            line["test_set"] = next(k for k, labels in enumerate(sets) if np.array_equal(labels, each.label))
            right[line["test_set"]].append(np.packbits(each.right))
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["row", *_COLUMNS, "test_set"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(folder / "runs.csv", text.getvalue())
    arrays: dict[str, Any] = {f"label_{k}": labels.astype(np.uint16) for k, labels in enumerate(sets)}
    arrays |= {f"right_{k}": np.stack(bits) for k, bits in enumerate(right)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    with replacing(folder / "images.npz") as file:
        file.write(buffer.getbuffer())
    provenance = json.dumps(_provenance(runs, images, command), indent=1, ensure_ascii=False)
    write_text(folder / "provenance.json", provenance + "\n")


def read_archive(folder: Path) -> list[Run]:
    """Return the runs of an archive, in its order, with the correctness of their predictions.

    :func:`jtln.reporting.evidence.gather` makes the same tables and tests of them as of the run folders.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        provenance = read_provenance(folder)
        with open(folder / "runs.csv", newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        if len(lines) != provenance["runs"]:
            raise ValueError(f"expected {provenance['runs']} runs in runs.csv, but got {len(lines)}")
        with np.load(folder / "images.npz", allow_pickle=False) as arrays:
            labels = {name.removeprefix("label_"): arrays[name] for name in arrays.files if name.startswith("label_")}
            right = {k: iter(np.unpackbits(arrays[f"right_{k}"], axis=1, count=len(labels[k]))) for k in labels}
        runs = []
        for line in lines:
            k, images = line["test_set"], None
            if k:
                images = Correctness(labels[k].astype(np.int32), next(right[k]).astype(bool))
            settings = provenance["rows"][line["dataset"]][line["row"]]
            runs.append(Run(line["row"], _result(line, settings), folder, images))
    except (OSError, ValueError, KeyError, TypeError, StopIteration, EOFError, zipfile.BadZipFile) as error:
        expected = f"expected the archive of a report ({', '.join(FILES)}) in {folder}"
        raise UserError(f"{expected}, but it cannot be read: {error!r}; copy it again") from error
    return runs


def read_provenance(folder: Path) -> dict[str, Any]:
    """Return what ``provenance.json`` of an archive holds."""
    found: dict[str, Any] = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    return found


def _images_of(run: Run) -> Correctness | None:
    try:
        return run.correctness()
    except UserError:
        return None


def _test_sets(images: Sequence[Correctness | None]) -> list[NDArray[np.int32]]:
    """Return the distinct label vectors, in the order in which they come."""
    found: dict[bytes, NDArray[np.int32]] = {}
    for each in images:
        if each is not None:
            found.setdefault(each.label.tobytes(), each.label)
    return list(found.values())


def _provenance(runs: Sequence[Run], images: Sequence[Correctness | None], command: str | None) -> dict[str, Any]:
    names: dict[str, dict[bytes, list[str]]] = {}  # of a dataset's classes, by its test images' labels
    rows: dict[str, dict[str, Any]] = {}
    for run, each in zip(runs, images, strict=True):
        dataset = run.result["dataset"]
        if each is not None and (test := each.label.tobytes()) not in names.setdefault(dataset, {}):
            names[dataset][test] = _class_names(run.folder / "split.csv", each.label)
        settings = {name: _get(run.result, path) for name, path in _SETTINGS.items()}
        settings["overrides"] = [_without_paths(override) for override in given(run.result)]
        rows.setdefault(dataset, {}).setdefault(str(run.row), settings)
    days = [_day(run.folder / "result.json") for run in runs]
    return {
        "command": None if command is None else shlex.join(map(_without_paths, shlex.split(command))),
        "date": max(filter(None, days), default=None),
        "git_commits": sorted({str(run.result["git_commit"]) for run in runs if run.result.get("git_commit")}),
        "hardware": sorted({str(run.result["hardware"]) for run in runs if run.result.get("hardware")}),
        "runs": len(runs),
        "versions": runs[0].result.get("versions"),
        "classes": {dataset: _only(found.values()) for dataset, found in names.items()},
        "rows": rows,
    }


def _only(names: Iterable[list[str]]) -> list[str]:
    """Return the names if all test sets have the same ones; none where each seed draws other classes."""
    distinct = {tuple(each) for each in names if each}
    return list(distinct.pop()) if len(distinct) == 1 else []


def _class_names(split: Path, labels: NDArray[np.int32]) -> list[str]:
    """Return the classes' names in the order of their labels; none where split.csv does not name the test images."""
    try:
        with open(split, newline="", encoding="utf-8") as file:
            names = [line["class"] for line in csv.DictReader(file) if line["part"] == "test"]
    except (OSError, KeyError, ValueError):
        return []
    if len(names) != len(labels):
        return []
    by_label = dict(zip(labels.tolist(), names, strict=True))
    return [by_label.get(label, "") for label in range(max(by_label, default=-1) + 1)]


def _day(path: Path) -> str | None:
    """Return the day on which a file was written, in UTC."""
    if not path.is_file():
        return None
    return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).date().isoformat()


def _without_paths(text: str) -> str:
    return _MACHINE_PATH.sub("PATH", text)


def _result(line: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what result.json held, as far as it is archived."""
    result: dict[str, Any] = {"target": {"val": None}, "prior": None, "settings": {}}
    for name, path in _SETTINGS.items():
        _set(result, path, settings[name])
    for name, (path, kind) in _COLUMNS.items():
        _set(result, path, kind(line[name]) if line[name] else None)
    result["seconds"] = result.get("seconds_in_all")
    own = {"dataset.shots": line["shots"], "dataset.rate": line["rate"], "seed": line["seed"]}
    result["overrides"] = [*settings["overrides"], *(f"{key}={value}" for key, value in own.items() if value)]
    return result


def _get(result: Mapping[str, Any], path: Sequence[str]) -> Any:
    found: Any = result
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _set(result: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set the value at a path; a value inside a part that is missing stays missing with it."""
    *parents, name = path
    if value is None and parents:
        return
    for parent in parents:
        if result.get(parent) is None:
            result[parent] = {}
        result = result[parent]
    result[name] = value
