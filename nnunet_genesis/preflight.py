"""What is looked at before volumes are loaded, so that a user reads one line and not a traceback."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_genesis.errors import DatasetError
from nnunet_genesis.nnunet_dataset import (
    check_configuration,
    configuration_of,
    nnunet_folder,
    preprocessed_folder,
    preprocessing_command,
    refuse_cascade,
)


def check_before_training(plans: dict[str, Any], configuration: str, cascade: bool = False) -> None:
    """Refuse what would fail later.

    Args:
        plans: The plans.
        configuration: The configuration to train.
        cascade: Whether it may be a cascade's second stage.

    Raises:
        DatasetError: A folder of nnU-Net is not set, the configuration is unknown, a cascade's second stage, or not
            one that could or should be built.
    """
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        nnunet_folder(variable)
    (check_configuration if cascade else refuse_cascade)(plans, configuration)


def volumes_folder(plans: dict[str, Any], configuration: str) -> Path:
    """The folder of the preprocessed volumes of a configuration that the plans have.

    Raises:
        DatasetError: It is missing or holds no volume; the message says what to run.
    """
    identifier: str = configuration_of(plans, configuration).data_identifier
    folder = preprocessed_folder(plans["dataset_name"]) / identifier
    if not folder.is_dir() or not (any(folder.glob("*.b2nd")) or any(folder.glob("*.npz"))):
        command = preprocessing_command(plans, configuration, identifier)
        raise DatasetError(f"There are no preprocessed volumes in {folder}. Run: {command}")
    return folder


def refuse_missing_labels(dataset: str, description: Mapping[str, Any]) -> None:
    """Stop a fine-tuning on scans without labels, whose loss would be NaN.

    Args:
        dataset: Name of the dataset.
        description: Its dataset.json.

    Raises:
        DatasetError: There is no label but the background.
    """
    if not set(description["labels"]) - {"background", "ignore"}:
        raise DatasetError(
            f"{dataset} has no labels but the background. Transfer into your labeled dataset, and train it."
        )


def refuse_missing_gpu(device: Any) -> None:
    """Stop what would run on a CUDA device, nnU-Net's default, or on one of Apple, where PyTorch sees none.

    Args:
        device: A `torch.device`.

    Raises:
        DatasetError: Says how to do without one.
    """
    import torch

    there = {"cuda": torch.cuda, "mps": torch.backends.mps}
    if device.type in there and not there[device.type].is_available():
        raise DatasetError("PyTorch finds no GPU. To use the CPU, add: -device cpu (nnunet_genesis: --device cpu)")


def refuse_missing_first_stage(trainer: Any) -> None:
    """Stop a cascade's second stage whose first stage has not predicted yet.

    Raises:
        DatasetError: Says what to train first.
    """
    folder = trainer.folder_with_segs_from_previous_stage
    if folder is not None and not (Path(folder).is_dir() and any(Path(folder).iterdir())):
        first, plans = trainer.configuration_manager.previous_stage_name, trainer.plans_manager.plans
        raise DatasetError(
            f"There are no segmentations of the cascade's first stage in {folder}. Train it on all folds with the same "
            f"trainer and plans: nnUNetv2_train {int(plans['dataset_name'][7:10])} {first} FOLD "
            f"-tr {type(trainer).__name__} -p {plans['plans_name']}"
        )
