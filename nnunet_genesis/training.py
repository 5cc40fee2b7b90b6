"""What is looked at before volumes are loaded, so that a user reads one line and not a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_genesis.datasets import nnunet_folder, preprocessed_folder, preprocessing_command, refuse_cascade
from nnunet_genesis.errors import DatasetError


def check_before_training(plans: dict[str, Any], configuration: str) -> None:
    """Refuse what would fail later.

    Raises:
        DatasetError: A folder of nnU-Net is not set, the configuration is unknown or a cascade's second stage.
    """
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        nnunet_folder(variable)
    refuse_cascade(plans, configuration)


def volumes_folder(plans: dict[str, Any], configuration: str) -> Path:
    """The folder of the preprocessed volumes of a configuration that the plans have.

    Raises:
        DatasetError: It is missing or holds no volume; the message says what to run.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    identifier: str = PlansManager(plans).get_configuration(configuration).data_identifier
    folder = preprocessed_folder(plans["dataset_name"]) / identifier
    if not folder.is_dir() or not (any(folder.glob("*.b2nd")) or any(folder.glob("*.npz"))):
        command = preprocessing_command(plans, configuration, identifier)
        raise DatasetError(f"There are no preprocessed volumes in {folder}. Run: {command}")
    return folder
