"""Against scipy's own tests and against definitions written out."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from jtln.errors import UserError
from jtln.reporting.statistics import (
    bootstrap_difference,
    holm,
    normal_interval,
    paired_difference,
    t_interval,
    wilson_interval,
)

ACCURACIES = [70.1, 72.5, 69.8, 75.0, 71.3]
OTHERS = [68.0, 72.9, 66.1, 70.2, 70.9]


def test_the_bootstrap_against_its_variance_in_closed_form() -> None:
    """Draws that each test images of their own: the variance is that of the draws' means, and of images within them."""
    draw = np.random.default_rng(1)
    differences = [3 + 2 * draw.standard_normal() + 5 * draw.standard_normal(60) for _ in range(12)]
    found = bootstrap_difference(differences, shared=False)
    means = np.array([each.mean() for each in differences])
    variance = means.var() / 12 + np.mean([each.var() / 60 for each in differences]) / 12
    assert found.mean == pytest.approx(means.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.05)
    assert found.p == pytest.approx(2 * stats.norm.sf(means.mean() / math.sqrt(variance)), abs=0.01)


def test_images_that_all_draws_share_widen_the_interval() -> None:
    """What is hard for one draw is hard for all: resampling images alone would not know, nor draws alone."""
    draw = np.random.default_rng(2)
    image = 8 * draw.standard_normal(50)
    differences = [1 + image + draw.standard_normal(50) for _ in range(10)]
    shared, apart = (bootstrap_difference(differences, shared) for shared in (True, False))
    average = np.mean(differences, axis=0)
    expected = 2 * 1.96 * math.sqrt(average.var() / 50)
    assert shared.high - shared.low == pytest.approx(expected, rel=0.08)
    assert shared.high - shared.low > 2 * (apart.high - apart.low)


def test_what_the_bootstrap_cannot_judge() -> None:
    one = bootstrap_difference([np.array([1.0, 3.0])], shared=True)
    assert (one.mean, one.n) == (2.0, 1)
    assert math.isnan(one.p)
    assert bootstrap_difference([np.zeros(4), np.zeros(4)], shared=True) == (0.0, 0.0, 0.0, 2, 1.0)
    with pytest.raises(UserError, match="one or more draws"):
        bootstrap_difference([], shared=True)
    with pytest.raises(UserError, match=r"same test images in every draw, but got \[3, 4\]"):
        bootstrap_difference([np.ones(3), np.ones(4)], shared=True)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_t_interval_against_scipy(level: float) -> None:
    interval = t_interval(ACCURACIES, level)
    reference = stats.ttest_1samp(ACCURACIES, 0.0).confidence_interval(level)
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high))
    assert interval.mean == pytest.approx(np.mean(ACCURACIES))
    assert interval.n == 5


def test_t_interval_of_two_values_in_closed_form() -> None:
    """With one degree of freedom Student's t is Cauchy's distribution: its quantile is tan(pi (q - 1/2))."""
    interval = t_interval([1.0, 2.0], 0.95)
    half = math.tan(math.pi * 0.475) * 0.5
    assert (interval.low, interval.high) == pytest.approx((1.5 - half, 1.5 + half))
    assert interval.half == pytest.approx(half)


def test_one_value_has_no_interval() -> None:
    interval = t_interval([3.0])
    assert interval.mean == 3.0
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_paired_difference_against_scipy() -> None:
    difference = paired_difference(ACCURACIES, OTHERS)
    reference = stats.ttest_rel(ACCURACIES, OTHERS)
    assert difference.p == pytest.approx(reference.pvalue)
    interval = reference.confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
    assert difference.mean == pytest.approx(np.mean(ACCURACIES) - np.mean(OTHERS))
    mirrored = paired_difference(OTHERS, ACCURACIES)
    assert (mirrored.mean, mirrored.low, mirrored.p) == pytest.approx(
        (-difference.mean, -difference.high, difference.p)
    )


def test_p_value_and_interval_say_the_same() -> None:
    """The 95 % interval's end is zero exactly where p = 0.05."""
    values = np.array(ACCURACIES) - t_interval(ACCURACIES).low
    assert paired_difference(list(values), [0.0] * 5).p == pytest.approx(0.05)


def test_what_has_no_spread_is_not_tested() -> None:
    same = paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert same == (0.0, 0.0, 0.0, 3, 1.0)
    shifted = paired_difference([1.5, 2.5], [1.0, 2.0])
    assert shifted.mean == 0.5
    assert all(map(math.isnan, (shifted.low, shifted.high, shifted.p)))
    assert math.isnan(paired_difference([1.0], [1.0]).p)
    assert math.isnan(paired_difference([0.1 + 0.2, 1.3], [0.2, 1.2]).p)  # 0.1 but for rounding


def closed_testing(p_values: list[float]) -> list[float]:
    """Holm's adjusted p is the largest of Bonferroni's p over all intersections that a hypothesis is in."""
    n = len(p_values)
    subsets = [subset for size in range(1, n + 1) for subset in combinations(range(n), size)]
    return [
        max(min(1.0, len(subset) * min(p_values[i] for i in subset)) for subset in subsets if index in subset)
        for index in range(n)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_the_closed_test_of_bonferroni(seed: int) -> None:
    p_values = list(np.random.default_rng(seed).random(6) ** 3)
    assert holm(p_values) == pytest.approx(closed_testing(p_values))


def test_holm_leaves_out_what_was_not_tested() -> None:
    assert holm([0.04, math.nan, 0.01])[::2] == pytest.approx([0.04, 0.02])
    assert math.isnan(holm([0.04, math.nan, 0.01])[1])
    assert holm([]) == []
    assert holm([0.5, 0.9]) == [1.0, 1.0]


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_normal_interval_against_scipy(level: float) -> None:
    assert normal_interval(3.1, 2.0, level) == pytest.approx(stats.norm.interval(level, 3.1, 2.0))


def test_mistakes() -> None:
    with pytest.raises(UserError, match="one or more values"):
        t_interval([])
    with pytest.raises(UserError, match="level in"):
        t_interval([1.0], 1.0)
    with pytest.raises(UserError, match="in pairs, but got 1 and 2"):
        paired_difference([1.0], [1.0, 2.0])


@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (1, 1), (0, 1), (858, 1000), (9999, 10000)])
def test_wilson_interval_against_scipy(k: int, n: int, level: float) -> None:
    expected = stats.binomtest(k, n).proportion_ci(confidence_level=level, method="wilson")
    assert wilson_interval(k, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_of_nothing_and_of_nonsense() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    low, high = wilson_interval(2.5, 10)
    assert wilson_interval(2, 10)[0] < low < 0.25 < high < wilson_interval(3, 10)[1]
    for successes, n, level in [(-1, 10, 0.95), (11, 10, 0.95), (1, -1, 0.95), (1, 2, 1.0), (float("nan"), 2, 0.95)]:
        with pytest.raises(UserError, match="expected 0 <= successes <= n"):
            wilson_interval(successes, n, level)
