"""The result files of a study → arrays, NaN where a run is missing or a value is not defined."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_genesis.errors import StudyError, printable
from nnunet_genesis.files import read_json
from nnunet_genesis.study.design import Run, Study

METRICS = {"Dice": "Dice", "NSD": "NSD", "HD95": "HD95 (mm)"}
"""Name in the files → in words. The first is the one that conclusions are drawn from."""
MAIN = "Dice"
LOWER_IS_BETTER = ("HD95",)
LARGEST = 1e100
"""Of any number: JSON may hold whole numbers that no float does, and some whose squares none does."""
MOST_SCORES = 50_000_000
"""Of a metric, or points of a curve: half a gigabyte of memory each."""
ADVICE = "Delete it and run the study again."
Array = np.ndarray[Any, Any]


@dataclass
class Results:
    """What is known of a study.

    Attributes:
        study: Its design.
        labels: Names of the labels.
        scores: Metric → (arms, label counts, seeds, cases, labels).
        steps: Training steps after each epoch (epochs,).
        curves: `dice` and `loss` → (arms, label counts, seeds, epochs).
        finished: Whether a run has results (arms, label counts, seeds).
        seconds: What it took (arms, label counts, seeds); NaN where not known.
        missing: Names of runs without results.
        devices: What the runs were computed on, as far as known → number of runs.
        versions: Package → versions that runs were made with.
    """

    study: Study
    labels: list[str]
    scores: dict[str, Array]
    steps: Array
    curves: dict[str, Array]
    finished: Array
    seconds: Array
    missing: list[str] = field(default_factory=list)
    devices: dict[str, int] = field(default_factory=dict)
    versions: dict[str, set[str]] = field(default_factory=dict)

    def place(self, run: Run) -> tuple[int, int, int]:
        """Where a run is in the arrays."""
        study = self.study
        return list(study.arms).index(run.arm), study.labels.index(run.labels), study.seeds.index(run.seed)


def read_results(study: Study, folder: Path) -> Results:
    """Read the results of every finished run.

    Raises:
        StudyError: No run is finished, or a file is not that of a run of this study; names it.
        DatasetError: A file is no valid JSON.
    """
    found: Results | None = None
    missing = []
    for run in study.runs():
        path = folder / "results" / f"{run.name}.json"
        if not path.is_file():
            missing.append(run.name)
            continue
        content = read_json(path, "The results", ADVICE)
        try:
            found = found or _empty(study, content)
            _take(found, run, content)
            _take_time(found, run, folder / "times" / f"{run.name}.json")
        except _OddError as error:
            raise StudyError(f"{path} {error}. {ADVICE}") from None
    if found is None:
        raise StudyError(f"No run of {folder} is finished. Run the study first: nnunet_genesis study run {folder}")
    found.missing = missing
    return found


class _OddError(ValueError):
    """What is odd about a file."""


def _empty(study: Study, first: dict[str, Any]) -> Results:
    """Room for all runs, with the labels and steps of the first one."""
    case = _block(_block(first, "cases"), study.test[0])
    steps = _numbers(_block(first, "curve").get("steps"), "steps", 1, math.inf)
    if not case or not len(steps) or (np.diff(steps) <= 0).any():
        raise _OddError("has no labels, or no steps that ascend")
    runs = (len(study.arms), len(study.labels), len(study.seeds))
    if math.prod(runs) * max(len(study.test) * len(case), len(steps)) > MOST_SCORES:
        raise _OddError(f"has so many labels or steps that the study has more than {MOST_SCORES:,} of them in all")
    return Results(
        study, list(case), {metric: np.full((*runs, len(study.test), len(case)), np.nan) for metric in METRICS},
        steps, {name: np.full((*runs, len(steps)), np.nan) for name in ("dice", "loss")}, np.zeros(runs, bool),
        np.full(runs, np.nan),
    )  # fmt: skip


def _take(results: Results, run: Run, content: dict[str, Any]) -> None:
    """Put the content of a results file into its places."""
    study, place = results.study, results.place(run)
    _refuse_foreign(content, run, study)
    cases = _block(content, "cases")
    if set(cases) != set(study.test):
        raise _OddError("has other test cases than the study")
    for c, case in enumerate(study.test):
        scores = _block(cases, case)
        if set(scores) != set(results.labels):
            raise _OddError(f"has other labels than the other runs in {case}")
        for n, label in enumerate(results.labels):
            values = _block(scores, label)
            for metric in METRICS:
                most = math.inf if metric in LOWER_IS_BETTER else 1
                results.scores[metric][place][c, n] = _number(values.get(metric, ""), metric, 0, most)
    curve = _block(content, "curve")
    if not np.array_equal(_numbers(curve.get("steps"), "steps", 1, math.inf), results.steps):
        raise _OddError("has other steps than the other runs")
    for name in results.curves:
        least, most = (0.0, 1.0) if name == "dice" else (-math.inf, math.inf)
        results.curves[name][place] = _numbers(curve.get(name), name, least, most, len(results.steps))
    results.finished[place] = True
    for package, version in _block(content, "versions").items():
        results.versions.setdefault(printable(package, 40), set()).add(printable(version, 40))


def _refuse_foreign(content: dict[str, Any], run: Run, study: Study) -> None:
    if content.get("run") != run.name:
        raise _OddError(f"holds the run {printable(content.get('run'), 60)}")
    if content.get("study", study.digest) != study.digest:  # earlier versions did not write it
        raise _OddError("is of another study, or of this one before study.json was changed")


def _take_time(results: Results, run: Run, path: Path) -> None:
    """What the run took, which other results do not depend on: unknown if the file is gone."""
    if not path.is_file():
        return
    content = read_json(path, "The time", "Delete it.")
    try:
        results.seconds[results.place(run)] = _number(content.get("seconds", ""), "seconds", 0, math.inf)
    except _OddError as error:
        raise StudyError(f"{path} {error}. Delete it.") from None
    device = printable(content.get("device"), 60)
    results.devices[device] = results.devices.get(device, 0) + 1


def _block(content: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(found := content.get(name), dict):
        raise _OddError(f'has no block "{printable(name, 60)}"')
    return found


def _number(value: Any, name: str, least: float, most: float) -> float:
    """NaN of None; everything else must be a number in its range."""
    if value is None:
        return math.nan
    if type(value) not in (int, float) or not least <= value <= most or abs(value) > LARGEST:
        raise _OddError(f"says that {name} is {printable(value, 40)}")
    return float(value)


def _numbers(values: Any, name: str, least: float, most: float, count: int | None = None) -> Array:
    if not isinstance(values, list) or (count is not None and len(values) != count):
        raise _OddError(f'has no list "{name}", or one of another length than the steps')
    return np.array([_number(value, name, least, most) for value in values])
