"""Means with their uncertainty, paired comparisons, and Holm's correction: thin over scipy.stats."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jtln.errors import UserError

_AT_ONCE = 500  # resamples of the bootstrap that are held in memory


class Interval(NamedTuple):
    """A mean of ``n`` values with the ends of its confidence interval; the ends are NaN where n < 2."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half of its width, the number after ±."""
        return (self.high - self.low) / 2


class Difference(NamedTuple):
    """The mean of ``n`` paired differences, its confidence interval, and its p-value.

    ``p`` is NaN where nothing can be tested: fewer than two pairs, or differences that are all the same and not zero,
    whose spread is thus unknown. Differences that are all zero have p = 1.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean of ``values`` and Student's t interval for it, in their unit.

    Args:
        values: at least one; independent draws, such as the accuracies of several seeds.
        level: of confidence, in (0, 1).

    Raises:
        UserError: no values, or a level outside (0, 1).
    """
    if not values or not 0 < level < 1:
        raise UserError(f"expected one or more values and a level in (0, 1), but got {len(values)} and {level}")
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    from scipy.stats import t  # here: it takes most of a second

    half = float(t.ppf((1 + level) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def paired_difference(values: Sequence[float], others: Sequence[float], level: float = 0.95) -> Difference:
    """Return the mean excess of ``values`` over ``others``, with its t interval and two-sided paired t-test.

    A pair is two values of the same seed, say.

    Args:
        values: of length >= 1.
        others: of the same length, in the same order of pairs.
        level: of confidence, in (0, 1).

    Raises:
        UserError: lengths that differ, no values, or a level outside (0, 1).
    """
    if len(values) != len(others):
        raise UserError(f"expected values in pairs, but got {len(values)} and {len(others)}")
    differences = [value - other for value, other in zip(values, others, strict=True)]
    mean, low, high, n = t_interval(differences, level)
    if max(differences) - min(differences) <= 1e-9 * max(map(abs, (*values, *others))):  # rounding alone: no spread
        known = n > 1 and not any(differences)
        return Difference(mean, low, high, n, 1.0) if known else Difference(mean, math.nan, math.nan, n, math.nan)
    from scipy.stats import ttest_rel

    return Difference(mean, low, high, n, float(ttest_rel(values, others).pvalue))


def bootstrap_difference(
    differences: Sequence[NDArray[np.floating[Any]]], shared: bool, level: float = 0.95, resamples: int = 9999
) -> Difference:
    """Return the mean of paired differences, with an interval over draws and test images together.

    Each resample draws the draws (seeds) with replacement, and the test images with replacement: the percentile
    bootstrap of a crossed or nested design. The p-value is twice the share of resamples beyond zero. An interval over
    draws alone speaks for other draws that are tested on the same images.

    Args:
        differences: for each draw the differences of its test images (N,), whose mean is that of the draw.
        shared: whether all draws test the same images, which are then resampled for all of them together; their arrays
            are in one order.
        level: of confidence, in (0, 1).
        resamples: how many.

    Raises:
        UserError: there is no draw, or one without images, or images that are shared differ in number.
    """
    n = len(differences)
    if not n or not all(len(each) for each in differences):
        raise UserError(f"expected one or more draws with test images, but got {[len(each) for each in differences]}")
    sizes = {len(each) for each in differences}
    if shared and len(sizes) > 1:
        raise UserError(f"expected the same test images in every draw, but got {sorted(sizes)} images")
    mean = float(np.mean([each.mean() for each in differences]))
    if n < 2:
        return Difference(mean, math.nan, math.nan, n, math.nan)
    if not any(each.any() for each in differences):
        return Difference(0.0, 0.0, 0.0, n, 1.0)
    random = np.random.default_rng(0)
    if shared:
        means = _resampled_means(np.stack(differences), resamples, random)
    else:
        means = np.concatenate([_resampled_means(each[None], resamples, random) for each in differences], 1)
    weights = random.multinomial(n, np.full(n, 1 / n), size=resamples) / n
    found = (means * weights).sum(1)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    beyond = min(int((found <= 0).sum()), int((found >= 0).sum()))
    return Difference(mean, float(low), float(high), n, min(1.0, 2 * (beyond + 1) / (resamples + 1)))


def _resampled_means(
    values: NDArray[np.floating[Any]], resamples: int, random: np.random.Generator
) -> NDArray[np.floating[Any]]:
    """Return the means (resamples, n) of values (n, N) whose N columns are drawn with replacement.

    Equal columns are counted together, which changes nothing but the time: right or wrong, two classifiers differ in
    few ways.
    """
    kinds, sizes = np.unique(values, axis=1, return_counts=True)  # (n, K), (K,)
    total = values.shape[1]
    means = np.empty((resamples, len(values)))
    for start in range(0, resamples, _AT_ONCE):
        counts = random.multinomial(total, sizes / total, size=min(_AT_ONCE, resamples - start))  # (some, K)
        means[start : start + len(counts)] = counts @ kinds.T / total
    return means


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: comparing these with alpha keeps the chance of any false finding below alpha.

    Sture Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979), 65-70.

    Args:
        p_values: each in [0, 1]; NaN, a comparison that could not be tested, stays NaN and is not counted.

    Returns:
        The adjusted p-values, in the order given.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = largest
    return adjusted


def wilson_interval(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion, in [0, 1] (Wilson 1927, doi:10.2307/2276774).

    Args:
        successes: in [0, n]; need not be whole.
        n: number of trials, >= 0; of none, nothing is known: (0, 1).
        level: of confidence, in (0, 1).
    """
    if not (n >= 0 and 0 <= successes <= n and 0 < level < 1):
        raise UserError(
            f"expected 0 <= successes <= n and 0 < level < 1, but got successes={successes}, n={n}, level={level}"
        )
    if n == 0:
        return 0.0, 1.0
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def normal_interval(estimate: float, standard_error: float, level: float = 0.95) -> tuple[float, float]:
    """Return the normal interval for an estimate with a known standard error, in its unit.

    Args:
        estimate: in any unit.
        standard_error: of the estimate, >= 0.
        level: of confidence, in (0, 1).
    """
    half = statistics.NormalDist().inv_cdf((1 + level) / 2) * standard_error
    return estimate - half, estimate + half
