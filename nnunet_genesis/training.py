"""What both trainers look at before they start, so that a user reads one line and not a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_genesis.datasets import check_configuration, nnunet_folder
from nnunet_genesis.errors import DatasetError


def check_before_training(plans: dict[str, Any], configuration: str) -> None:
    """Refuse what would fail later.

    Raises:
        DatasetError: A folder of nnU-Net is not set, the configuration is unknown or a cascade's second stage.
    """
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        nnunet_folder(variable)
    check_configuration(plans, configuration)
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if PlansManager(plans).get_configuration(configuration).previous_stage_name is not None:
        raise DatasetError(
            f"{configuration} is the second stage of a cascade: part of its input are the first stage's segmentations. "
            "Use 2d, 3d_lowres or 3d_fullres."
        )


def volumes_folder(trainer: Any, command: str) -> Path:
    """The folder of a trainer's preprocessed volumes.

    Args:
        trainer: A trainer of nnU-Net.
        command: The command that preprocesses for it, without its arguments.

    Raises:
        DatasetError: It is missing or holds no volume; the message says what to run.
    """
    folder = Path(trainer.preprocessed_dataset_folder)
    if not folder.is_dir() or (not any(folder.glob("*.b2nd")) and not any(folder.glob("*.npz"))):
        plans = trainer.plans_manager
        raise DatasetError(
            f"There are no preprocessed volumes in {folder}. "
            f"Run: {command} -d {plans.dataset_name} -c {trainer.configuration_name}"
        )
    return folder
