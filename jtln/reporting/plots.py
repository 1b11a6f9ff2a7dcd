"""Pictures of a run: cost matrix, transport plan, training curves, confusion.

Every function returns a matplotlib Figure of its own, which the caller saves with ``figure.savefig``.
Nothing goes through pyplot or changes matplotlib's settings: it works headless, in threads and beside a
user's own plots. In both matrices of source against target classes, dark means related: a low cost, a large share.
"""

from __future__ import annotations

import csv
import math
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from jtln.errors import UserError
from jtln.reporting.numbers import count, percent

# A class's name may be in a script that the font lacks: its cells are drawn all the same.
warnings.filterwarnings("ignore", message="Glyph .* missing from font")

MANY_ROWS = 40  # with more source classes than this, rows are ordered so that structure shows
DPI = 150

_LARGEST_AXES = (11.0, 14.0)  # inches, width and height; margins for names and colour bar come on top
_LONGEST_NAME = 26  # characters of a class name on an axis
_FEW_CELLS = 240  # values are written into the cells up to this many
_LABEL_PITCH = 0.092  # inches between named rows at the smallest type size, 6 points
_INK, _FAINT = "#222222", "#9a9a9a"
_BLUE, _ORANGE, _GREEN = "#2f6db3", "#d9782d", "#3d8b5f"

_PANELS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (  # title, (column, label, colour)
    ("Cross-entropy", (("train/target_loss", "target", _BLUE), ("train/source_loss", "source", _ORANGE))),
    (
        "Validation accuracy",
        (("val/target/accuracy", "target", _BLUE), ("val/source/accuracy", "source", _ORANGE)),
    ),
    ("Transport loss, before its weight", (("train/ot", "transport", _GREEN),)),
    (
        "Gradient of the transport term / of the cross-entropies",
        (("train/ot_gradient_ratio", "ratio", _GREEN),),
    ),
    ("Weight of the transport term, λ", (("train/lambda_ot", "λ", _GREEN),)),
    ("Entropy of the transport plan, nats", (("train/plan_entropy", "entropy", _GREEN),)),
    ("Transport to the labels of target images, before its weight", (("train/ot_to_labels", "transport", _GREEN),)),
    ("Source predictions on target images, divergence from those before training", (("train/keep", "kept", _GREEN),)),
    ("The method's own penalty, with its weight", (("train/penalty", "penalty", _GREEN),)),
)


def cost_heatmap(
    cost: Tensor | NDArray[Any], source: Sequence[str], target: Sequence[str], title: str = "Cost"
) -> Figure:
    """Plot the cost of each source class (row) to each target class (column); dark is cheap.

    Args:
        cost: (S, T).
        source: the S class names.
        target: the T class names.
        title: above the matrix.

    With more than MANY_ROWS source classes the rows are grouped by their cheapest target class.
    """
    values = _matrix(cost, source, target)
    order = None
    if len(source) > MANY_ROWS:
        order = _grouped(values)
        title = f"{title}\nrows grouped by their cheapest target class"
    return _heatmap(values, source, target, title, "cost (dark = near, cheap)", "YlGnBu_r", order=order)


def plan_heatmap(
    plan: Tensor | NDArray[Any],
    source: Sequence[str],
    target: Sequence[str],
    title: str = "Where each target class's mass comes from",
) -> Figure:
    """Plot the share of each target class's mass (column) that each source class (row) sends; dark is much.

    Args:
        plan: (S, T) masses >= 0, such as ``plan_summary(...).mean_plan``; columns are scaled to sum to 1.
        source: the S class names.
        target: the T class names.
        title: above the matrix.

    With more than MANY_ROWS source classes the rows are grouped by the target class to which they give most.
    """
    shares = column_shares(_matrix(plan, source, target))
    order = None
    if len(source) > MANY_ROWS:
        order = _grouped(-shares)
        title = f"{title}\nrows grouped by the target class in which their share is largest"
    label = "share of the column's mass (dark = more)"
    limits = (0.0, float(shares.max()) or 1.0)
    return _heatmap(shares, source, target, title, label, "YlGnBu", order=order, limits=limits)


def column_shares(plan: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    """Return the plan (S, T) with its columns scaled to sum to 1, (S, T); a column without mass stays 0."""
    values = _array(plan)
    total = values.sum(0)  # (T,)
    return np.where(total > 0, values / np.where(total > 0, total, 1.0), 0.0)


def confusion(
    matrix: Tensor | NDArray[Any], names: Sequence[str], title: str = "Which class is taken for which"
) -> Figure:
    """Row-normalised confusion, true class in rows, predicted class in columns; a row without images is grey.

    Args:
        matrix: (T, T) counts.
        names: the T class names.
        title: above the matrix; the accuracy and the number of images are added to it.
    """
    counts = _matrix(matrix, names, names)
    total = counts.sum(1, keepdims=True)  # (T, 1)
    rates = np.where(total > 0, counts / np.where(total > 0, total, 1.0), np.nan)
    images = float(total.sum())
    if images > 0:
        title = f"{title}\naccuracy {percent(float(np.trace(counts)) / images)} of {count(images)} images"
    return _heatmap(
        rates,
        names,
        names,
        title,
        "share of the true class's images",
        "Blues",
        limits=(0.0, 1.0),
        axes=("true class", "predicted class"),
        square=True,
    )


def training_curves(metrics: Sequence[Mapping[str, float | None]] | Path | str) -> Figure:
    """Losses, validation accuracies and what the transport term did, over optimiser steps.

    Args:
        metrics: rows as the logger writes them, or the path of metrics.csv. A row holds ``step`` and any of
            train/target_loss, train/source_loss, train/ot, train/ot_gradient_ratio, train/lambda_ot,
            train/plan_entropy, train/ot_to_labels, train/keep, train/penalty, val/target/accuracy and
            val/source/accuracy; what is missing, None or not finite is passed over, and a panel without a value is left
            out.
    """
    rows = _read_metrics(Path(metrics)) if isinstance(metrics, (str, Path)) else metrics
    series = {column: _series(rows, column) for _, curves in _PANELS for column, _, _ in curves}
    panels = [(title, curves) for title, curves in _PANELS if any(series[column] for column, _, _ in curves)]
    if not panels:
        figure = Figure(figsize=(6, 2), dpi=DPI, layout="constrained")
        figure.text(0.5, 0.5, "nothing was logged", ha="center", va="center", color=_FAINT, fontsize=11)
        return figure

    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.8 * columns, 0.4 + 2.3 * lines), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.1)  # type: ignore[union-attr,call-arg]
    grid = figure.add_gridspec(lines, columns)
    smoothed = False
    last_step = max(step for points in series.values() for step in points)
    for index, (title, curves) in enumerate(panels):
        ax = figure.add_subplot(grid[divmod(index, columns)])
        for column, label, colour in curves:
            smoothed |= _curve(ax, series[column], label, colour, smooth=column != "train/lambda_ot")
        _frame(ax, title)
        ax.set_xlim(0, max(1.0, last_step))
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if index >= len(panels) - columns:
            ax.set_xlabel("step", fontsize=8.5, color=_INK)
        if title == "Validation accuracy":
            ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))
            within(ax.set_ylim, ax.get_ylim(), 1.0)
        if len(curves) > 1:
            ax.legend(fontsize=8, frameon=False, labelcolor=_INK)
    if smoothed:
        figure.supxlabel("thin: as logged; thick: running mean", fontsize=8, color=_FAINT, x=0.99, ha="right")
    return figure


# Matrices.


def _array(values: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    if isinstance(values, Tensor):
        return values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _matrix(values: Tensor | NDArray[Any], rows: Sequence[str], columns: Sequence[str]) -> NDArray[np.float64]:
    array = _array(values)
    if array.shape != (len(rows), len(columns)) or array.size == 0:
        raise UserError(
            f"expected a matrix of shape {(len(rows), len(columns))}, an entry for each pair of class names, "
            f"but got shape {array.shape}"
        )
    return array


def _grouped(distance: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the order of the rows of distance (S, T): by nearest column, the nearer row first."""
    return np.lexsort((distance.min(1), distance.argmin(1)))


def _heatmap(
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    label: str,
    colormap: str,
    *,
    order: NDArray[np.intp] | None = None,
    limits: tuple[float, float] | None = None,
    axes: tuple[str, str] = ("source class", "target class"),
    square: bool = False,
) -> Figure:
    if order is not None:
        values, rows = values[order], [rows[i] for i in order]
    few = values.size <= _FEW_CELLS and len(columns) <= 20
    row_names, column_names = [_short(name) for name in rows], [_short(name) for name in columns]
    height = min(_LARGEST_AXES[1], max(1.2, len(rows) * _pitch(len(rows), 0.36)))
    width = min(_LARGEST_AXES[0], max(2.4, len(columns) * _pitch(len(columns), 0.62 if few else 0.3)))
    if square:
        height = width = min(max(height, width), _LARGEST_AXES[0])
    row_pitch, column_pitch = height / len(rows), width / len(columns)

    # Room for the names, so that the matrix keeps its size: 0.075 inches for a character of 8 points.
    margin = 0.075 * max(map(len, row_names)) + 1.7
    longest = max(map(len, column_names))
    if 0.078 * longest < column_pitch:
        rotation, head = 0, 0.2
    elif column_pitch >= 0.3:
        rotation, head = 40, 0.055 * longest
    else:
        rotation, head = 90, 0.075 * longest
    dpi = DPI if values.size <= 40_000 else 110  # noise of many cells makes heavy files
    figure = Figure(figsize=(width + margin, height + head + 1.0), dpi=dpi, layout="constrained")
    ax = figure.add_subplot()

    if limits is None:
        limits = _limits(values)
    norm = Normalize(*limits)
    colours = colormaps[colormap].with_extremes(bad="#d0d0d0")
    image = ax.imshow(np.ma.masked_invalid(values), cmap=colours, norm=norm, aspect="equal" if square else "auto")
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    _name_ticks(ax, 0, row_names, row_pitch, axes[0])
    _name_ticks(ax, 1, column_names, column_pitch, axes[1], rotation)
    wrapped = "\n".join(textwrap.fill(line, max(20, int(11.5 * (width + margin)))) for line in title.split("\n"))
    figure.suptitle(wrapped, x=0.01, ha="left", fontsize=11, color=_INK, parse_math=False)
    ax.spines[:].set_visible(False)
    if max(len(rows), len(columns)) <= MANY_ROWS:
        ax.set_xticks(np.arange(1, len(columns)) - 0.5, minor=True)
        ax.set_yticks(np.arange(1, len(rows)) - 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=1.2)
    ax.tick_params(which="both", length=0, colors=_INK)
    if few:
        _write_values(ax, values, lambda value: colours(norm(value)), min(row_pitch, column_pitch))
    bar_height = min(1.0, 4.0 / height)
    place = ax.inset_axes((1 + 0.14 / width, 1 - bar_height, 0.14 / width, bar_height))
    bar = figure.colorbar(image, cax=place)
    bar.set_label(label, fontsize=8.5 if height > 2.4 else 7, color=_INK)
    bar.ax.tick_params(labelsize=8, colors=_INK, length=2)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _pitch(count: int, wanted: float) -> float:
    """Inches from one row to the next: as wanted for a few, down to what the smallest readable type needs."""
    return max(_LABEL_PITCH, min(wanted, 8.0 / count))


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if high - low < 1e-9 * max(1.0, abs(high)):  # a constant, such as the uniform cost
        return min(0.0, low), max(high, 0.0) or 1.0
    return low, high


def _short(name: str) -> str:
    name = " ".join(str(name).split())
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1].rstrip()}…"


def _name_ticks(ax: Axes, axis: int, names: list[str], pitch: float, label: str, rotation: int = 0) -> None:
    """Name every row (axis 0) or column (axis 1), or every k-th where they stand too close, and say so."""
    every = max(1, math.ceil(_LABEL_PITCH / pitch - 1e-6))
    shown = range(0, len(names), every)
    size = min(9.0, max(6.0, 0.8 * 72 * pitch * every))
    if every > 1:
        label = f"{label} ({len(names):,}, one in {every} named)"
    elif len(names) > MANY_ROWS:
        label = f"{label} ({len(names):,})"
    text: dict[str, Any] = {"fontsize": size, "parse_math": False}
    if axis == 0:
        ax.set_yticks(list(shown), [names[i] for i in shown], **text)
        ax.set_ylabel(label, fontsize=9, color=_FAINT)
    else:
        if rotation:
            text |= {"rotation": rotation, "rotation_mode": "anchor", "ha": "left"}
            text["va"] = "center" if rotation == 90 else "baseline"
        ax.set_xticks(list(shown), [names[i] for i in shown], **text)
        ax.set_xlabel(label, fontsize=9, color=_FAINT)


def _write_values(
    ax: Axes, values: NDArray[np.float64], colour: Callable[[float], tuple[float, ...]], pitch: float
) -> None:
    size = min(8.5, 24 * pitch)
    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value):
            continue
        red, green, blue = colour(float(value))[:3]
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        text = f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"
        ax.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if dark else _INK)


# Curves.


def _read_metrics(path: Path) -> list[dict[str, float]]:
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {name: number for name, cell in row.items() if name and (number := _number(cell)) is not None}
            for row in csv.DictReader(file)
        ]


def _number(cell: Any) -> float | None:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _series(rows: Sequence[Mapping[str, float | None]], column: str) -> dict[float, float]:
    """{step: value} by rising step; the last value of a step that was logged twice, by a resumed run."""
    points: dict[float, float] = {}
    for index, row in enumerate(rows):
        value, step = _number(row.get(column)), _number(row.get("step"))
        if value is not None:
            points[index if step is None else step] = value
    return dict(sorted(points.items()))


def _curve(ax: Axes, points: dict[float, float], label: str, colour: str, smooth: bool) -> bool:
    """Draw the points, or of many a running mean in front of the points; whether there is such a mean."""
    if not points:
        return False
    steps, values = np.array(list(points)), np.array(list(points.values()))
    half = len(values) // 50 if smooth else 0
    if half > 0:
        ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        values = np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])
    marker = "o" if len(values) <= 20 else ""
    ax.plot(steps, values, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=label, clip_on=False)
    return half > 0


def within(set_limits: Callable[[float, float], object], limits: tuple[float, float], most: float) -> None:
    """Set an axis of accuracies to its limits without what lies below 0 or above ``most``."""
    low, high = limits
    margin = 0.01 * most  # for a marker at the end
    set_limits(max(low, -margin), min(high, most + margin))


def _frame(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=9.5, color=_INK, loc="left", pad=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#bbbbbb")
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8, colors=_INK, length=0)
    ax.margins(y=0.08)
