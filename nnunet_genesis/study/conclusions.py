"""Comparisons → what may be concluded, in words, and what may not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_genesis.errors import printable
from nnunet_genesis.study.comparisons import Comparison, Equivalence, Speed
from nnunet_genesis.study.design import Study
from nnunet_genesis.study.results import LOWER_IS_BETTER, Results
from nnunet_genesis.study.statistics import LEVEL

BETTER, WORSE, NOT_SHOWN, NOT_TESTED = "better", "worse", "no difference shown", "not tested"
FEW_SEEDS, STILL_LEARNING = 5, 0.01
"""Below so many seeds, and above such a gain of mean Dice in the last tenth of the training, a caution is given."""
INTERVAL = f"{LEVEL:.0%} interval".replace("%", " %")


@dataclass(frozen=True)
class Conclusion:
    """What is said of an arm: a headline, and sentences that may follow from it."""

    arm: str
    headline: str
    sentences: list[str]


def verdict(comparison: Comparison) -> str:
    """Whether an arm is better than the first one, after the correction for all comparisons."""
    if math.isnan(comparison.p_holm):
        return NOT_TESTED
    if comparison.p_holm >= 1 - LEVEL:
        return NOT_SHOWN
    return BETTER if (comparison.difference > 0) != (comparison.metric in LOWER_IS_BETTER) else WORSE


def conclude(
    study: Study, comparisons: Sequence[Comparison], equivalences: Sequence[Equivalence], speeds: Sequence[Speed]
) -> list[Conclusion]:
    """What may be concluded of every arm but the first."""
    first, *others = study.arms
    found = []
    for arm in others:
        own = [one for one in comparisons if one.arm == arm and one.in_family]
        own.sort(key=lambda one: one.count or 0)  # their mean first
        sentences = [_in_words(one, first) for one in own]
        if any(verdict(one) == NOT_SHOWN for one in own):
            sentences.append("Where no difference is shown, those within the interval remain possible.")
        sentences += [_over_cases(own[0])] if own[0].cases else []
        sentences += _worth(first, [one for one in equivalences if one.arm == arm])
        sentences += _speed(first, [one for one in speeds if one.count == study.labels[-1]], arm)
        found.append(Conclusion(arm, _headline(own, first), sentences))
    return found


def _headline(own: Sequence[Comparison], first: str) -> str:
    """E.g. `genesis: better than scratch (all label counts, 4 labels)`."""
    verdicts = [verdict(one) for one in own]
    said = []
    for which in (BETTER, WORSE):
        where = [count_in_words(one) for one, found in zip(own, verdicts, strict=True) if found == which]
        said += [f"{which} than {first} ({', '.join(where)})"] * bool(where)
    nothing = NOT_TESTED if set(verdicts) == {NOT_TESTED} else f"{NOT_SHOWN} against {first}"
    return f"{own[0].arm}: {'; '.join(said) or nothing}"


def count_in_words(comparison: Comparison) -> str:
    """Which label count a comparison is of."""
    if comparison.count is None:
        return "all label counts"
    return counted(comparison.count, "label")


def counted(number: int, noun: str) -> str:
    """E.g. `1 label`, `4 labels`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _in_words(one: Comparison, first: str) -> str:
    where = "On average over all label counts" if one.count is None else f"With {count_in_words(one)}"
    found = verdict(one)
    if found == NOT_TESTED:
        return f"{where}: {NOT_TESTED}; it takes two complete pairs of runs at least, and there are {one.pairs}."
    facts = (
        f"mean Dice {one.second:.3f} against {one.first:.3f}, {signed(one.difference)} ({INTERVAL} {signed(one.low)} "
        f"to {signed(one.high)}; {p_in_words(one.p_holm)} after correction; higher in {one.better} of {one.pairs} "
        "seeds)"
    )
    if found == NOT_SHOWN:
        return f"{where}: {NOT_SHOWN}; {facts}."
    return f"{where}: {found} than {first}; {facts}."


def _over_cases(one: Comparison) -> str:
    """The other question: these networks, other cases."""
    where = f"{counted(one.cases, 'test case')}, {count_in_words(one)}"
    return (
        f"Would these very networks differ on other cases? Over {where}: {signed(one.case_difference)} (bootstrap "
        f"{INTERVAL} {signed(one.case_low)} to {signed(one.case_high)}; Wilcoxon {p_in_words(one.p_wilcoxon)}, not "
        "corrected)."
    )


def _worth(first: str, found: Sequence[Equivalence]) -> list[str]:
    """Label equivalence of an arm."""
    said = [f"{one.count} as {labels_in_words(one.labels, one.counts)} ({interval_of_labels(one)})" for one in found]
    told = (
        f"How many labels of {first} its labels are worth, by mean scores ({INTERVAL} over seeds): {'; '.join(said)}."
    )
    return [told] if said else []


def _speed(first: str, found: Sequence[Speed], arm: str) -> list[str]:
    own = {one.arm: one for one in found}
    if arm not in own:
        return []
    gain = own[first].gain
    flat = f" In its last tenth {first} changed by {signed(gain)}: its curve is flat." * (abs(gain) <= STILL_LEARNING)
    return [
        f"Speed, with {counted(own[arm].count, 'label')}: {first}'s final score on patches is reached "
        f"{share_in_words(own[arm].share)}; by {first} itself {share_in_words(own[first].share)}.{flat}"
    ]


def cautions(results: Results, comparisons: Sequence[Comparison], speeds: Sequence[Speed]) -> list[str]:
    """What takes force from the conclusions: leaks, missing runs, few seeds, short trainings, undefined values."""
    study, said = results.study, []
    for arm, hits in study.leaks.items():
        if words := ", ".join(printable(hit, 200) for hit in hits):
            said.append(
                f"Leak: {printable(arm, 60)} has seen test cases in pre-training, or may have: {words}. Its scores are "
                "not those of new cases."
            )
    if results.missing:
        some = ", ".join(results.missing[:5]) + ", …" * (len(results.missing) > 5)
        said.append(
            f"The study is unfinished: {len(results.missing)} of {len(study.runs())} runs are missing ({some}). "
            "Complete pairs are compared. Who looks until a difference shows finds one by chance more often than these "
            "p values say."
        )
    if len(study.arms) > 1 and len(study.seeds) < FEW_SEEDS:
        said.append(f"{counted(len(study.seeds), 'seed')}: only large differences can be shown.")
    for one in speeds:
        if one.arm == next(iter(study.arms)) and one.count == study.labels[-1] and not one.gain <= STILL_LEARNING:
            said.append(_not_converged(one))
    if left_out := max((one.left_out for one in comparisons if one.in_family), default=0):
        said.append(
            "Values that are not defined in one arm are left out of both: up to "
            f"{counted(left_out, 'value')} of Dice in a comparison (comparisons.csv counts them). Where a case lacks a "
            "label and one arm finds none, what the other arm wrongly finds does not count against it."
        )
    return said


def _not_converged(one: Speed) -> str:
    labels = counted(one.count, "label")
    if math.isnan(one.gain):
        return f"Whether {one.arm} has converged with {labels} is not known: too few epochs have a score on patches."
    return (
        f"{one.arm} has not converged with {labels}: in its last tenth of steps its score on patches still rose by "
        f"{one.gain:.3f}. What is compared may be a head start that longer training makes up for."
    )


def definitions(results: Results, comparisons: Sequence[Comparison]) -> list[str]:
    """How conclusions were come to."""
    study = results.study
    size = sum(one.in_family for one in comparisons)
    mean = " and for the mean over label counts," if len(study.labels) > 1 else ","
    return [
        "The score of a run is the mean Dice over test cases of every label, then over labels. Dice is nnU-Net's own, "
        "of the segmentation in the image's own spacing.",
        f"An arm is called better or worse where the paired t test over seeds, for every label count{mean} has "
        f"p < {1 - LEVEL:.2g} after Holm's correction for all {size} comparisons of this study, made or not yet made. "
        "All other tests are shown without correction, and nothing is concluded from them.",
        "The paired t test over seeds asks: would training again, with other labeled cases of the same pool, again be "
        "better, on these test cases? Where a label count is near the size of the pool, seeds share labeled cases and "
        "differ less than new cases would. An arm is one checkpoint, the same in every seed: that pre-training again "
        "would give one as good is not tested.",
        "Wilcoxon's test over cases (of the mean over seeds) asks: would these networks be better on other cases, too? "
        "With many cases it tells any two networks apart, also two of the same arm: nothing follows for the arm.",
        "Welch's t test over seeds, which the papers of this field report, ignores that runs are paired.",
        f"Every interval is a {INTERVAL} without correction: one may leave out zero where the corrected test shows no "
        "difference. Those over seeds are Student's, those over cases bootstrap intervals (BCa).",
        f"Label equivalence: with how many labels {next(iter(study.arms))} has the mean score of another arm, on its "
        "own label curve, made monotone (isotonic regression) and drawn straight over log(labels). The interval is a "
        "percentile bootstrap over seeds, too narrow where seeds are few.",
        "Speed: scores on patches of the test cases along the training, mean of the seeds, each the mean over the "
        "tenth of the training before it, so that none is reached before a tenth of the steps. An arm whose last tenth "
        f"is more than {STILL_LEARNING} above the one before has not converged. The converse is weaker: where the "
        "learning rate falls to 0, every curve ends flat, and only a longer training shows what more steps are worth.",
    ]


def labels_in_words(labels: float, counts: Sequence[int]) -> str:
    """E.g. 12, `fewer than 4`, `more than 64`."""
    if math.isnan(labels):
        return "not known"
    if labels == 0:
        return f"fewer than {counts[0]}"
    return f"more than {counts[-1]}" if math.isinf(labels) else f"{labels:.0f}"


def interval_of_labels(one: Equivalence) -> str:
    """Its interval in words."""
    if math.isnan(one.low):
        return "no interval: one seed"
    low, high = (labels_in_words(end, one.counts) for end in (one.low, one.high))
    return low if low == high else f"{low} to {high}"


def share_in_words(share: float) -> str:
    """After which part of the steps."""
    if math.isnan(share):
        return "at a step not known"
    return "not at all" if math.isinf(share) else f"after {100 * share:.0f} % of the steps"


def p_in_words(p: float) -> str:
    """E.g. `p = 0.012`."""
    return "p not known" if math.isnan(p) else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def signed(number: float) -> str:
    """Three digits, with sign; `0.000` has none."""
    return "-" if math.isnan(number) else f"{number:+.3f}" if abs(number) >= 0.0005 else "0.000"
