"""The evidence in results: rows, intervals, and paired comparisons with their significance."""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jtln.errors import UserError
from jtln.reporting.naming import PER_RUN, Run, by_data, named
from jtln.reporting.numbers import p_value, point_range, points
from jtln.reporting.statistics import (
    Difference,
    Interval,
    bootstrap_difference,
    holm,
    paired_difference,
    t_interval,
)

ALPHA = 0.05
CONTROLS = ("uniform", "permuted")  # costs that relate no classes, and the wrong ones
BASELINES = ("consecutive", "joint")
METRICS = ("accuracy", "mean_class_accuracy", "macro_f1")


class Values(NamedTuple):
    """The test images of a run."""

    label: NDArray[np.int32]  # (N,)
    value: NDArray[np.floating[Any]]  # (N,) in percent, whose mean is the run's figure


@dataclass(frozen=True)
class Cell:
    """One row at one number of labels, in percent; the mappings go from seed to figure.

    Attributes:
        val: empty where there are no validation images.
        images: what each test image adds to the figure, its mean over the images; empty where it is not known.
        shared: whether all seeds test the same images.
    """

    test: Mapping[int, float]
    val: Mapping[int, float]
    seconds: float  # mean over the runs: see _seconds
    images: Mapping[int, Values] = field(default_factory=dict)
    shared: bool = True

    @property
    def interval(self) -> Interval:
        """The mean test figure over the seeds, with its t interval."""
        return t_interval(list(self.test.values()))


@dataclass(frozen=True)
class TableRow:
    """A method and a head with their settings, on one dataset."""

    name: str
    method: str
    head: str
    cost: str | None  # "wordnet (wup)", "permuted wordnet (wup)"; None where neither method nor head reads one
    transports: bool  # whether the objective has a transport term, or the head a transported prior
    cells: Mapping[str, Cell]  # labels in words -> cell
    command: str
    seconds: float  # mean over the runs: see _seconds

    @property
    def control(self) -> str | None:
        """The row's control in CONTROLS, or None where its cost is no control."""
        first = (self.cost or "").partition(" ")[0]
        return first if first in CONTROLS else None

    @property
    def is_candidate(self) -> bool:
        """True if the objective has a transport term, or the head a prior, under an informative cost."""
        return self.transports and self.cost is not None and self.control is None

    def is_like(self, row: TableRow) -> bool:
        """Return True if method and head are the same as in ``row``."""
        return (self.method, self.head) == (row.method, row.head)

    def is_permuted(self, row: TableRow) -> bool:
        """Return True if this is the permuted control for ``row``: the same but for its cost's shuffled columns."""
        return self.is_like(row) and row.cost is not None and self.cost == f"permuted {row.cost}"

    def controls(self, row: TableRow) -> bool:
        """Return True if this row differs from ``row`` in the cost's information and in nothing else."""
        if self.control == "uniform":
            return self.is_like(row)
        return self.is_permuted(row)


Pair = tuple[TableRow, TableRow]


@dataclass(frozen=True)
class Comparison:
    """``row`` over ``other`` by test accuracy, paired by seed, in percentage points."""

    labels: str
    row: str
    other: str
    difference: Difference
    p_holm: float
    bootstrap: bool  # whether the interval is over seeds and test images together, and not over seeds alone
    family: int  # comparisons that Holm's correction is over: those of the table, at all numbers of labels

    @property
    def is_gain(self) -> bool:
        """True if the difference is significantly above zero after the correction."""
        return self.p_holm < ALPHA and self.difference.mean > 0

    @property
    def text(self) -> str:
        """The difference as text, such as "+3.2 [1.1, 5.3], p_Holm = 0.004"."""
        mean, low, high, n, p = self.difference
        if math.isnan(low):
            return f"{points(mean)} ({n} {'pair' if n == 1 else 'pairs'})"
        corrected = p_value(self.p_holm)
        tested = "not testable" if math.isnan(p) else f"p_Holm {corrected if '<' in corrected else f'= {corrected}'}"
        return f"{points(mean)} {point_range(low, high)}, {tested}"

    @property
    def verdict(self) -> str:
        """The significance as text, such as "a significant gain"."""
        mean, low, high, n, p = self.difference
        if math.isnan(p):
            return "nothing can be tested with one seed" if n < 2 else "nothing can be tested: no spread over the seeds"
        if self.p_holm < ALPHA:
            return f"a significant {'gain' if mean > 0 else 'loss'}"
        if low > 0 or high < 0:
            kind = "gain" if mean > 0 else "loss"
            return f"no significant {kind}: the interval excludes zero, the corrected test does not"
        return "no significant gain"


@dataclass(frozen=True)
class DatasetEvidence:
    """All that is known of one dataset.

    Attributes:
        labels: numbers of labels in words, the fewest first.
        rows: in the order of the study, or of their names.
        chosen: labels -> the row that validation chose among those with a transport term or a prior under an
            informative cost; empty where there is no validation.
        claims: the chosen row, or each of them where none is chosen, over every other method and control, and each
            cost over itself with shuffled columns.
        comparisons: every row over the baselines, and informative costs over their controls, but for the pairs that
            ``claims`` holds: no pair is tested twice, and each p-value is corrected once.
    """

    dataset: str
    labels: tuple[str, ...]
    rows: tuple[TableRow, ...]
    comparisons: tuple[Comparison, ...]
    chosen: Mapping[str, str]
    claims: tuple[Comparison, ...]

    def row(self, name: str) -> TableRow:
        """Return the row called ``name``."""
        return next(row for row in self.rows if row.name == name)

    def at(self, labels: str) -> list[TableRow]:
        """Return the rows that have results with this number of labels."""
        return [row for row in self.rows if labels in row.cells]


@dataclass(frozen=True)
class Evidence:
    """Everything that a report is made of."""

    datasets: tuple[DatasetEvidence, ...]
    runs: tuple[Run, ...]
    notes: tuple[str, ...]
    metric: str


def gather(runs: Iterable[Run], against: Sequence[str] = BASELINES, metric: str = "accuracy") -> Evidence:
    """Order runs into rows, and compare the rows.

    Args:
        runs: finished ones; those without a row's name are named after method, head and cost, and where that is not
            enough after the overrides in which they differ.
        against: the baselines: names of rows, or of methods.
        metric: one of METRICS.

    Raises:
        UserError: there are no runs, or the metric is none of METRICS.
    """
    if metric not in METRICS:
        raise UserError(f"expected the metric to be one of {', '.join(METRICS)}, but got {metric}")
    runs = list(runs)
    if not runs:
        raise UserError("there are no finished runs to report on: no result.json was found")
    kept, notes = _without_repeats(named(by_data(runs)))
    by_dataset: dict[str, list[Run]] = defaultdict(list)
    for run in kept:
        by_dataset[run.result["dataset"]].append(run)
    datasets = tuple(_dataset(name, members, against, metric) for name, members in by_dataset.items())
    worse = (note for each in datasets for note in _negative_transfer(each))
    return Evidence(datasets, tuple(kept), (*notes, *_notes(kept), *worse), metric)


def labels_of(result: Mapping[str, Any]) -> str:
    """Return the number of labels as text: "1 shot", "5 shots", "15 %" or "all"."""
    shots, rate = result.get("shots"), result.get("rate")
    if shots is not None:
        return f"{shots} shot" if shots == 1 else f"{shots} shots"
    return "all" if rate is None else f"{100 * rate:g} %"


def how_many(labels: str) -> float:
    """Return the number in ``labels``, with an offset that puts shots before shares before all."""
    number = labels.split()[0]
    return math.inf if number == "all" else float(number) + (1e9 if labels.endswith("%") else 0)


def _without_repeats(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Return the newest of the runs with the same row, labels and seed, and a note on the others."""
    newest: dict[tuple[Any, ...], Run] = {}
    for run in sorted(runs, key=_age):
        newest[run.result["dataset"], run.row, labels_of(run.result), run.result["seed"]] = run
    chosen = {id(run) for run in newest.values()}
    dropped = len(runs) - len(chosen)
    notes = (
        [f"{dropped} runs repeat others with the same settings and seed; the newest of each counts."] if dropped else []
    )
    return [run for run in runs if id(run) in chosen], notes


def _age(run: Run) -> float:
    path = run.folder / "result.json"
    return path.stat().st_mtime if path.is_file() else 0.0


def _notes(runs: Sequence[Run]) -> list[str]:
    """Return notes on the limits of the evidence, for readers of the numbers."""
    notes = []
    if any(run.result.get("synthetic_images") for run in runs):
        notes.append("Synthetic images were used (debug=smoke): nothing can be concluded.")
    if named := sorted({run.result["dataset"] for run in runs if run.result.get("seeds_differ_in_test")}):
        notes.append(
            f"In {', '.join(named)} one seed tests what another validates on: what validation chose over all seeds has "
            "seen test images; a row that was named beforehand has not."
        )
    for key, what in (("git_commit", "commits of the code"), ("hardware", "kinds of hardware")):
        values = sorted({str(run.result[key]) for run in runs if run.result.get(key)})
        if len(values) > 1:
            notes.append(f"The runs were made with {len(values)} {what}: {', '.join(value[:40] for value in values)}.")
    seeds = {run.result["seed"] for run in runs}
    if len(seeds) < 5:
        notes.append(
            f"Only {len(seeds)} seed{'s' if len(seeds) > 1 else ''}: intervals are wide, and little is significant."
        )
    return notes


def _dataset(dataset: str, runs: list[Run], against: Sequence[str], metric: str) -> DatasetEvidence:
    by_row: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_row[str(run.row)].append(run)
    rows = tuple(_table_row(name, members, metric) for name, members in by_row.items())
    labels = tuple(sorted({labels_of(run.result) for run in runs}, key=how_many))
    baselines = _baselines(rows, against)
    controls = [row for row in rows if row.control]
    comparisons: list[tuple[str, Pair]] = []
    claims: list[tuple[str, Pair]] = []
    chosen: dict[str, str] = {}
    for each in labels:
        here = [row for row in rows if each in row.cells]
        candidates = [row for row in here if row.is_candidate]
        if (best := _chosen(each, candidates)) is not None:
            chosen[each] = best.name
            candidates = [best]
        wanted = [
            (row, other) for row in candidates for other in here if not (other.is_candidate and other.is_like(row))
        ]
        wanted += [(row, other) for other in controls for row in here if candidates and other.is_permuted(row)]
        pairs = [(row, other) for other in baselines for row in here if row is not other]
        pairs += [(row, other) for other in controls for row in here if row.is_candidate and row.is_like(other)]
        claimed = _once(wanted)
        claims += [(each, pair) for pair in claimed]
        comparisons += [(each, pair) for pair in _once(pairs, without=claimed)]
    return DatasetEvidence(dataset, labels, rows, tuple(_compare(comparisons)), chosen, tuple(_compare(claims)))


def _negative_transfer(evidence: DatasetEvidence) -> Iterator[str]:
    """Name the rows that are significantly below the target alone.

    The tests are corrected over all rows and numbers of labels.
    """
    alone = next((row for row in evidence.rows if row.method == "target_only"), None)
    if alone is None:
        return
    others = [(labels, (row, alone)) for labels in evidence.labels for row in evidence.at(labels) if row is not alone]
    for each in _compare(others):
        if each.p_holm < ALPHA and each.difference.mean < 0:
            yield (
                f"Negative transfer in {evidence.dataset}: {each.row} over {each.other} at {each.labels}: {each.text}."
            )


def _baselines(rows: Sequence[TableRow], against: Sequence[str]) -> list[TableRow]:
    """Return the rows that ``against`` names; a method stands for its rows with the linear head, if there are any."""
    plain = {row.method for row in rows if row.head == "linear"}
    named = [row for row in rows if row.method in against and (row.head == "linear" or row.method not in plain)]
    return [row for row in rows if row.name in against or row in named]


def _table_row(name: str, runs: list[Run], metric: str) -> TableRow:
    by_labels: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.result["seed"]):
        by_labels[labels_of(run.result)].append(run)
    cells = {
        labels: Cell(
            {run.result["seed"]: 100 * run.result["target"]["test"][metric] for run in members},
            {seed: 100 * val[metric] for seed, val in _validation(members).items()},
            _seconds(members),
            _images(members, metric),
            not any(run.result.get("seeds_differ_in_test") for run in members),
        )
        for labels, members in by_labels.items()
    }
    first = runs[0].result
    transport = first.get("transport") or {}
    transports = transport.get("lambda_ot", 0) > 0 or transport.get("lambda_label", 0) > 0 or bool(first.get("prior"))
    kind = (first["method"], first.get("head", "linear"), first.get("cost"), transports)
    return TableRow(name, *kind, cells, _command(runs), _seconds(runs))


def _validation(runs: Sequence[Run]) -> dict[int, Mapping[str, float]]:
    """Return the validation figures of each seed; nothing where a run has none."""
    found = {run.result["seed"]: run.result["target"]["val"] for run in runs}
    return found if all(found.values()) else {}


def _images(runs: Sequence[Run], metric: str) -> dict[int, Values]:
    """Return each test image's contribution to a run's figure, in percent.

    Empty for a metric that is no mean of images, or where a run has no predictions.
    """
    found: dict[int, Values] = {}
    for run in runs:
        try:
            label, right = run.correctness()
        except UserError:
            return {}
        weights = np.full(len(label), 1.0)
        if metric == "mean_class_accuracy":
            counts = np.bincount(label)
            weights = len(label) / ((counts > 0).sum() * counts[label])
        elif metric != "accuracy":
            return {}
        found[run.result["seed"]] = Values(label, 100 * weights * right)
    return found


def _difference(ours: Cell, theirs: Cell, seeds: Sequence[int]) -> tuple[Difference, bool]:
    """Return the difference of two cells: by a bootstrap where both know every image, else by a paired t test.

    And whether it is the former.
    """
    pairs = [
        (ours.images[seed], theirs.images[seed]) for seed in seeds if seed in ours.images and seed in theirs.images
    ]
    if len(pairs) == len(seeds) and all(np.array_equal(a.label, b.label) for a, b in pairs):
        shared = ours.shared and theirs.shared and all(np.array_equal(a.label, pairs[0][0].label) for a, _ in pairs)
        return bootstrap_difference([a.value - b.value for a, b in pairs], shared), True
    return paired_difference([ours.test[s] for s in seeds], [theirs.test[s] for s in seeds]), False


def _seconds(runs: Sequence[Run]) -> float:
    """Return the mean time of a run.

    Runs that trained the trunk, which all rows share, count only where there are no others.
    """
    found = [run for run in runs if (run.result.get("trunk", {}).get("pretrained") or {}).get("cached", True)]
    return fmean(run.result.get("seconds_in_all", run.result["seconds"]) for run in found or runs)


def _chosen(labels: str, candidates: Sequence[TableRow]) -> TableRow | None:
    """Return the candidate with the best mean validation figure, of those with the most seeds; never by test.

    Where one has no validation figure, none is chosen.
    """
    if not all(row.cells[labels].val for row in candidates):
        return None
    most = max((len(row.cells[labels].val) for row in candidates), default=0)
    complete = [row for row in candidates if len(row.cells[labels].val) == most]
    return max(complete, key=lambda row: sum(row.cells[labels].val.values()), default=None)


def _once(pairs: Sequence[Pair], without: Sequence[Pair] = ()) -> list[Pair]:
    """``pairs`` without repetitions, whichever row comes first, and without those of ``without``."""
    known = {frozenset((row.name, other.name)) for row, other in without}
    kept = []
    for row, other in pairs:
        if (names := frozenset((row.name, other.name))) not in known:
            known.add(names)
            kept.append((row, other))
    return kept


def _compare(pairs: Iterable[tuple[str, Pair]]) -> list[Comparison]:
    """Compare at numbers of labels, as one family: all these comparisons are corrected for one another."""
    found = []
    for labels, (row, other) in pairs:
        if labels not in other.cells:
            continue
        ours, theirs = row.cells[labels], other.cells[labels]
        if seeds := sorted(ours.test.keys() & theirs.test.keys()):
            found.append((labels, row, other, *_difference(ours, theirs, seeds)))
    adjusted = holm([difference.p for *_, difference, _ in found])
    tested = sum(not math.isnan(p) for p in adjusted)
    return [
        Comparison(labels, row.name, other.name, difference, p, bootstrap, tested)
        for (labels, row, other, difference, bootstrap), p in zip(found, adjusted, strict=True)
    ]


def _command(runs: Sequence[Run]) -> str:
    """Return the command that makes all runs of a row again: two commands for numbers and for shares of labels."""
    parts: dict[bool, list[Run]] = defaultdict(list)
    for run in runs:
        parts[any(each.startswith("dataset.rate=") for each in run.result.get("overrides", ()))].append(run)
    return " && ".join(map(_command_of, parts.values()))


def _command_of(runs: Sequence[Run]) -> str:
    everything = [list(run.result.get("overrides", ())) for run in runs]
    shared = [each for each in everything[0] if all(each in others for others in everything)]
    arguments = [each for each in shared if each.partition("=")[0] not in PER_RUN]
    varied = False
    for key in ("dataset.shots", "dataset.rate", "seed"):
        values = list(
            dict.fromkeys(v for each in everything for k, _, v in (o.partition("=") for o in each) if k == key)
        )
        if values:
            varied |= len(values) > 1
            arguments.append(f"{key}={_values(values)}")
    words = shlex.split(str(runs[0].result.get("command", "")))
    own = [part for option, folder in pairwise(words) if option == "--config-dir" for part in (option, folder)]
    return " ".join(["python train.py", *(["-m"] if varied else []), *map(shlex.quote, (*own, *arguments))])


def _values(values: list[str]) -> str:
    ordered = sorted(values, key=lambda value: (len(value), value))
    if len(ordered) > 2 and ordered == [str(index) for index in range(len(ordered))]:
        return f"range({len(ordered)})"
    return ",".join(ordered)
