"""One run as one page: a self-contained ``report.html`` from the files in a run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray
from torch import Tensor

from jtln.errors import UserError
from jtln.reporting import numbers
from jtln.reporting.gallery import Gallery
from jtln.reporting.pages import MOST_BYTES, Picture, pictures, write_page
from jtln.reporting.plots import column_shares
from jtln.reporting.statistics import normal_interval, wilson_interval
from jtln.reporting.tables import Column, Table

SMALLEST_SHARE = 0.05  # of a target class's mass: what is less is not named, unless it is the largest
LEAST_SHARE = 0.005  # likewise: a class of which no other has so much is related to none
MOST_SENTENCES = 12

_PARTS = {"test": "test", "val": "validation"}
_COLUMNS = ("Images", "Accuracy", "95% interval", "Mean class accuracy", "Macro F1", "ECE")
_FILES = {"overrides.yaml": "What was set by hand", "config.yaml": "The whole configuration"}
_SHARES = {  # by result["transport"]["strongest_from"]
    "images": "the mass that the transport plans of validation images send to a target class",
    "classes": "a target class's mass in the balanced plan between the classes under the cost",
}

Facts = list[tuple[str, str]]


class Headline(NamedTuple):
    """The target's test accuracy, in [0, 1], with the ends of its interval."""

    accuracy: float
    interval: tuple[float, float] | None


class OverTargetOnly(NamedTuple):
    """Validation accuracy over that of a run that had the target alone."""

    gap: float  # percentage points
    interval: tuple[float, float] | None  # percentage points
    alone: float  # the other run's, in [0, 1]
    negative: bool  # whether the run was judged to be below


class TextFile(NamedTuple):
    """A file of the run folder, as it is."""

    title: str
    name: str
    text: str


@dataclass(frozen=True)
class RunPage:
    """The values that the template ``run.html`` shows; it leaves out those that are empty or None."""

    title: str
    facts: Facts
    headline: Headline | None
    command: str | None
    results: Table
    target_only: OverTargetOnly | None
    gallery: Gallery | None
    relations: list[str]  # a sentence for a class
    related_classes: int
    shares_of: str | None  # what the relations' shares are shares of
    transport: Facts
    calibration: Facts
    prior: Facts
    unknown: Facts  # the classes that the cost has no knowledge of, by side
    head: str
    head_fit: Facts
    plots: list[Picture]
    files: list[TextFile]
    versions: Facts


def write_report(folder: Path, result: Mapping[str, Any] | None = None, gallery: Gallery | None = None) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Args:
        result: what ``result.json`` holds, or is to hold; None reads it.
        folder: holds result.json; overrides.yaml, config.yaml and plots/*.png are shown where they exist.
        gallery: the images of the page; None leaves them out.

    Raises:
        UserError: there is no ``result.json``, or it is not a JSON object. Keys that it lacks are left out of the page.
    """
    folder = Path(folder)
    result = _read_result(folder / "result.json") if result is None else result
    path = folder / "report.html"
    write_page(path, "run.html", run_page(folder, result, gallery))
    return path


def run_page(folder: Path, result: Mapping[str, Any], gallery: Gallery | None = None) -> RunPage:
    """Collect what the page of a run shows: see :func:`write_report`."""
    transport = _mapping(result.get("transport"))
    strongest = _mapping(transport.get("strongest"))
    kept = {name: found for name, found in transport.items() if name not in ("strongest", "strongest_from")}
    room = MOST_BYTES - (0 if gallery is None else gallery.size)
    return RunPage(
        title=_title(result),
        facts=_facts(
            {name: result[name] for name in ("head", "cost", "shots", "seed") if result.get(name) is not None}
        ),
        headline=_headline(_mapping(_mapping(result.get("target")).get("test"))),
        command=str(result["command"]) if result.get("command") else None,
        results=_results(result),
        target_only=_over_target_only(_mapping(result.get("target_only"))),
        gallery=gallery,
        relations=transport_sentences(strongest, MOST_SENTENCES),
        related_classes=len(strongest),
        shares_of=_SHARES.get(str(transport.get("strongest_from"))),
        transport=_facts(kept),
        calibration=_facts(_mapping(result.get("calibration"))),
        prior=_facts({name: each for name, each in _mapping(result.get("prior")).items() if name != "folds"}),
        unknown=_unknown(_mapping(result.get("unknown_classes"))),
        head=str(result.get("head")),
        head_fit=_facts(_mapping(result.get("head_fit"))),
        plots=pictures(sorted((folder / "plots").glob("*.png")), room),
        files=[
            TextFile(title, name, (folder / name).read_text(encoding="utf-8", errors="replace"))
            for name, title in _FILES.items()
            if (folder / name).is_file()
        ],
        versions=_versions(result),
    )


def strongest_transports(
    plan: Tensor | NDArray[Any], source: Sequence[str], target: Sequence[str], top: int = 3
) -> dict[str, list[tuple[str, float]]]:
    """Return for each target class the source classes that send most of its mass, the clearest relation first.

    Args:
        plan: (S, T) masses >= 0; its columns are scaled to sum to 1.
        source: the S class names.
        target: the T class names.
        top: at most so many source classes each; of these, shares below SMALLEST_SHARE are dropped, but for the first.

    Returns:
        {target class: [(source class, share in [0, 1]), ...]}, the largest share first in both; a target class of
        which no source class has LEAST_SHARE is left out.
    """
    shares = column_shares(plan)  # (S, T)
    if shares.shape != (len(source), len(target)):
        raise UserError(f"expected a plan of shape {(len(source), len(target))}, but got {shares.shape}")
    strongest = {}
    for column, name in enumerate(target):
        order = sorted(range(len(source)), key=lambda row, column=column: -shares[row, column])[:top]  # type: ignore[misc]
        named = [(source[row], float(shares[row, column])) for row in order]
        if named and named[0][1] >= LEAST_SHARE:
            strongest[name] = named[:1] + [pair for pair in named[1:] if pair[1] >= SMALLEST_SHARE]
    return dict(sorted(strongest.items(), key=lambda item: -item[1][0][1]))


def transport_sentences(strongest: Mapping[str, Sequence[Sequence[Any] | tuple[str, float]]], limit: int) -> list[str]:
    """Return ``limit`` or fewer lines such as "Pullover is matched with Coat 0.61, T-shirt/top 0.22", as ordered."""
    return [
        f"{target} is matched with " + ", ".join(f"{source} {numbers.share(share)}" for source, share in sources)
        for target, sources in list(strongest.items())[:limit]
        if sources
    ]


# The page's sections, each empty where the result has nothing for it.


def _unknown(found: Mapping[str, Any]) -> Facts:
    """Return the classes that the cost has no knowledge of, by side."""
    sides = ((side, names) for side, names in found.items() if isinstance(names, list) and names)
    return [(f"{len(names)} {side}", ", ".join(map(str, names))) for side, names in sides]


def _headline(test: Mapping[str, Any]) -> Headline | None:
    accuracy = _number(test.get("accuracy"))
    return None if accuracy is None else Headline(accuracy, accuracy_interval(test))


def _results(result: Mapping[str, Any]) -> Table:
    rows = []
    for task in ("target", "source"):
        for part, name in _PARTS.items():
            metrics = _mapping(_mapping(result.get(task)).get(part))
            found = {key: _number(each) for key, each in metrics.items()}
            if metrics:
                interval = numbers.percent_range(accuracy_interval(metrics)) if part == "test" else ""
                cells = [numbers.count(found.get("n")), numbers.percent(found.get("accuracy")), interval]
                cells.append(numbers.percent(found.get("mean_class_accuracy")))
                cells += [numbers.decimal(found.get(key)) for key in ("macro_f1", "ece")]
                rows.append([f"{task}, {name}", *cells])
    return Table([Column("Images of"), *(Column(name, right=True) for name in _COLUMNS)], rows)


def _over_target_only(target_only: Mapping[str, Any]) -> OverTargetOnly | None:
    gap, alone, error = (_number(target_only.get(name)) for name in ("gap", "val_accuracy", "standard_error"))
    if gap is None or alone is None:
        return None
    interval = None if error is None else normal_interval(100 * gap, 100 * error)
    return OverTargetOnly(100 * gap, interval, alone, target_only.get("negative") is True)


def _versions(result: Mapping[str, Any]) -> Facts:
    facts = [(str(name), numbers.value(each)) for name, each in _mapping(result.get("versions")).items()]
    if result.get("git_commit"):
        facts.append(("git commit", numbers.value(result["git_commit"])))
    if (seconds := _number(result.get("seconds_in_all") or result.get("seconds"))) is not None:
        facts.append(("time", numbers.clock(seconds)))
    if speed := _number(result.get("images_per_second")):  # none where nothing was trained
        facts.append(("images per second", numbers.count(speed)))
    return facts


def accuracy_interval(metrics: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return Wilson's 95% interval for the accuracy of ``n`` images; None where one of them is missing or absurd."""
    accuracy, n = _number(metrics.get("accuracy")), _number(metrics.get("n"))
    if accuracy is None or n is None or n < 1 or not 0 <= accuracy <= 1 + 1e-6:
        return None
    return wilson_interval(min(round(accuracy * n), int(n)), int(n))  # the accuracy is a share of whole images


# Values of result.json, which may lack some.


def _read_result(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"expected a run folder with a result.json, but {path.parent} has none: give the folder of a finished run"
        )
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"expected JSON in {path}, but it cannot be read: {error}") from error
    if not isinstance(result, dict):
        raise UserError(f"expected a JSON object in {path}, but got a {type(result).__name__}")
    return result


def _title(result: Mapping[str, Any]) -> str:
    method, dataset = (result.get(name) for name in ("method", "dataset"))
    return " on ".join(str(name) for name in (method, dataset) if name) or "JTLN run"


def _facts(found: Mapping[str, Any]) -> Facts:
    return [(str(name).replace("_", " "), numbers.value(each)) for name, each in found.items()]


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def _number(found: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
        return None
    return float(found)
