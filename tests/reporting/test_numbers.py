"""Rounding against decimal arithmetic, and the same text for float32 and float64."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import numpy as np
import pytest

from jtln.reporting import numbers
from jtln.reporting.statistics import Interval, t_interval

ACCURACIES = [70.1, 72.5, 69.8, 75.0, 71.3]


@pytest.mark.parametrize("images", [1, 80, 96, 1000, 4000, 4096])
def test_an_accuracy_is_rounded_as_its_counts_are(images: int) -> None:
    """In tenths of a percent, half up: exactly for counts, and the same for the float32 of torchmetrics."""
    for right in range(0, images + 1, 1 if images < 1001 else 7):
        tenths = math.floor(Fraction(1000 * right, images) + Fraction(1, 2))
        expected = f"{tenths // 10}.{tenths % 10}"
        for share in (right / images, float(np.float32(right) / np.float32(images))):
            assert numbers.hundredths(share) == expected, (right, images)
            assert numbers.percent(share) == f"{expected}%"


@pytest.mark.parametrize("digits", [2, 3])
def test_decimals_are_rounded_half_up(digits: int) -> None:
    for thousands in range(0, 10_000, 5):
        exact = Decimal(thousands) / 10_000
        expected = str(exact.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))
        assert numbers.decimal(float(np.float32(thousands / 10_000)), digits) == expected


def test_points_have_a_sign_and_zero_is_not_negative() -> None:
    assert [numbers.points(each) for each in (3.25, -0.04, 0.0, -12.349)] == ["+3.3", "+0.0", "+0.0", "-12.3"]
    assert numbers.point_range(-0.75, 7.04) == "[-0.8, 7.0]"
    assert numbers.point_range(math.nan, math.nan) == numbers.NONE


def test_what_is_missing_is_a_dash() -> None:
    for form in (numbers.percent, numbers.percent_range, numbers.decimal, numbers.count, numbers.value):
        assert form(None) == "–"
    assert numbers.p_value(math.nan) == "–"


def test_intervals_counts_and_p_values() -> None:
    assert numbers.percent_range((0.8468, 0.8693)) == "84.7–86.9%"
    assert numbers.count(4000.0) == "4,000"
    assert [numbers.p_value(p) for p in (0.0009, 0.001, 0.25)] == ["< 0.001", "0.001", "0.250"]
    assert numbers.megabytes(2_449_000) == "2.4 MB"


def test_times() -> None:
    assert [numbers.clock(s) for s in (5, 89, 600, 12000)] == ["5 s", "89 s", "10 min", "3 h 20 min"]


def test_means() -> None:
    assert numbers.mean_and_spread([1.0, 2.0], 1) == "1.5 ± 0.7"
    assert numbers.mean_and_spread([1.0], 2) == "1.00"
    assert numbers.mean_and_interval(t_interval(ACCURACIES)) == "71.7 ± 2.6"
    assert numbers.mean_and_interval(Interval(3.0, math.nan, math.nan, 1)) == "3.0"


def test_values_of_a_result() -> None:
    assert numbers.value("1/epsilon") == "1/epsilon"
    assert numbers.value(0.1134567) == "0.1135"
    assert numbers.value(["é", 1]) == '["é", 1]'
