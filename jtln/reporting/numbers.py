"""Numbers as text: tables, pages, plots and messages round them here.

Accuracies are float32 where torchmetrics computes them and float64 where counts are divided: 69 of 80 is 0.8625, or
0.862500012. Shares are therefore read to seven decimals and rounded half up, so that both are 86.3%.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from jtln.reporting.statistics import Interval

GOALS = {
    "accuracy": "maximize",
    "mean_class_accuracy": "maximize",
    "macro_f1": "maximize",
    "ece": "minimize",
}  # of the metrics
NONE = "–"  # in place of a number that is missing


def percent(share: float | None) -> str:
    """Return a share in [0, 1] as "85.8%"; a dash where there is none."""
    return NONE if share is None else f"{hundredths(share)}%"


def hundredths(share: float) -> str:
    """Return a share in [0, 1] as "85.8", for a column or an axis that says "in %"."""
    return f"{_rounded(share, 7, 3) * 100:.1f}"


def percent_range(ends: tuple[float, float] | None) -> str:
    """Return the ends of an interval of shares as "84.7–86.9%"; a dash where there is none."""
    return NONE if ends is None else f"{hundredths(ends[0])}–{percent(ends[1])}"


def points(difference: float) -> str:
    """Return a difference in percentage points as "+3.2"."""
    return f"{_rounded(difference, 9, 1):+.1f}"


def point_range(low: float, high: float) -> str:
    """Return the ends of an interval in percentage points as "[1.1, 5.3]"; a dash where there is none."""
    return NONE if math.isnan(low) else f"[{_rounded(low, 9, 1):.1f}, {_rounded(high, 9, 1):.1f}]"


def decimal(value: float | None, digits: int = 3) -> str:
    """Return "0.856"; a dash where there is no number."""
    return NONE if value is None else f"{_rounded(value, 7, digits):.{digits}f}"


def share(value: float) -> str:
    """Return a share or a probability in [0, 1] as "0.61"."""
    return decimal(value, 2)


def count(number: float | None) -> str:
    """Return "4,000"; a dash where there is no number."""
    return NONE if number is None else f"{number:,.0f}"


def p_value(p: float) -> str:
    """Return "0.004" or "< 0.001"; a dash where nothing was tested."""
    return NONE if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def clock(seconds: float) -> str:
    """Return a time as "45 s", "12 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def megabytes(size: int) -> str:
    """Return a number of bytes as "2.4 MB"."""
    return f"{size / 1e6:.1f} MB"


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Return mean and standard deviation as "74.3 ± 1.2"; the mean alone of one value."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def mean_and_interval(interval: Interval, digits: int = 1) -> str:
    """Return mean and half the interval's width as "74.3 ± 1.2"; the mean alone where there is no interval."""
    mean = f"{interval.mean:.{digits}f}"
    return mean if math.isnan(interval.low) else f"{mean} ± {interval.half:.{digits}f}"


def value(found: Any) -> str:
    """Return any value of result.json for a list of names and values: numbers to four significant digits."""
    if isinstance(found, str):
        return found
    if found is None:
        return NONE
    if isinstance(found, float):
        return f"{found:.4g}"
    return json.dumps(found, ensure_ascii=False)


def _rounded(number: float, known: int, digits: int) -> Decimal:
    """Round half up to ``digits`` decimals a number of which ``known`` decimals are right; never a negative zero."""
    if not math.isfinite(number):
        return Decimal(number)
    exact = Decimal(repr(round(number, known)))
    return exact.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP) + 0
