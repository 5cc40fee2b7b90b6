"""Numbers of a report, against SciPy's on the same numbers and against examples computed otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from nnunet_genesis.study.statistics import (
    bootstrap_interval,
    differences,
    holm,
    labels_needed,
    mean_of_defined,
    paired_t,
    t_interval,
    welch,
    wilcoxon,
)

PAIRS = arrays(float, st.tuples(st.just(2), st.integers(3, 12)), elements=st.floats(0, 1).map(lambda x: round(x, 3)))


@settings(deadline=None, max_examples=30)
@given(PAIRS)
def test_tests_are_scipys(pairs):
    first, second = pairs
    change = differences(first, second)
    assert change == pytest.approx(second - first)
    if np.ptp(change) > 0:
        assert paired_t(change) == pytest.approx(stats.ttest_rel(second, first).pvalue, rel=1e-6)
        low, high = stats.ttest_rel(second, first).confidence_interval(0.95)
        assert t_interval(change) == pytest.approx((low, high), abs=1e-8)
        assert wilcoxon(change) == stats.wilcoxon(change).pvalue
        assert welch(first, second) == stats.ttest_ind(first, second, equal_var=False).pvalue


def test_a_paired_t_by_hand():
    """Student's own sleep data (1908): t = 4.0621 with 9 degrees of freedom, p = 0.002833."""
    change = np.array([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert paired_t(change) == pytest.approx(0.002833, abs=1e-6)
    assert t_interval(change) == pytest.approx((0.7001142, 2.4598858), abs=1e-7)


def test_equal_numbers_are_no_difference():
    same = np.full(5, 0.7)
    change = differences(same, same + 1e-12)
    assert (paired_t(change), wilcoxon(change), welch(same, same)) == (1.0, 1.0, 1.0)
    assert t_interval(change) == (0.0, 0.0)
    assert bootstrap_interval(change, np.random.default_rng(0)) == (0.0, 0.0)


def test_a_difference_that_does_not_vary():
    change = differences(np.zeros(5), np.full(5, 0.25))
    assert paired_t(change) < 1e-9
    assert bootstrap_interval(change, np.random.default_rng(0)) == (0.25, 0.25)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_numbers_decide_nothing(count):
    change = np.ones(count)
    assert math.isnan(paired_t(change))
    assert math.isnan(welch(change, np.ones(3)))
    assert all(map(math.isnan, [*t_interval(change), *bootstrap_interval(change, np.random.default_rng(0))]))
    assert math.isnan(wilcoxon(np.ones(0)))


def test_undefined_values_are_left_out_pairwise():
    first, second = np.array([0.1, np.nan, 0.3, 0.4]), np.array([0.2, 0.5, np.nan, 0.6])
    assert differences(first, second).tolist() == [0.1, 0.2]
    assert mean_of_defined(np.array([[1, np.nan], [np.nan, np.nan]]), -1).tolist()[0] == 1


def test_the_bootstrap_interval_is_scipys_and_the_same_every_time():
    change = np.random.default_rng(1).normal(0.1, 0.2, 30)
    found = bootstrap_interval(change, np.random.default_rng(0))
    assert found == bootstrap_interval(change, np.random.default_rng(0))
    expected = stats.bootstrap((change,), np.mean, n_resamples=20000, rng=np.random.default_rng(5)).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.01)
    assert found[0] < change.mean() < found[1]


def test_holm_by_hand():
    """Holm's own steps: 4 * 0.005, 3 * 0.01, 2 * 0.03, and 0.04, which may not be below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_could_not_be_compared_counts():
    adjusted = holm([0.02, math.nan])
    assert adjusted[0] == pytest.approx(0.04)
    assert math.isnan(adjusted[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_p_values_and_bonferronis(p_values):
    adjusted = holm(p_values)
    for p, found in zip(p_values, adjusted, strict=True):
        assert p <= found <= min(1, p * len(p_values))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_labels_needed():
    counts, scores = [4, 16, 64], np.array([0.4, 0.6, 0.8])
    assert labels_needed(counts, scores, 0.4) == 4
    assert labels_needed(counts, scores, 0.5) == pytest.approx(8)  # half-way between 4 and 16, on a log axis
    assert labels_needed(counts, scores, 0.75) == pytest.approx(64 / math.sqrt(2))
    assert labels_needed(counts, scores, 0.8) == pytest.approx(64)
    assert labels_needed(counts, scores, 0.39) == 0
    assert labels_needed(counts, scores, 0.81) == math.inf
    assert math.isnan(labels_needed(counts, scores, math.nan))
    assert math.isnan(labels_needed(counts, np.array([0.4, np.nan, 0.8]), 0.5))


def test_labels_needed_where_more_labels_were_worse():
    counts, scores = [4, 8, 16, 32], np.array([0.4, 0.7, 0.5, 0.8])  # monotone: 0.4, 0.6, 0.6, 0.8
    assert labels_needed(counts, scores, 0.6) == pytest.approx(8)
    assert labels_needed(counts, scores, 0.7) == pytest.approx(16 * math.sqrt(2))


def test_labels_needed_of_the_same_scores_summed_in_another_order():
    counts, scores = [4, 16], np.array([0.4, 0.6])
    assert labels_needed(counts, scores, 0.4 - 1e-15) == 4
    assert labels_needed(counts, scores, 0.6 + 1e-15) == pytest.approx(16)


def test_false_alarms_of_a_family():
    """Two arms without any effect, three label counts and their mean: 5 % of the families have a false alarm, or fewer."""
    rng, repeats = np.random.default_rng(0), 400
    alarms = 0
    for _ in range(repeats):
        scores = rng.normal(0, 1, (2, 3, 5)) + rng.normal(0, 1, 5)  # (arms, counts, seeds), alike within a seed
        family = [paired_t(change) for arm in scores for change in (*arm, arm.mean(0))]
        alarms += min(holm(family)) < 0.05
    assert alarms / repeats <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)
    assert alarms  # it can be wrong, as often as it says
