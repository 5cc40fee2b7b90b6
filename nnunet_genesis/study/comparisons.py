"""Results → every arm against the first one: paired differences with intervals and tests, and which of them count."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from nnunet_genesis.study.results import LOWER_IS_BETTER, MAIN, METRICS, Array, Results
from nnunet_genesis.study.statistics import (
    DIGITS,
    LEVEL,
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

RESAMPLES_OF_SEEDS = 2000


@dataclass(frozen=True)
class Comparison:
    """An arm against the first one; the difference is arm - first arm, over complete pairs.

    Attributes:
        arm: The arm.
        count: Number of labeled cases; None: the mean over all of them.
        metric: Dice, NSD or HD95.
        label: Name of the label; None: the mean over all of them.
        pairs: Seeds of which both runs are finished (with every number of labels, if `count` is None).
        better: Seeds in which the arm is better.
        cases: Test cases with a defined difference.
        left_out: Values (of a seed, case and label) left out because one of the arms has none.
        first, second: Means of the first arm and of this one.
        difference, low, high: Mean difference over seeds, and Student's interval.
        p_t: Paired t over seeds.
        p_holm: The same, adjusted for all comparisons of the family; NaN outside of the family.
        p_welch: Welch's t over seeds, not paired, as in the papers.
        p_wilcoxon: Wilcoxon's signed ranks over test cases, of means over seeds.
        case_difference, case_low, case_high: Mean difference over test cases, and its bootstrap interval; not quite
            `difference` where values are left out.
    """

    arm: str
    count: int | None
    metric: str
    label: str | None
    pairs: int
    better: int
    cases: int
    left_out: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    p_t: float
    p_holm: float
    p_welch: float
    p_wilcoxon: float
    case_difference: float
    case_low: float
    case_high: float

    @property
    def in_family(self) -> bool:
        """Whether conclusions are drawn from it: mean Dice over labels."""
        return self.metric == MAIN and self.label is None


def run_means(scores: Array) -> Array:
    """(…, cases, labels) → (…): mean over cases of each label, then over labels, as nnU-Net's foreground mean."""
    return mean_of_defined(mean_of_defined(scores, -2), -1)


def compare_all(results: Results) -> list[Comparison]:
    """Every arm against the first one: every metric, the mean over labels and every label, every label count and all.

    The family of comparisons that Holm's method adjusts for: mean Dice over labels, of every arm, with every number of
    labels and, if there are several, their mean. One that cannot be made yet counts as well.
    """
    study = results.study
    counts = [*study.labels, *([None] if len(study.labels) > 1 else [])]
    made = [
        compare(results, arm, count, metric, label)
        for metric in METRICS
        for label in [None, *results.labels]
        for arm in list(study.arms)[1:]
        for count in counts
    ]
    family = [n for n, one in enumerate(made) if one.in_family]
    for n, adjusted in zip(family, holm([made[n].p_t for n in family]), strict=True):
        made[n] = replace(made[n], p_holm=adjusted)
    return made


def compare(results: Results, arm: str, count: int | None, metric: str, label: str | None) -> Comparison:
    """One comparison, not adjusted for others."""
    first, second, left_out = paired_scores(results, arm, count, metric, label)
    runs = [run_means(scores).mean(axis=0) for scores in (first, second)]
    cases = [mean_of_defined(mean_of_defined(scores, -1), (0, 1)) for scores in (first, second)]
    change, change_of_cases = differences(*runs), differences(*cases)
    low, high = t_interval(change)
    case_low, case_high = bootstrap_interval(change_of_cases, np.random.default_rng(0))
    better = change < 0 if metric in LOWER_IS_BETTER else change > 0
    means = [float(mean_of_defined(values, 0)) for values in (*runs, change, change_of_cases)]
    return Comparison(
        arm, count, metric, label, len(change), int(better.sum()), len(change_of_cases), left_out, means[0], means[1],
        means[2], low, high, paired_t(change), math.nan, welch(*runs), wilcoxon(change_of_cases), means[3], case_low,
        case_high,
    )  # fmt: skip


def paired_scores(
    results: Results, arm: str, count: int | None, metric: str, label: str | None = None
) -> tuple[Array, Array, int]:
    """Scores of the first arm and of another one, NaN in both where one is not defined; how many these are.

    Returns:
        Twice (label counts, complete seeds, cases, labels), and the number of values left out.
    """
    study = results.study
    which = slice(None) if count is None else slice(n := study.labels.index(count), n + 1)
    labels = slice(None) if label is None else slice(n := results.labels.index(label), n + 1)
    places = [0, list(study.arms).index(arm)]
    seeds = results.finished[places, which].all(axis=(0, 1))
    first, second = (results.scores[metric][place, which][:, seeds][..., labels] for place in places)
    undefined = np.isnan(first) | np.isnan(second)
    return np.where(undefined, np.nan, first), np.where(undefined, np.nan, second), int(undefined.sum())


@dataclass(frozen=True)
class Equivalence:
    """With `count` labels, an arm scores as the first arm does with `labels`: 0 and inf lie outside of `counts`."""

    arm: str
    count: int
    labels: float
    low: float
    high: float
    seeds: int
    counts: list[int]


def equivalences(results: Results) -> list[Equivalence]:
    """How many labels the first arm needs to score as the others do, with bootstrap intervals over seeds.

    Only seeds of which all runs of the first arm are finished are looked at.
    """
    study, means = results.study, run_means(results.scores[MAIN])
    found = []
    for a, arm in list(enumerate(study.arms))[1:]:
        for n, count in enumerate(study.labels):
            seeds = np.flatnonzero(results.finished[0].all(axis=0) & results.finished[a, n])
            if not len(seeds):
                continue
            rng = np.random.default_rng(0)
            draws = [seeds, *rng.choice(seeds, (RESAMPLES_OF_SEEDS, len(seeds)))]
            needed = np.array(
                [labels_needed(study.labels, means[0][:, drawn].mean(1), means[a, n, drawn].mean()) for drawn in draws]
            )
            ends = np.quantile(needed[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
            low, high = ends if len(seeds) > 1 else (math.nan, math.nan)
            ends = float(needed[0]), float(low), float(high)
            found.append(Equivalence(arm, count, *ends, len(seeds), study.labels))
    return found


@dataclass(frozen=True)
class Speed:
    """How fast an arm learns with `count` labels.

    Attributes:
        arm: The arm.
        count: Number of labeled cases.
        share: Share of the steps after which it has the first arm's final score: a tenth or more; infinite if it never
            has, NaN if scores are not defined.
        final: Its own final score: mean Dice on patches in the last tenth of the training.
        gain: How much that is above the tenth before: near 0 if the training has converged.
        seeds: Number of runs.
    """

    arm: str
    count: int
    share: float
    final: float
    gain: float
    seeds: int


def speeds(results: Results) -> list[Speed]:
    """How fast every arm learns, the first one included: mean curves over the seeds that both have finished.

    A score at a step is the mean over the tenth of the training before it, in every arm, so that a lucky epoch reaches
    nothing.
    """
    study, dice = results.study, results.curves["dice"]
    window = tenth(len(results.steps))
    found = []
    for n, count in enumerate(study.labels):
        for a, arm in enumerate(study.arms):
            seeds = results.finished[0, n] & results.finished[a, n]
            if not seeds.any():
                continue
            first, own = (_trailing_mean(mean_of_defined(dice[arm_, n, seeds], 0), window) for arm_ in (0, a))
            reached = np.flatnonzero(np.round(own - first[-1], DIGITS) >= 0)
            never = math.nan if np.isnan(own[-1] - first[-1]) else math.inf
            share = results.steps[reached[0]] / results.steps[-1] if len(reached) else never
            before = own[-1 - window] if len(own) > window else math.nan
            found.append(Speed(arm, count, float(share), float(own[-1]), float(own[-1] - before), int(seeds.sum())))
    return found


def tenth(epochs: int) -> int:
    """Epochs in a tenth of a training, at least one."""
    return max(1, round(epochs / 10))


def _trailing_mean(curve: Array, window: int) -> Array:
    """Mean of each value and those before it, `window` in all; NaN where there are too few."""
    sums = np.convolve(curve, np.ones(window), "valid") / window
    return np.concatenate([np.full(window - 1, np.nan), sums])
