"""Plans and dataset.json from anywhere → nothing, or one line on what nnU-Net could not, or must not, work with.

Names become names of files and folders, numbers decide on memory, names of classes are imported and called.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from nnunet_genesis.architecture_checks import ADVICE, MOST_STAGES, check_architecture, is_whole
from nnunet_genesis.errors import DatasetError, printable, reason
from nnunet_genesis.named_classes import check_names, names_primus

FORMER_CHANNELS = "modality"
"""nnU-Net v1's key for "channel_names", which nnU-Net v2 reads too."""

MOST_CHANNELS = 1_000
MOST_CONFIGURATIONS = 100
MOST_VOXELS = 2**28
"""Voxels of a patch: a cube with edges of 645."""
MOST_IN_BATCH = 10_000

NAME_OF_DATASET = re.compile(r"Dataset\d{3}_\S.*", re.ASCII)
FILE_ENDING = re.compile(r"(\.[A-Za-z0-9]+)+")
Rule = tuple[str, Callable[[Any], bool], str]


def is_plain_name(name: Any) -> bool:
    """Whether a name of a file or folder stays in its folder and can be printed."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and name == name.strip()
        and name not in ("", ".", "..")
        and not any(separator in name for separator in "/\\")
        and len(name.encode(errors="replace")) <= 200
    )


def check_plans(plans: Any, where: str) -> None:
    """Check what holds for all configurations: names, readers, axes.

    Args:
        plans: Content of a plans file of nnU-Net v2, or what should be it.
        where: What is checked, for the message, e.g. "The plans file …/nnUNetPlans.json".

    Raises:
        DatasetError: Names the key and what is wrong with it.
    """
    if not isinstance(plans, Mapping) or not isinstance(plans.get("configurations"), Mapping):
        raise DatasetError(f"{where} is not a plans file of nnU-Net v2: it has no configurations.")
    _check(plans, OF_PLANS, where)
    _check(plans, [rule for rule in ALSO_OF_PLANS if rule[0] in plans], where)
    _check_names(plans, where)


def check_configuration_block(plans: Mapping[str, Any], configuration: str, where: str) -> None:
    """Check names, numbers and classes of one configuration, with what it inherits.

    Args:
        plans: Plans that `check_plans` let through.
        configuration: One of theirs.
        where: As for `check_plans`.

    Raises:
        DatasetError: Names the key and what is wrong with it.
    """
    where = f"{where}, configuration {configuration},"
    block = _whole(plans, configuration, where)
    _check(block, OF_CONFIGURATION, where)
    _check(block, [rule for rule in ALSO_OF_CONFIGURATION if rule[0] in block], where)
    if len(block["spacing"]) != len(block["patch_size"]):
        _refuse(_shown(block, "spacing", "as long as the patch has axes"), where)
    _check_names(block, where)
    check_architecture(block.get("architecture"), where)
    _check_patch_of_primus(block, where)


def _check_patch_of_primus(block: Mapping[str, Any], where: str) -> None:
    """A transformer has positions for one patch; the U-Nets take any."""
    architecture, patch = block["architecture"], list(block["patch_size"])
    shape = dict(architecture["arch_kwargs"]).get("input_shape", patch)
    if names_primus(architecture["network_class_name"]) and list(shape) != patch:
        _refuse(
            f'has "patch_size": {patch}, but its Primus has "input_shape": {list(shape)}, which must be equal', where
        )


def check_description(content: Any, where: str) -> None:
    """Check a dataset.json.

    Args:
        content: What was read.
        where: What is checked, for the message, e.g. "The dataset description …/dataset.json".

    Raises:
        DatasetError: Names the key and what is wrong with it.
    """
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    for key in ("channel_names", "labels", "file_ending"):
        if key not in content and not (key == "channel_names" and FORMER_CHANNELS in content):
            raise DatasetError(f'{where} has no "{key}".')
    key = "channel_names" if "channel_names" in content else FORMER_CHANNELS
    _check(content, [(key, _are_channels, CHANNELS)], where)
    _check(content, [rule for rule in OF_DESCRIPTION if rule[0] in content], where)
    try:
        LabelManager(content["labels"], content.get("regions_class_order"))
    except Exception as error:  # whatever nnU-Net raises at labels that it does not take
        _refuse(f'has "labels" that nnU-Net does not take ({reason(error, 100)})', where)


def _whole(plans: Mapping[str, Any], configuration: str, where: str) -> dict[str, Any]:
    """A configuration with what it inherits; plans of 2023 in the terms of today."""
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    blocks, name, lineage = plans["configurations"], configuration, [configuration]
    while "inherits_from" in blocks[name]:
        name = blocks[name]["inherits_from"]
        if not isinstance(name, str) or name not in blocks or name in lineage:
            _refuse(f'inherits from "{printable(name, 60)}", which is no other configuration', where)
        lineage.append(name)
    whole = {key: value for ancestor in reversed(lineage) for key, value in blocks[ancestor].items()}
    former = whole.get("n_conv_per_stage_encoder", [])
    if not isinstance(former, list | tuple) or len(former) > MOST_STAGES:
        _refuse(_shown(whole, "n_conv_per_stage_encoder", f"a list of at most {MOST_STAGES} numbers"), where)
    try:
        return dict(ConfigurationManager(copy.deepcopy(whole)).configuration)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        why = printable(f"{type(error).__name__}: {error}", 120)
        raise DatasetError(f"{where} describes no network that is known ({why}). Plan again.") from None


def _check(block: Mapping[str, Any], rules: Sequence[Rule], where: str) -> None:
    for key, holds, rule in rules:
        if not holds(block.get(key)):
            _refuse(_shown(block, key, rule), where)


def _check_names(block: Mapping[str, Any], where: str) -> None:
    try:
        check_names(block)
    except DatasetError as error:
        _refuse(str(error), where)


def _refuse(wrong: str, where: str) -> NoReturn:
    raise DatasetError(f"{where} {wrong}. {ADVICE}")


def _shown(block: Mapping[str, Any], key: str, rule: str) -> str:
    given = printable(repr(block[key]), 80) if key in block else "missing"
    return f'has "{key}": {given}, which must be {rule}'


def _are_configurations(blocks: Any) -> bool:
    """Their names become names of files."""
    few = isinstance(blocks, Mapping) and 0 < len(blocks) <= MOST_CONFIGURATIONS
    return few and all(is_plain_name(name) and _is_block(block) for name, block in blocks.items())


def is_name_of_dataset(name: Any) -> bool:
    """Whether nnU-Net takes it for the name of a dataset, e.g. Dataset004_Hippocampus."""
    return is_plain_name(name) and bool(NAME_OF_DATASET.fullmatch(name))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_block(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_block_of_blocks(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(entry, Mapping) for entry in value.values())


def _is_order_of_axes(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(axis in value for axis in (0, 1, 2))


def _is_patch(values: Any) -> bool:
    fits = isinstance(values, list | tuple) and len(values) in (2, 3)
    return fits and all(is_whole(value, MOST_VOXELS) for value in values) and math.prod(values) <= MOST_VOXELS


def _is_batch_size(value: Any) -> bool:
    return is_whole(value, MOST_IN_BATCH)


def _is_spacing(values: Any) -> bool:
    """NaN is in no range."""
    numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
    return numbers and all(1e-6 <= value <= 1e6 for value in values)


def _is_per_channel(value: Any) -> bool:
    return isinstance(value, list | tuple) and 0 < len(value) <= MOST_CHANNELS


def _is_stage(value: Any) -> bool:
    """One configuration or several; None for none."""
    return value is None or all(map(is_plain_name, value if isinstance(value, list) else [value]))


def _are_channels(channels: Any) -> bool:
    numbered = isinstance(channels, Mapping) and 0 < len(channels) <= MOST_CHANNELS
    numbered = numbered and set(channels) == {str(number) for number in range(len(channels))}
    return numbered and all(
        isinstance(name, str) and bool(name.strip()) and name.isprintable() for name in channels.values()
    )


def _are_labels(labels: Any) -> bool:
    entries = list(labels.values()) if isinstance(labels, Mapping) else [None]
    values = [one for entry in entries for one in (entry if isinstance(entry, list) else [entry])]
    return all(isinstance(one, int) and 0 <= one < 2**15 for one in values)


def _is_file_ending(value: Any) -> bool:
    return isinstance(value, str) and bool(FILE_ENDING.fullmatch(value))


def _is_list_of_cases(cases: Any) -> bool:
    """Cases become names of files; their images may lie anywhere."""
    return isinstance(cases, Mapping) and all(
        is_plain_name(case)
        and isinstance(files, Mapping)
        and isinstance(files.get("label"), str)
        and isinstance(files.get("images"), list)
        and bool(files["images"])
        and all(isinstance(image, str) and "\0" not in image for image in files["images"])
        for case, files in cases.items()
    )


CHANNELS = f'a block such as {{"0": "T1", "1": "T2"}}: numbers from 0, at most {MOST_CHANNELS:,} channels, their names'
IN_BRACES = "a block in braces"
PER_CHANNEL = f"a list with an entry for each channel, at most {MOST_CHANNELS:,}"

OF_PLANS: list[Rule] = [
    ("plans_name", is_plain_name, "a name without separators of folders"),
    ("dataset_name", is_name_of_dataset, "a name such as Dataset004_Hippocampus"),
    ("configurations", _are_configurations, f"a block of at most {MOST_CONFIGURATIONS} blocks, named as files may be"),
    ("image_reader_writer", _is_text, "the name of a class of nnU-Net"),
]
ALSO_OF_PLANS: list[Rule] = [
    ("genesis", _is_block, "a block of settings in braces"),
    ("transpose_forward", _is_order_of_axes, "an order of the axes 0, 1, 2"),
    ("transpose_backward", _is_order_of_axes, "an order of the axes 0, 1, 2"),
    ("foreground_intensity_properties_per_channel", _is_block_of_blocks, "a block with a block for each channel"),
    ("foreground_intensity_properties_by_modality", _is_block_of_blocks, "a block with a block for each channel"),
]
OF_CONFIGURATION: list[Rule] = [
    ("data_identifier", is_plain_name, "the name of a folder"),
    ("patch_size", _is_patch, f"two or three numbers of voxels, at most {MOST_VOXELS:,} together"),
    ("batch_size", _is_batch_size, f"a number from 1 to {MOST_IN_BATCH:,}"),
    ("spacing", _is_spacing, "a positive number of mm for each axis"),
    ("normalization_schemes", _is_per_channel, PER_CHANNEL),
    ("use_mask_for_norm", _is_per_channel, PER_CHANNEL),
]
ALSO_OF_CONFIGURATION: list[Rule] = [
    ("resampling_fn_data_kwargs", _is_block, IN_BRACES),
    ("resampling_fn_seg_kwargs", _is_block, IN_BRACES),
    ("resampling_fn_probabilities_kwargs", _is_block, IN_BRACES),
    ("previous_stage", _is_stage, "the name of a configuration"),
    ("next_stage", _is_stage, "the name of a configuration"),
]
OF_DESCRIPTION: list[Rule] = [
    ("labels", _are_labels, 'a block such as {"background": 0, "tumour": 1}'),
    ("file_ending", _is_file_ending, "an ending such as .nii.gz"),
    (
        "dataset",
        _is_list_of_cases,
        'a block such as {"case": {"images": ["case_0000.nii.gz"], "label": "case.nii.gz"}}',
    ),
    ("overwrite_image_reader_writer", _is_text, "the name of a class of nnU-Net"),
]
"""Key, what must hold for its value, and that in words; those that are `ALSO` there may be missing."""
