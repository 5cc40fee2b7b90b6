"""What a user asks for → a folder with `study.json`, plans and weights of every arm, and what it will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_genesis.checkpoints.saving import versions
from nnunet_genesis.errors import StudyError, printable
from nnunet_genesis.folds import preprocessed_cases
from nnunet_genesis.hub.locating import located
from nnunet_genesis.leaks.search import leaks, unknown
from nnunet_genesis.nnunet_dataset import read_plans, refuse_cascade
from nnunet_genesis.preflight import volumes_folder
from nnunet_genesis.study.arms import Arm, prepare_arm
from nnunet_genesis.study.design import FILE, Study, choose_test, nested_subsets, write_study


@dataclass(frozen=True)
class Wish:
    """A study as asked for on the command line; `test` and `pool` are names of cases, or a share of all of them."""

    dataset: str
    plans: str
    configuration: str
    arms: Sequence[Arm]
    labels: Sequence[int]
    seeds: int
    test: Sequence[str] | float
    pool: Sequence[str]
    fine_tuning: dict[str, Any]
    validation_iterations: int
    mirroring: bool
    tolerance_mm: float
    allow_leaks: bool = False


def plan_study(wish: Wish, folder: Path) -> Study:
    """Write a study; nothing is written if anything is wrong.

    Raises:
        StudyError: The folder holds a study, cases are unknown or too few, or arms have no proper names.
        DatasetError: The dataset is not planned or preprocessed.
        CheckpointError, HubError, TransferError: A checkpoint cannot be read or fetched, or does not fit.
    """
    if (folder / FILE).exists():
        raise StudyError(f"{folder / FILE} exists. Run it, or plan the new study in another folder.")
    plans = read_plans(wish.dataset, wish.plans)
    refuse_cascade(plans, wish.configuration)
    cases = preprocessed_cases(plans, wish.configuration)
    test = choose_test(cases, wish.test) if isinstance(wish.test, float) else sorted(_known(wish.test, cases, "--test"))
    pool = [case for case in _known(wish.pool, cases, "--pool") or cases if case not in test]
    # once, so that the leaks are those of the weights
    arms = [arm if arm.checkpoint is None else replace(arm, checkpoint=located(arm.checkpoint)) for arm in wish.arms]
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise StudyError(f"Two arms have the same name: {', '.join(map(printable, names))}.")
    found = {arm.name: words for arm in arms if (words := _leaks(arm, wish, plans, test))}
    seeds, labels = list(range(wish.seeds)), sorted(set(wish.labels))
    study = Study(
        wish.dataset, wish.plans, wish.configuration, {name: {} for name in names}, labels, seeds, test,
        nested_subsets(pool, labels[-1], seeds), dict(wish.fine_tuning), wish.validation_iterations, wish.mirroring,
        wish.tolerance_mm, found, versions(),
    )  # fmt: skip
    for arm in arms:
        facts = prepare_arm(arm, folder, wish.dataset, plans, wish.configuration, dict(wish.fine_tuning))
        study.arms[arm.name].update(facts)
    write_study(study, folder)
    return study


def _leaks(arm: Arm, wish: Wish, plans: dict[str, Any], test: Sequence[str]) -> list[str]:
    """Test cases that an arm was pre-trained on, in words; one line if its checkpoint does not say.

    Raises:
        StudyError: There are some, and they were not allowed.
    """
    if arm.checkpoint is None:
        return []
    checkpoint = located(arm.checkpoint)
    hits = leaks(checkpoint, volumes_folder(plans, wish.configuration), test)
    if hits is None:
        return [unknown(checkpoint)]
    if hits and not wish.allow_leaks:
        raise StudyError(
            f'The arm "{printable(arm.name, 40)}" was pre-trained on {len(hits)} of {len(test)} test cases: '
            f"{'; '.join(map(str, hits))}. Pre-train without them (plan --exclude), test on others, or add "
            "--allow-leaks."
        )
    return [str(hit) for hit in hits]


def _known(wanted: Sequence[str], cases: Sequence[str], flag: str) -> list[str]:
    if unknown := sorted(set(wanted) - set(cases)):
        raise StudyError(f"{flag}: {printable(unknown[0], 80)} is no preprocessed case of the dataset.")
    return list(wanted)
