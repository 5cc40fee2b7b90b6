"""An arm's checkpoint and settings → plans and weights in the study's folder, which its runs start from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from nnunet_genesis.errors import StudyError, printable
from nnunet_genesis.files import read_json, write_json
from nnunet_genesis.hub.locating import located, origin
from nnunet_genesis.nnunet_dataset import read_dataset_json
from nnunet_genesis.settings import FineTuningSettings
from nnunet_genesis.study.design import Run, Study
from nnunet_genesis.transfer.into_plans import SCHEDULE, scheduled, start_from

FOLDER = "arms"
FREE = tuple(name for name in SCHEDULE if name not in ("epochs", "iterations", "batch_per_device", "seed"))
"""Settings in which arms may differ: of the same length, with the seed of the run."""
SCRATCH = "scratch"
FACTS = ("source", "source_sha256", "sha256", "coverage")


@dataclasses.dataclass(frozen=True)
class Arm:
    """What a user asked for: path or address of a checkpoint, or None for random weights, and settings that differ."""

    name: str
    checkpoint: str | Path | None
    settings: dict[str, Any]


def parse_arm(text: str) -> Arm:
    """`scratch`, `NAME=scratch` or `NAME=CHECKPOINT`, each with `,setting=value` any number of times.

    Raises:
        StudyError: It is none of these, or there is no such setting, or it has another type.
    """
    first, *rest = text.split(",")
    name, given, source = first.partition("=")
    if (not given and name != SCRATCH) or (given and not source):
        raise StudyError(
            f"--arm {printable(text, 120)}: write scratch, NAME=scratch or NAME=CHECKPOINT, then ,setting=value where "
            "the arm has settings of its own."
        )
    checkpoint = None if source in ("", SCRATCH) else source
    return Arm(name, checkpoint, dict(_setting(part, text) for part in rest))


def _setting(part: str, text: str) -> tuple[str, Any]:
    name, _, value = (word.strip() for word in part.partition("="))
    if name not in FREE:
        raise StudyError(
            f"--arm {printable(text, 120)}: {printable(name, 40)} is no setting in which arms may differ. "
            f"These are: {', '.join(FREE)}."
        )
    default = getattr(FineTuningSettings(), name)
    kind = float if default is None else type(default)  # numbers that the optimiser decides unless they are given
    try:
        return name, kind(value)
    except ValueError:
        raise StudyError(f"--arm {printable(text, 120)}: {name} takes a value like {kind(1)}.") from None


def prepare_arm(
    arm: Arm, folder: Path, dataset: str, plans: dict[str, Any], configuration: str, common: dict[str, Any]
) -> dict[str, Any]:
    """Write an arm's plans, and its weights if it has a checkpoint; what `study.json` says of it.

    Raises:
        CheckpointError, TransferError: The checkpoint cannot be read, or too little of it fits.
    """
    arms = folder / FOLDER
    arms.mkdir(parents=True, exist_ok=True)
    settings, named = scheduled(common | arm.settings, plans, configuration), None
    if arm.checkpoint is not None:
        weights = arms / f"{arm.name}.pth"
        path = located(arm.checkpoint)
        named = origin(path) or str(path)
        settings, _ = start_from(path, plans, configuration, read_dataset_json(dataset), settings, weights)
    block = {"fine_tuning": {configuration: settings.block()}}
    write_json({**plans, "plans_name": arm.name, "genesis": block}, arms / f"{arm.name}.json")
    facts = {name: getattr(settings, name) for name in FACTS}
    return {"checkpoint": named, "settings": arm.settings} | facts


def plans_of(study: Study, run: Run, folder: Path) -> dict[str, Any]:
    """The plans that a run is trained by: those of its arm, with its name and seed."""
    path = folder / FOLDER / f"{run.arm}.json"
    plans = read_json(path, "The plans of an arm", "Plan the study again.")
    try:
        block = plans["genesis"]["fine_tuning"][study.configuration]
        block["seed"] = run.seed
    except (KeyError, TypeError):
        raise StudyError(f"{path} has no settings for {study.configuration}. Plan the study again.") from None
    return {**plans, "plans_name": run.name}
