"""Paired numbers of two arms → differences, intervals and p values: SciPy's, and what they are where it has none."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from scipy import optimize, stats

Array = np.ndarray[Any, Any]
LEVEL = 0.95
"""Of all intervals; 1 - LEVEL is the rate of false alarms."""
DIGITS = 9
"""Differences are rounded to so many decimals, so that equal numbers, summed in another order, are equal."""
RESAMPLES = 4999


@contextmanager
def _silently() -> Iterator[None]:
    """Warnings on numbers that do not vary, or are too few, say what the callers here look at themselves."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def mean_of_defined(values: Array, axis: int | tuple[int, ...]) -> Array:
    """Mean along axes, without NaN; NaN where nothing else is."""
    with _silently():
        return np.asarray(np.nanmean(values, axis=axis))


def spread_of_defined(values: Array) -> float:
    """Standard deviation (n - 1) without NaN; NaN of fewer than two numbers."""
    with _silently():
        return float(np.nanstd(values, ddof=1))


def differences(first: Array, second: Array) -> Array:
    """`second - first` of the pairs (n,) in which both are defined."""
    found = np.round(np.asarray(second, float) - np.asarray(first, float), DIGITS)
    return np.asarray(found[np.isfinite(found)])


def t_interval(values: Array) -> tuple[float, float]:
    """Student's interval of the mean; NaN of fewer than two numbers."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return math.nan, math.nan
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values)
    return float(values.mean() - half), float(values.mean() + half)


def paired_t(change: Array) -> float:
    """Two-sided p of paired differences (n,), as `ttest_rel` of the pairs: 1 if all are 0, NaN of fewer than two."""
    if len(change) < 2:
        return math.nan
    if not change.any():
        return 1.0
    with _silently():
        return float(stats.ttest_1samp(change, 0).pvalue)


def welch(first: Array, second: Array) -> float:
    """Two-sided p of two groups with variances of their own: 1 if all numbers are equal, NaN of fewer than two."""
    first, second = (group[np.isfinite(group)] for group in (first, second))
    if min(len(first), len(second)) < 2:
        return math.nan
    if np.ptp(np.concatenate([first, second])) == 0:
        return 1.0
    with _silently():
        return float(stats.ttest_ind(first, second, equal_var=False).pvalue)


def wilcoxon(change: Array) -> float:
    """Two-sided p of the signed ranks of paired differences (n,): 1 if all are 0, NaN if there are none."""
    if not len(change):
        return math.nan
    if not change.any():
        return 1.0
    with _silently():
        return float(stats.wilcoxon(change).pvalue)


def bootstrap_interval(change: Array, rng: np.random.Generator) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval of the mean; NaN of fewer than two numbers."""
    if len(change) < 2:
        return math.nan, math.nan
    if np.ptp(change) == 0:
        return float(change[0]), float(change[0])
    with _silently():
        found = stats.bootstrap(
            (change,), np.mean, n_resamples=RESAMPLES, batch=500, confidence_level=LEVEL, method="BCa", rng=rng
        )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm 1979) of a family; one that is NaN counts as a comparison, with p = 1, and stays NaN."""
    known = [1.0 if math.isnan(p) else p for p in p_values]
    adjusted, largest = [math.nan] * len(known), 0.0
    for rank, place in enumerate(sorted(range(len(known)), key=known.__getitem__)):
        largest = max(largest, min(1.0, (len(known) - rank) * known[place]))
        adjusted[place] = math.nan if math.isnan(p_values[place]) else largest
    return adjusted


def labels_needed(counts: Sequence[int], scores: Array, wanted: float) -> float:
    """With how many labels a label curve reaches a score; 0 below its first point, infinite above its last one.

    The curve is made monotone (isotonic regression) and drawn straight over the logarithm of the label count.

    Args:
        counts: Numbers of labels, ascending.
        scores: Scores (n,) with that many.
        wanted: The score to reach.
    """
    if math.isnan(wanted) or np.isnan(scores).any():
        return math.nan
    curve = np.round(optimize.isotonic_regression(scores).x, DIGITS)
    wanted = round(wanted, DIGITS)
    if wanted < curve[0]:
        return 0.0
    if wanted > curve[-1]:
        return math.inf
    above = int(np.argmax(curve >= wanted))  # the first of equal points: no more labels than needed
    if above == 0:
        return float(counts[0])
    part = (wanted - curve[above - 1]) / (curve[above] - curve[above - 1])
    low, high = math.log(counts[above - 1]), math.log(counts[above])
    return math.exp(low + part * (high - low))
