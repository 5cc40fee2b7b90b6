"""nnU-Net's folders and a dataset's files in them: found by id or name, or a message that says what is missing."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_genesis.errors import DatasetError, printable
from nnunet_genesis.files import read_json
from nnunet_genesis.plans_checks import FORMER_CHANNELS as FORMER_CHANNELS
from nnunet_genesis.plans_checks import (
    check_configuration_block,
    check_description,
    check_plans,
    is_plain_name,
)

PREVIOUS_STAGE = "previous stage: "
"""Begins the name of an input channel that holds a label of a cascade's first stage, 0 or 1."""

NAME_OF_PLANS = re.compile(r"[^\W_]([\w.-]*[^\W_])?")
"""What names of new plans look like; besides, "__" is not in them."""


def nnunet_folder(variable: str) -> Path:
    """The folder that the environment variable `variable` (e.g. `nnUNet_raw`) names.

    Raises:
        DatasetError: The variable is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise DatasetError(
            f"The environment variable {variable} is not set. Set it as for nnU-Net: export {variable}=FOLDER"
        )
    return Path(value)


def dataset_name(id_or_name: str) -> str:
    """`4`, `004` or `Dataset004_Hippocampus` → `Dataset004_Hippocampus`.

    Raises:
        DatasetError: It is neither, or no folder, or several folders with different names, carry that id.
    """
    folders = [Path(os.environ[v]) for v in ("nnUNet_raw", "nnUNet_preprocessed") if os.environ.get(v)]
    if id_or_name.startswith("Dataset") and is_plain_name(id_or_name):
        pattern = glob.escape(id_or_name)
    elif id_or_name.isdecimal() and len(id_or_name) < 10:
        pattern = f"Dataset{int(id_or_name):03d}_*"
    else:
        raise DatasetError(
            "-d takes a dataset id such as 4 or a name such as Dataset004_Hippocampus, not "
            f"{printable(id_or_name, 80)}."
        )
    names = sorted({found.name for folder in folders for found in folder.glob(pattern) if found.is_dir()})
    if not names:
        places = ", ".join(map(str, folders)) or "neither is set"
        raise DatasetError(
            f"No dataset {id_or_name} in nnUNet_raw or nnUNet_preprocessed ({places}). Check the id, or import it."
        )
    if len(names) > 1:
        raise DatasetError(
            f"The dataset id {id_or_name} is used more than once: {', '.join(names)}. Rename or remove one."
        )
    return names[0]


def preprocessed_folder(name: str) -> Path:
    """`nnUNet_preprocessed/<name>` (may not exist yet)."""
    return nnunet_folder("nnUNet_preprocessed") / name


def read_dataset_json(name: str) -> dict[str, Any]:
    """The dataset.json of a dataset, from nnUNet_raw or else from nnUNet_preprocessed.

    Raises:
        DatasetError: There is none, or it is not as nnU-Net needs it.
    """
    raw = nnunet_folder("nnUNet_raw") / name / "dataset.json"
    path = raw if raw.is_file() else preprocessed_folder(name) / "dataset.json"
    content = read_json(path, "The dataset description", "Import the images first: nnunet_genesis import --help")
    check_description(content, f"The dataset description {path}")
    return content


def channel_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """Channel names in the order of their numbers."""
    channels = dataset_json["channel_names" if "channel_names" in dataset_json else FORMER_CHANNELS]
    return [str(channels[key]) for key in sorted(channels, key=int)]


def configuration_of(plans: Mapping[str, Any], configuration: str) -> Any:
    """nnU-Net's `ConfigurationManager`: a configuration with what it inherits, in the terms of today's plans."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(dict(plans)).get_configuration(configuration)


def made_by(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """What of the plans decides how a preprocessed volume looks."""
    chosen = configuration_of(plans, configuration).configuration
    keys = ("preprocessor_name", "spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data",
            "resampling_fn_data_kwargs")  # fmt: skip
    everywhere = ("image_reader_writer", "transpose_forward", "foreground_intensity_properties_per_channel")
    return {key: chosen.get(key) for key in keys} | {key: plans.get(key) for key in everywhere}


def record_of(folder: Path) -> Path:
    """The file beside a folder of volumes in which `preprocess` keeps how they were made."""
    return folder.with_name(f"{folder.name}_preprocessing.json")


def refuse_other_plans(ours: Mapping[str, Any], folder: Path) -> None:
    """Refuse volumes of `preprocess` that other plans made; of those of nnU-Net's command nothing is known.

    Args:
        ours: What of today's plans decides how a volume looks, as `made_by` gives it.
        folder: Of the volumes.

    Raises:
        DatasetError: There are volumes, and what made them differs.
    """
    record = record_of(folder)
    if not record.is_file() or not any(folder.glob("*.b2nd")):
        return
    advice = f"Delete {folder} and preprocess again."
    before = read_json(record, "The record", advice).get("made_by", {})
    if not isinstance(before, dict):
        raise DatasetError(f'The record {record} was changed: "made_by" is no block in braces. {advice}')
    changed = [key for key in ours if ours[key] != before.get(key)]
    if changed:
        raise DatasetError(
            f"The volumes in {folder} were preprocessed with other plans ({', '.join(changed)} changed). "
            "Delete that folder and preprocess again, or plan under another name (-p)."
        )


def encoder_stride(plans: Mapping[str, Any], configuration: str) -> tuple[int, ...]:
    """Voxels of the patch for one of the network's bottleneck, along each axis of the patch.

    Raises:
        DatasetError: The plans do not name the strides of the network's stages.
    """
    manager = configuration_of(plans, configuration)
    axes = len(manager.patch_size)
    arguments = manager.configuration["architecture"]["arch_kwargs"]
    stages = arguments.get("strides", [arguments["patch_embed_size"]] if "patch_embed_size" in arguments else None)
    steps = [[step] * axes if isinstance(step, int) else step for step in stages] if isinstance(stages, list) else []
    if not steps or any(not isinstance(step, list) or len(step) != axes for step in steps):
        raise DatasetError(
            f"The plans {printable(plans.get('plans_name'), 80)} name no strides of the network of {configuration}, "
            'from which a "cell_size" of 0 follows. Give the edge of masked cells in voxels.'
        )
    return tuple(math.prod(along) for along in zip(*steps, strict=True))


def input_channels(plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]) -> list[str]:
    """Names of a network's input channels; in a cascade's second stage the labels of the first come last."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    names = channel_names(dataset_json)
    if configuration_of(plans, configuration).previous_stage_name is None:
        return names
    labels = PlansManager(dict(plans)).get_label_manager(dataset_json).foreground_labels
    return names + [f"{PREVIOUS_STAGE}{label}" for label in labels]


def read_plans(name: str, plans_name: str) -> dict[str, Any]:
    """The plans file `nnUNet_preprocessed/<name>/<plans_name>.json`.

    Raises:
        DatasetError: It is missing (the message lists the plans that are there) or not as nnU-Net needs it. Each
            configuration is checked by `check_configuration`.
    """
    if not is_plain_name(plans_name):
        raise DatasetError(f'"{printable(plans_name, 80)}" is no name of plans. Name them without folder and ending.')
    folder = preprocessed_folder(name)
    path = folder / f"{plans_name}.json"
    others = [found.stem for found in folder.glob("*Plans*.json") if not found.stem.endswith("_preprocessing")]
    advice = f"Plans of this dataset: {', '.join(sorted(others)) or 'none'}. Plan it first, or name other plans."
    plans = read_json(path, "The plans file", advice)
    check_plans(plans, f"The plans file {path}")
    return plans


def has_labels(name: str) -> bool:
    """Whether the dataset has labels, raw or copied by nnU-Net's preprocessing."""
    raw = os.environ.get("nnUNet_raw")
    labels = [preprocessed_folder(name) / "gt_segmentations", *([Path(raw) / name / "labelsTr"] if raw else [])]
    return any(folder.is_dir() for folder in labels)


def preprocessing_command(plans: dict[str, Any], configuration: str, data_identifier: str) -> str:
    """The command that makes the volumes of a configuration: ours for unlabeled datasets, otherwise nnU-Net's."""
    name = plans["dataset_name"]
    if not has_labels(name):
        return f"nnunet_genesis preprocess -d {int(name[7:10])} -c {configuration} -p {plans['plans_name']}"
    owner = data_identifier.removesuffix(f"_{configuration}")
    return f"nnUNetv2_preprocess -d {int(name[7:10])} -plans_name {owner} -c {configuration}"


def new_plans_file(dataset: str, plans_name: str, kind: str) -> Path:
    """The file of plans about to be written; plans that are not ours are never overwritten.

    Args:
        dataset: Name of the dataset.
        plans_name: Name of the plans, as a user gave it.
        kind: "pretraining" or "fine_tuning", the part of the genesis block that marks plans of the same origin.

    Raises:
        DatasetError: nnU-Net could not use the name, or the file exists and was not written by the same command.
    """
    if not NAME_OF_PLANS.fullmatch(plans_name) or "__" in plans_name or not is_plain_name(plans_name):
        raise DatasetError(
            f'"{printable(plans_name, 80)}" cannot name plans: nnU-Net makes names of folders from it and '
            'splits them at "__". Take letters, digits, hyphens, dots and single underscores, with a letter or digit '
            "at both ends."
        )
    path = preprocessed_folder(dataset) / f"{plans_name}.json"
    if path.is_file():
        plans = read_json(path, "The plans file", "Remove it, or name other plans.")
        block = plans.get("genesis")
        if not isinstance(block, Mapping) or kind not in block:
            raise DatasetError(f"The plans {plans_name} of {dataset} exist and would be overwritten. Name others.")
    return path


def refuse_cascade(plans: dict[str, Any], configuration: str) -> None:
    """Refuse an unknown configuration, and a cascade's second stage.

    Raises:
        DatasetError: Says why.
    """
    check_configuration(plans, configuration)
    if configuration_of(plans, configuration).previous_stage_name is not None:
        raise DatasetError(
            f"{configuration} is the second stage of a cascade: part of its input are the first stage's segmentations, "
            "which unlabeled scans do not have. Use 2d, 3d_lowres or 3d_fullres."
        )


def check_configuration(plans: dict[str, Any], configuration: str) -> None:
    """Refuse a configuration that the plans do not have, or that could not or must not be built or written.

    Every command and both trainers come by here before anything is built or written.

    Raises:
        DatasetError: Names the configurations there are, or what is wrong.
    """
    where = f"The plans {printable(plans.get('plans_name'), 80)}"
    check_plans(plans, where)
    if configuration not in plans["configurations"]:
        raise DatasetError(
            f"{where} have no configuration {printable(configuration, 80)}; "
            f"they have {', '.join(plans['configurations'])}."
        )
    check_configuration_block(plans, configuration, where)
