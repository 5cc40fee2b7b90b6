"""Arms, label counts, seeds and test cases → `study.json`, which lists every run; arms paired, subsets nested."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_genesis.errors import StudyError, printable
from nnunet_genesis.files import read_json, write_json
from nnunet_genesis.plans_checks import is_plain_name

FILE = "study.json"
FORMAT = 1
NAME_OF_ARM = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,38}[A-Za-z0-9])?")
MOST_RUNS = 100_000
LARGEST = 1_000_000
"""Of batches, and of mm."""
LARGEST_SEED = 2**32 - 1
"""Also of label counts: both are parts of names of files."""


@dataclass(frozen=True)
class Run:
    """One training: an arm, with the first `labels` labeled cases of a seed."""

    arm: str
    labels: int
    seed: int

    @property
    def name(self) -> str:
        """E.g. `genesis_n10_s0`: the name of its files."""
        return f"{self.arm}_n{self.labels}_s{self.seed}"


@dataclass(frozen=True)
class Study:
    """The content of `study.json`; nothing in it changes once the study was planned.

    Attributes:
        dataset: Name of the labeled dataset.
        plans: Its plans.
        configuration: The configuration that is trained.
        arms: Name → what it starts from: `checkpoint` (None: random weights), `settings` (of fine-tuning, where they
            differ), digests and coverage. The first arm is the one that others are compared with.
        labels: Numbers of labeled cases, ascending.
        seeds: A seed decides the labeled cases, the initial weights, the patches and their augmentation, in every arm
            alike.
        test: Cases that are predicted; no run trains on them.
        labeled: Seed → labeled cases in order: the first n are those of n labels, so that subsets are nested.
        fine_tuning: Settings of fine-tuning that all arms share.
        validation_iterations: Batches of patches of the test cases per epoch, for the curves; they decide nothing.
        mirroring: Whether predictions are averaged over mirrored patches, as nnU-Net does by default.
        tolerance_mm: Tolerance of the normalised surface distance.
        leaks: Arm → test cases that its checkpoint was pre-trained on, or may have been, in words.
        versions: Versions of the packages that planned it.
    """

    dataset: str
    plans: str
    configuration: str
    arms: dict[str, dict[str, Any]]
    labels: list[int]
    seeds: list[int]
    test: list[str]
    labeled: dict[str, list[str]]
    fine_tuning: dict[str, Any]
    validation_iterations: int = 10
    mirroring: bool = True
    tolerance_mm: float = 1.0
    leaks: dict[str, list[str]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what decides about files and about who is compared with whom.

        Raises:
            StudyError: Names what is wrong.
        """
        _check(self)

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides about results: not of leaks, nor of versions, which results carry themselves."""
        content = {name: value for name, value in asdict(self).items() if name not in ("leaks", "versions")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def runs(self) -> list[Run]:
        """All runs: seed by seed, so that an unfinished study is a smaller study, and few labels first."""
        order = itertools.product(self.seeds, self.labels, self.arms)
        return [Run(arm, labels, seed) for seed, labels, arm in order]

    def cases(self, run: Run) -> list[str]:
        """The labeled cases that a run is trained on."""
        return self.labeled[str(run.seed)][: run.labels]


def nested_subsets(pool: Sequence[str], most: int, seeds: Sequence[int]) -> dict[str, list[str]]:
    """For every seed, `most` cases of the pool in a random order of its own."""
    return {str(seed): [str(case) for case in _rng("labeled", seed).permutation(sorted(pool))[:most]] for seed in seeds}


def choose_test(cases: Sequence[str], share: float) -> list[str]:
    """A share of the cases, at least one; always the same ones."""
    count = max(1, round(share * len(cases)))
    return sorted(str(case) for case in _rng("test", 0).permutation(sorted(cases))[:count])


def _rng(purpose: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, *purpose.encode()])


def write_study(study: Study, folder: Path) -> Path:
    """Write `study.json`, with the list of runs."""
    write_json({"format": FORMAT} | asdict(study) | {"runs": [run.name for run in study.runs()]}, folder / FILE)
    return folder / FILE


def read_study(folder: Path) -> Study:
    """Read the study in a folder.

    Raises:
        DatasetError: There is none, or the file is no valid JSON.
        StudyError: Its content is not that of a study.
    """
    content = read_json(folder / FILE, "The study", "Plan it first: nnunet_genesis study plan --help")
    if content.pop("format", None) != FORMAT:
        raise StudyError(f"{folder / FILE} was not written by this version of study plan. Plan the study again.")
    content.pop("runs", None)
    known = {declared.name for declared in fields(Study)}
    if odd := sorted(content.keys() ^ known):
        raise StudyError(f'{folder / FILE} lacks the key "{printable(odd[0], 80)}" or should not have it. Plan again.')
    try:
        return Study(**content)
    except StudyError as error:
        raise StudyError(f"{folder / FILE}: {error}") from None


def _check(study: Study) -> None:
    for name in ("dataset", "plans", "configuration"):
        if not isinstance(value := getattr(study, name), str) or not is_plain_name(value):
            raise StudyError(f'"{name}" must be a plain name, not {printable(value, 80)}.')
    _check_arms(study.arms)
    for name, least in (("labels", 1), ("seeds", 0)):
        values = getattr(study, name)
        if not isinstance(values, list) or not values or not all(type(value) is int for value in values):
            raise StudyError(f'"{name}" must be a list of whole numbers, not {printable(values, 80)}.')
        if values != sorted(set(values)) or values[0] < least or values[-1] > LARGEST_SEED:
            span = f"from {least} to {LARGEST_SEED:,}"
            raise StudyError(f'"{name}" must ascend, each once, {span}, not {printable(values, 80)}.')
    if len(study.arms) * len(study.labels) * len(study.seeds) > MOST_RUNS:
        raise StudyError(f"These are more than {MOST_RUNS:,} runs. Take fewer arms, label counts or seeds.")
    _check_cases(study)
    numbers = (study.validation_iterations, study.tolerance_mm)
    if not all(type(n) in (int, float) and 0 < n <= LARGEST for n in numbers) or type(study.mirroring) is not bool:
        raise StudyError(
            f"The number of validation batches and the tolerance must be above 0, at most {LARGEST:,}; mirroring "
            "true or false."
        )
    for name in ("fine_tuning", "leaks", "versions"):
        if not isinstance(getattr(study, name), Mapping):
            raise StudyError(f'"{name}" must be a block in braces.')
    _check_leaks(study)


def _check_leaks(study: Study) -> None:
    for name, words in study.leaks.items():
        if name not in study.arms or not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise StudyError(f'"leaks" of "{printable(name, 80)}" must be a list of texts, of an arm of the study.')


def _check_arms(arms: Any) -> None:
    if not isinstance(arms, Mapping) or not arms:
        raise StudyError("A study needs at least one arm.")
    for name, arm in arms.items():
        if not isinstance(name, str) or not NAME_OF_ARM.fullmatch(name):
            raise StudyError(
                f'"{printable(name, 80)}" cannot name an arm: take at most 40 letters, digits, hyphens and dots, with '
                "a letter or digit at both ends."
            )
        if not isinstance(arm, Mapping) or not isinstance(arm.get("settings", {}), Mapping):
            raise StudyError(f'The arm "{name}" must be a block in braces with "settings" in one.')


def _check_cases(study: Study) -> None:
    lists = {"test": study.test}
    if not isinstance(study.labeled, Mapping) or set(study.labeled) != {str(seed) for seed in study.seeds}:
        raise StudyError('"labeled" must have one list of cases for each seed.')
    lists |= {f"labeled, seed {seed}": cases for seed, cases in study.labeled.items()}
    for where, cases in lists.items():
        if not isinstance(cases, list) or not cases or not all(isinstance(c, str) and is_plain_name(c) for c in cases):
            raise StudyError(f"The cases of {where} must be a list of plain names.")
        if len(set(cases)) < len(cases):
            raise StudyError(f"A case of {where} is there twice.")
        if where != "test" and len(cases) < study.labels[-1]:
            raise StudyError(f"{where} are {len(cases)} cases; {study.labels[-1]} labels need as many.")
        if where != "test" and (both := sorted(set(cases) & set(study.test))):
            raise StudyError(f"{both[0]} is a test case and a labeled one ({where}).")
