"""Results and comparisons → tables: rows of text for the page, and CSV files with every number."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_genesis.errors import printable
from nnunet_genesis.files import written_atomically
from nnunet_genesis.study.comparisons import Comparison, Equivalence, Speed, run_means
from nnunet_genesis.study.conclusions import (
    counted,
    interval_of_labels,
    labels_in_words,
    share_in_words,
    signed,
    verdict,
)
from nnunet_genesis.study.results import LOWER_IS_BETTER, MAIN, METRICS, Results
from nnunet_genesis.study.statistics import mean_of_defined, spread_of_defined

MOST_CASES = 300
"""Rows of a table of cases on the page; cases.csv has all of them."""
FORMULAS = ("=", "+", "-", "@")
"""What begins so, spreadsheets compute: such a name gets a quotation mark in front, which they take for text."""


@dataclass(frozen=True)
class Table:
    """Text in cells; the first column names the row. `folded`: shown on request."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False


def comparisons_table(comparisons: Sequence[Comparison], first: str) -> Table:
    """The comparisons that conclusions are drawn from."""
    head = ["arm", "labeled cases", first, "arm", "difference", "interval over seeds", "higher in", "p (paired t)",
            "p, corrected (Holm)", "verdict"]  # fmt: skip
    rows = [
        [one.arm, _count(one), _number(one.first), _number(one.second), signed(one.difference),
         _interval(one.low, one.high), f"{one.better}/{one.pairs}", _p(one.p_t), _p(one.p_holm), verdict(one)]
        for one in comparisons if one.in_family
    ]  # fmt: skip
    return Table(f"Mean Dice against {first}", head, rows)


def further_tests(comparisons: Sequence[Comparison], first: str) -> Table:
    """Other tests of the same differences: over cases, and not paired."""
    head = ["arm", "labeled cases", "difference over cases", "interval over cases", "p (Wilcoxon, cases)",
            "p (Welch, seeds)", "cases", "left out"]  # fmt: skip
    rows = [
        [one.arm, _count(one), signed(one.case_difference), _interval(one.case_low, one.case_high), _p(one.p_wilcoxon),
         _p(one.p_welch), str(one.cases), str(one.left_out)]
        for one in comparisons if one.in_family
    ]  # fmt: skip
    return Table(f"Mean Dice against {first}, further tests, not corrected", head, rows, folded=True)


def other_comparisons(comparisons: Sequence[Comparison], first: str) -> Iterator[Table]:
    """A table for each metric: the mean over labels where no conclusion is drawn from it, and every label."""
    for metric, words in METRICS.items():
        head = ["arm", "labeled cases", "label", first, "arm", "difference", "interval over seeds",
                "lower in" if metric in LOWER_IS_BETTER else "higher in", "p (paired t)", "p (Wilcoxon, cases)",
                "left out"]  # fmt: skip
        rows = [
            [one.arm, _count(one), one.label or "mean", _number(one.first), _number(one.second), signed(one.difference),
             _interval(one.low, one.high), f"{one.better}/{one.pairs}", _p(one.p_t), _p(one.p_wilcoxon),
             str(one.left_out)]
            for one in comparisons if one.metric == metric and not one.in_family
        ]  # fmt: skip
        yield Table(f"{words} against {first}, not corrected", head, rows, folded=True)


def scores_tables(results: Results) -> Iterator[Table]:
    """A table for each metric: every label and label count, mean ± standard deviation over seeds."""
    study = results.study
    for metric, words in METRICS.items():
        scores, rows = results.scores[metric], []
        for number, label in enumerate(["mean", *results.labels]):
            values = run_means(scores) if number == 0 else mean_of_defined(scores[..., number - 1], -1)
            for n, count in enumerate(study.labels):
                cells = [_mean_and_spread(values[a, n]) for a in range(len(study.arms))]
                rows.append([label, str(count), *cells])
        yield Table(f"{words}, mean ± standard deviation over seeds", ["label", "labeled cases", *study.arms], rows)


def cases_tables(results: Results) -> Iterator[Table]:
    """A table for each label count: mean Dice over labels and seeds of every test case."""
    study = results.study
    scores = mean_of_defined(mean_of_defined(results.scores[MAIN], -1), 2)  # (arms, label counts, cases)
    for n, count in enumerate(study.labels):
        rows = []
        for case, found in zip(study.test[:MOST_CASES], scores[:, n].T, strict=False):
            rows.append([case, *map(_number, found), *map(signed, found[1:] - found[0])])
        more = f"; {MOST_CASES} of {len(study.test)} cases, all in cases.csv" * (len(study.test) > MOST_CASES)
        first, *others = study.arms
        head = ["case", first, *others, *(f"{arm} - {first}" for arm in others)]
        yield Table(f"{counted(count, 'labeled case')}, mean over seeds{more}", head, rows, folded=True)


def equivalence_table(found: Sequence[Equivalence], first: str) -> Table:
    """How many labels the first arm needs to be as good."""
    head = ["arm", "labeled cases", f"as {first} with", "interval over seeds", "seeds"]
    rows = [
        [one.arm, str(one.count), labels_in_words(one.labels, one.counts), interval_of_labels(one), str(one.seeds)]
        for one in found
    ]
    return Table(f"Labels that an arm is worth, by mean Dice on the label curve of {first}", head, rows)


def speed_table(found: Sequence[Speed], first: str) -> Table:
    """How fast arms learn, and whether they have converged."""
    head = ["labeled cases", "arm", f"has {first}'s final score", "its own final score", "gain in the last tenth",
            "seeds"]  # fmt: skip
    rows = [
        [str(one.count), one.arm, share_in_words(one.share), _number(one.final), signed(one.gain), str(one.seeds)]
        for one in found
    ]
    return Table("Dice on patches along the training", head, rows)


def _count(one: Comparison) -> str:
    return "all" if one.count is None else str(one.count)


def _mean_and_spread(values: Any) -> str:
    spread = spread_of_defined(values)
    return _number(float(mean_of_defined(values, 0))) + ("" if math.isnan(spread) else f" ± {spread:.3f}")


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _interval(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{signed(low)} to {signed(high)}"


def write_csv(results: Results, comparisons: Sequence[Comparison], folder: Path) -> list[Path]:
    """Write runs.csv, cases.csv, curves.csv and comparisons.csv; an empty cell is not defined or not known."""
    names = [one.name for one in dataclasses.fields(Comparison)]
    told = ([getattr(one, name) for name in names] + [verdict(one) if one.in_family else ""] for one in comparisons)
    return [
        _write(folder / "runs.csv", ["run", "arm", "labeled", "seed", "metric", "label", "value", "seconds"],
               _rows_of_runs(results)),
        _write(folder / "cases.csv", ["run", "arm", "labeled", "seed", "case", "label", *METRICS],
               _rows_of_cases(results)),
        _write(folder / "curves.csv", ["run", "steps", *results.curves], _rows_of_curves(results)),
        _write(folder / "comparisons.csv", [*names, "verdict"], told),
    ]  # fmt: skip


def _finished(results: Results) -> Iterator[tuple[list[Any], tuple[int, int, int]]]:
    """Names and place in the arrays of every finished run."""
    for run in results.study.runs():
        if results.finished[place := results.place(run)]:
            yield [run.name, run.arm, run.labels, run.seed], place


def _rows_of_runs(results: Results) -> Iterator[list[Any]]:
    for names, place in _finished(results):
        for metric, scores in results.scores.items():
            means = [run_means(scores[place]), *mean_of_defined(scores[place], 0)]
            for label, value in zip(["mean", *results.labels], means, strict=True):
                yield [*names, metric, label, value, results.seconds[place]]


def _rows_of_cases(results: Results) -> Iterator[list[Any]]:
    for names, place in _finished(results):
        for (c, case), (n, label) in itertools.product(enumerate(results.study.test), enumerate(results.labels)):
            yield [*names, case, label, *(scores[place][c, n] for scores in results.scores.values())]


def _rows_of_curves(results: Results) -> Iterator[list[Any]]:
    for names, place in _finished(results):
        for e, step in enumerate(results.steps):
            yield [names[0], step, *(values[place][e] for values in results.curves.values())]


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    with written_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(head)
        writer.writerows([_cell(value) for value in row] for row in rows)
    return path


def _cell(value: Any) -> str:
    if isinstance(value, float | np.ndarray):
        return "" if math.isnan(value) else f"{float(value):.9g}"
    text = "" if value is None else printable(value)
    return f"'{text}" if text.startswith(FORMULAS) else text
