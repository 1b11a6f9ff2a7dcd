"""Accuracy against the number of labels, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from jtln.reporting.evidence import DatasetEvidence, TableRow, how_many
from jtln.reporting.plots import within
from jtln.reporting.statistics import Interval

DPI = 150
_INK, _FAINT = "#222222", "#8a8f94"
# Okabe and Ito's colours, which colour-blind readers tell apart, without yellow; then by marker.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6a5acd", "#8b5a2b", "#777777")
_MARKERS = "osD^vPX<>"


def accuracy_plot(evidence: DatasetEvidence, metric: str = "accuracy") -> Figure:
    """Return test accuracy in percent over the number of labels: means and 95% t intervals, cut off at 0 and 100.

    One panel has the methods without transport terms, the other those with them, by cost. With one number of labels the
    rows stand below one another.
    """
    chosen = set(evidence.chosen.values())
    methods = [row for row in evidence.rows if not row.is_candidate and not row.control]
    costs = [row for row in evidence.rows if row.is_candidate or row.control]
    best = [row for row in costs if row.name in chosen]
    reference = [row for row in methods if _is_fine_tuning(row)]
    panels = [
        ("Methods", [*methods, *best] if methods else []),
        ("Transport terms, by cost (controls hollow)", [*costs, *reference] if costs else []),
    ]
    panels = [(title, rows) for title, rows in panels if rows]
    name = f"Test {metric.replace('_', ' ')} in %, mean and 95% interval: {evidence.dataset}"
    if len(evidence.labels) == 1:
        return _below_one_another(panels, evidence.labels[0], name)
    figure = Figure(figsize=(8.4, 0.3 + 3.9 * len(panels)), dpi=DPI, layout="constrained")
    figure.suptitle(name, fontsize=10.5, color=_INK, x=0.01, ha="left")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (title, rows) in zip(axes, panels, strict=True):
        places = _places(evidence.labels)
        for index, row in enumerate(rows):
            offset = (index - (len(rows) - 1) / 2) / max(1, len(rows))
            _line(ax, row, evidence.labels, places, offset, _style(row, index, rows[0] in methods))
        ax.set_xticks(places, [_short(labels) for labels in evidence.labels])
        ax.xaxis.set_minor_locator(NullLocator())
        _frame(ax, title, "y")
        within(ax.set_ylim, ax.get_ylim(), 100.0)
        ax.legend(fontsize=8, frameon=False, labelcolor=_INK, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes[-1].set_xlabel("labelled images a class", fontsize=9, color=_INK)
    return figure


def _line(ax: Axes, row: TableRow, labels: Sequence[str], places: Sequence[float], offset: float, style: Any) -> None:
    """Plot a row's means with their intervals, moved sideways a little so that intervals do not hide one another."""
    step = min((b - a for a, b in pairwise(places)), default=1.0)
    points = [
        (place + 0.32 * step * offset, row.cells[each].interval)
        for place, each in zip(places, labels, strict=True)
        if each in row.cells
    ]
    x, intervals = [place for place, _ in points], [interval for _, interval in points]
    ax.errorbar(x, [each.mean for each in intervals], yerr=_ends(intervals), label=row.name, **style)


def _below_one_another(panels: list[tuple[str, list[TableRow]]], labels: str, title: str) -> Figure:
    """Plot a dot and an interval a row."""
    heights = [len(rows) for _, rows in panels]
    figure = Figure(figsize=(7.4, 0.9 + 0.34 * (sum(heights) + 2 * len(heights))), dpi=DPI, layout="constrained")
    figure.suptitle(f"{title}, {labels}", fontsize=10.5, color=_INK, x=0.01, ha="left")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for ax, (name, rows) in zip(axes, panels, strict=True):
        for index, row in enumerate(rows):
            interval = row.cells[labels].interval
            style = _style(row, index, not any(each.control for each in rows))
            ax.errorbar([interval.mean], [index], xerr=_ends([interval]), **style)
        ax.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=9, parse_math=False)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        _frame(ax, name, "x")
    within(axes[0].set_xlim, axes[0].get_xlim(), 100.0)  # the panels share it
    return figure


def _ends(intervals: Sequence[Interval]) -> list[list[float]]:
    """Return how far each interval reaches below and above its mean (2, N), where an accuracy can be: in [0, 100]."""
    below = [0.0 if math.isnan(each.low) else each.mean - max(0.0, each.low) for each in intervals]
    above = [0.0 if math.isnan(each.high) else min(100.0, each.high) - each.mean for each in intervals]
    return [below, above]


def _style(row: TableRow, index: int, alone: bool) -> dict[str, Any]:
    """Return a row's colour, marker and lines; with ``alone`` a candidate is in ink."""
    colour = _FAINT if _is_fine_tuning(row) else _COLOURS[index % len(_COLOURS)]
    if alone and row.is_candidate:
        colour = _INK
    return {
        "color": colour,
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 4.5,
        "markerfacecolor": "white" if row.control else colour,
        "linewidth": 2.2 if row.is_candidate else 1.4,
        "linestyle": "--" if row.control else "-",
        "elinewidth": 1.1,
        "capsize": 2.0,
    }


def _is_fine_tuning(row: TableRow) -> bool:
    return (row.method, row.head) == ("consecutive", "linear")


def _places(labels: Sequence[str]) -> list[float]:
    """Return the numbers of labels' places on the axis: their logarithms if all are of one kind, else even steps."""
    numbers = [how_many(each) for each in labels]
    kinds = {each.endswith("%") for each in labels}
    if len(kinds) == 1 and all(math.isfinite(number) for number in numbers):
        return [math.log2(number - (1e9 if kinds == {True} else 0)) for number in numbers]
    return [float(index) for index in range(len(labels))]


def _short(labels: str) -> str:
    return labels.removesuffix("s").removesuffix(" shot")


def _frame(ax: Axes, title: str, grid: str) -> None:
    ax.set_title(title, fontsize=9.5, color=_INK, loc="left", pad=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#bbbbbb")
    ax.grid(axis=grid, color="#e6e6e6", linewidth=0.8)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8.5, colors=_INK, length=0)
