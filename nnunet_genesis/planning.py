"""Plans of a target dataset, or a template → plans, dataset.json and fingerprint of a dataset to pre-train on."""

from __future__ import annotations

import copy
import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from tqdm import tqdm

from nnunet_genesis.errors import DatasetError, printable
from nnunet_genesis.files import read_json, write_json, written_atomically
from nnunet_genesis.folds import SPLITS, validation_cases
from nnunet_genesis.nnunet_dataset import (
    channel_names,
    check_configuration,
    has_labels,
    new_plans_file,
    nnunet_folder,
    preprocessed_folder,
    read_dataset_json,
    read_plans,
)
from nnunet_genesis.plans_checks import check_configuration_block, check_plans
from nnunet_genesis.resources import plans_folder
from nnunet_genesis.settings import PretrainingSettings, by_dataset, named

PLANS_NAME = "nnUNetGenesisPlans"
FLAT_READER = "NaturalImage2DIO"
"""nnU-Net's reader of 2D images without spacing."""
FAR = 999
"""Distance of the slices that a 2D image would have, in pixels, for nnU-Net's readers."""


def plan_like(
    dataset: str,
    target: str,
    target_plans: str,
    plans_name: str,
    settings: PretrainingSettings,
    change: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Path:
    """Give `dataset` the plans of `target`, so that pre-training builds and feeds exactly the target's network.

    Args:
        dataset: Name of the dataset to pre-train on; it may be the target itself.
        target: Name of the labeled, already planned dataset.
        target_plans: Name of the target's plans.
        plans_name: Name of the plans to write.
        settings: Pre-training settings for the genesis block. Further datasets that they name get plans, too.
        change: Plans of the target, which it leaves alone → plans to write, e.g. with another network.

    Returns:
        The plans file written.

    Raises:
        DatasetError: Something is missing, channel names or their number differ, the plans are not as nnU-Net needs
            them, or cannot have that name.
    """
    datasets = (dataset, *settings.datasets)
    descriptions = {name: read_dataset_json(name) for name in datasets}
    plans = read_plans(target, target_plans)
    for configuration in plans["configurations"]:
        check_configuration(plans, configuration)
    theirs = channel_names(read_dataset_json(target))
    for name, description in descriptions.items():
        _refuse_other_channels(name, channel_names(description), target, theirs)
    if plans_name == target_plans and target in datasets:
        raise DatasetError(f"The plans {plans_name} of {target} would be overwritten. Name others with -p.")
    changed = change(plans)
    return _write(_for_each(descriptions, changed, plans_name, target), descriptions, settings)


def _refuse_other_channels(dataset: str, ours: list[str], other: str, theirs: list[str]) -> None:
    if [name.casefold() for name in ours] != [name.casefold() for name in theirs]:
        raise DatasetError(
            f"The channels of {dataset} are {', '.join(ours)}, those of {other} are {', '.join(theirs)}. They must be "
            "the same, in the same order: import the scans again with --channels " + ",".join(theirs)
        )


def plan_from_template(
    dataset: str,
    template: str,
    plans_name: str,
    settings: PretrainingSettings,
    change: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Path:
    """Give `dataset` the plans of a template: a name from the folder `plans`, or the path of a plans file.

    `change` is as for `plan_like`.

    Raises:
        DatasetError: There is no such template, it is no file of plans as nnU-Net needs them, it cannot normalise a
            channel of this dataset, or the plans cannot have that name.
    """
    names = sorted(found.stem for found in plans_folder().glob("*.json"))
    path = Path(template) if template.endswith(".json") else plans_folder() / f"{template}.json"
    plans = read_json(path, "The plans template", f"Templates: {', '.join(names)}; or the path of a plans file.")
    check_plans(plans, f"The plans template {path}")
    for configuration in plans["configurations"]:
        check_configuration_block(plans, configuration, f"The plans template {path}")
    descriptions = {name: read_dataset_json(name) for name in (dataset, *settings.datasets)}
    channels = channel_names(descriptions[dataset])
    for name, description in descriptions.items():
        _refuse_other_channels(name, channel_names(description), dataset, channels)
    statistics = plans.get("foreground_intensity_properties_per_channel", {})
    for number, channel in enumerate(channels):
        if channel.casefold() == "ct" and str(number) not in statistics:
            raise DatasetError(
                f"The template {template} has no intensity statistics for the CT channel {number}, which nnU-Net's CT "
                "normalisation needs. Use --like with a planned CT dataset."
            )
    schemes = [block.get("normalization_schemes", []) for block in plans["configurations"].values()]
    foreign = [channel for channel in channels if channel.casefold() != "ct"]
    if foreign and any("CTNormalization" in used for used in schemes):
        raise DatasetError(
            f"The template {template} normalises CT; the channel {foreign[0]} is not CT. Use another one, or --like."
        )
    plans = change(copy.deepcopy(plans))
    every = {str(number): statistics.get(str(number), {}) for number in range(len(channels))}
    plans["foreground_intensity_properties_per_channel"] = every
    for configuration in plans["configurations"].values():
        for key in ("normalization_schemes", "use_mask_for_norm"):
            if key in configuration:
                configuration[key] = [configuration[key][0]] * len(channels)
    return _write(_for_each(descriptions, plans, plans_name), descriptions, settings)


def of_fold(datasets: Sequence[str], target: str, target_plans: str, fold: int) -> tuple[list[str], list[str]]:
    """Validation cases of a fold of `target`: those that datasets have under the same name, and those that none has.

    The first are named as settings have them: with the name of their dataset, unless it is the first one.

    Raises:
        DatasetError: There are none of them: no names to leave out of the pre-training.
    """
    wanted = validation_cases(read_plans(target, target_plans), fold)
    known = {"" if number == 0 else dataset: _names_of_cases(dataset) for number, dataset in enumerate(datasets)}
    there = [named(dataset, case) for dataset, cases in known.items() for case in wanted if case in cases]
    if not there:
        raise DatasetError(
            f"No case of {' or '.join(datasets)} has the name of a validation case of fold {fold} of {target}, e.g. "
            f"{wanted[0]}: there is nothing to leave out by name. Plan without --fold, or name the cases that are the "
            "same images with --exclude; nnunet_genesis leaks finds them after the pre-training."
        )
    return there, [case for case in wanted if not any(case in cases for cases in known.values())]


def _names_of_cases(dataset: str) -> set[str]:
    """Names of the raw cases, or of the preprocessed ones where there are no raw ones."""
    description = read_dataset_json(dataset)
    try:
        return set(raw_cases(dataset, description))
    except DatasetError:
        folders = (found for found in preprocessed_folder(dataset).iterdir() if found.is_dir())
        files = (file for folder in folders for file in folder.iterdir() if file.suffix in (".b2nd", ".npz"))
        return {file.stem.removesuffix("_seg") for file in files}


def _for_each(
    descriptions: Mapping[str, dict[str, Any]], plans: dict[str, Any], plans_name: str, target: str = ""
) -> dict[str, dict[str, Any]]:
    """The plans for each dataset that is described; `target`, if it is one, has preprocessed data of the old name."""
    return {
        name: _adapted(plans, name, description, plans_name, keep_data=name == target)
        for name, description in descriptions.items()
    }


def _adapted(
    plans: dict[str, Any], dataset: str, dataset_json: dict[str, Any], plans_name: str, *, keep_data: bool
) -> dict[str, Any]:
    """The plans under a new name for another dataset; `keep_data` reuses the preprocessed data of the old name."""
    adapted = copy.deepcopy(plans)
    old_name = adapted.get("plans_name", "")
    if "overwrite_image_reader_writer" in dataset_json:
        adapted["image_reader_writer"] = dataset_json["overwrite_image_reader_writer"]
        check_plans(adapted, f'With "overwrite_image_reader_writer" of its dataset.json, {dataset}')
    else:
        adapted["image_reader_writer"] = _reader(adapted["image_reader_writer"], dataset, dataset_json)
    adapted["dataset_name"], adapted["plans_name"] = dataset, plans_name
    adapted.pop("genesis", None)
    for configuration in adapted["configurations"].values():
        identifier = configuration.get("data_identifier")
        if identifier and not keep_data:
            rest = identifier.removeprefix(old_name).lstrip("_") if old_name else identifier
            configuration["data_identifier"] = f"{plans_name}_{rest}"
    return adapted


def _reader(planned: str, dataset: str, dataset_json: dict[str, Any]) -> str:
    """The plans' reader where it reads files of this ending, else the one that nnU-Net would choose."""
    from nnunetv2.imageio import reader_writer_registry as readers

    ending = dataset_json["file_ending"]
    if ending.lower() in readers.recursive_find_reader_writer_by_name(planned).supported_file_endings:
        return planned
    try:
        example = next(iter(raw_cases(dataset, dataset_json).values()))[0]
    except DatasetError:
        example = None  # preprocessed elsewhere
    try:
        with redirect_stderr(io.StringIO()):  # tracebacks of the readers that do not fit
            chosen = readers.determine_reader_writer_from_file_ending(ending, example, verbose=False)
    except RuntimeError:
        raise DatasetError(
            f"nnU-Net reads no images that end in {ending}, as those of {dataset} do. Convert them, e.g. to .png or "
            '.nii.gz, or name a reader as "overwrite_image_reader_writer" in dataset.json.'
        ) from None
    return str(chosen.__name__)


@dataclass(frozen=True)
class _Files:
    """What is to be written for one dataset."""

    path: Path
    plans: dict[str, Any]
    description: dict[str, Any]
    fingerprint: dict[str, Any] | None
    """None where there is one."""

    def write(self) -> None:
        """Write everything that preprocessing and training read; files of nnU-Net that exist are kept."""
        folder, dataset = self.path.parent, self.plans["dataset_name"]
        folder.mkdir(parents=True, exist_ok=True)
        if self.fingerprint is not None:
            write_json(self.fingerprint, folder / "dataset_fingerprint.json")
        if not has_labels(dataset) or not (folder / "dataset.json").is_file():
            write_json(self.description, folder / "dataset.json")
        splits = nnunet_folder("nnUNet_raw") / dataset / SPLITS
        if splits.is_file() and not (folder / SPLITS).is_file():  # as nnU-Net's planning does
            with written_atomically(folder / SPLITS) as temporary:
                shutil.copyfile(splits, temporary)
        write_json(self.plans, self.path)


def _write(
    plans: Mapping[str, dict[str, Any]], descriptions: Mapping[str, dict[str, Any]], settings: PretrainingSettings
) -> Path:
    """Write plans into each dataset, after all checks of all; the file of the first, which is trained."""
    first = next(iter(plans))
    paths = {dataset: new_plans_file(dataset, own["plans_name"], "pretraining") for dataset, own in plans.items()}
    for dataset, cases in by_dataset(settings.exclude).items():
        if dataset == first:
            raise DatasetError(
                f"{printable(named(dataset, cases[0]), 80)} is to be excluded: name it "
                f"{printable(cases[0], 80)}, since cases of the first dataset are named without it."
            )
        if dataset and dataset not in plans:
            raise _nothing_to_exclude(" or ".join(plans), named(dataset, cases[0]))
        if unknown := set(cases) - _names_of_cases(dataset or first):
            raise _nothing_to_exclude(dataset or first, min(unknown))
    files = []
    for dataset, path in paths.items():
        there = (path.parent / "dataset_fingerprint.json").is_file()
        fingerprint = None if there else _fingerprint(plans[dataset], descriptions[dataset])
        block = (settings if dataset == first else settings.of_further(dataset)).block()
        whole = plans[dataset] | {"genesis": {"pretraining": block}}
        files.append(_Files(path, whole, descriptions[dataset], fingerprint))
    for one in reversed(files):  # that which is trained last: its plans name the others
        one.write()
    return files[0].path


def _nothing_to_exclude(dataset: str, case: str) -> DatasetError:
    return DatasetError(
        f"{dataset} has no case {printable(case, 80)}, which is to be excluded: a name that is not there protects "
        "nothing. Correct the names."
    )


def raw_cases(dataset: str, dataset_json: dict[str, Any]) -> dict[str, list[str]]:
    """Case identifiers and image files, one per channel, of a raw dataset.

    Raises:
        DatasetError: The dataset is not in nnUNet_raw or has no images.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    folder = nnunet_folder("nnUNet_raw") / dataset
    if not (folder / "imagesTr").is_dir() and "dataset" not in dataset_json:
        raise DatasetError(f"{folder}/imagesTr does not exist. Import the images first: nnunet_genesis import --help")
    found = get_filenames_of_train_images_and_targets(str(folder), dataset_json)
    if not found:
        raise DatasetError(f"{folder}/imagesTr holds no image that ends in {dataset_json['file_ending']}.")
    return {case: [str(image) for image in files["images"]] for case, files in found.items()}


def _fingerprint(plans: dict[str, Any], dataset_json: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint without labels: geometry from the image headers, intensities from the plans.

    nnU-Net copies the file at the start of a training and reads nothing from it.
    """
    spacings, shapes = [], []
    for images in tqdm(raw_cases(plans["dataset_name"], dataset_json).values(), desc="Reading headers", unit="case"):
        if header := header_of(images[0], plans["image_reader_writer"]):
            shapes.append(list(header[0]))
            spacings.append(list(header[1]))
    return {
        "spacings": spacings,
        "shapes_after_crop": shapes,
        "foreground_intensity_properties_per_channel": plans["foreground_intensity_properties_per_channel"],
        "median_relative_size_after_cropping": 1.0,
        "made_by": "nnunet-genesis, without labels: shapes are those before cropping, intensities are the plans'",
    }


def header_of(image: str, reader: str) -> tuple[tuple[int, ...], tuple[float, ...]] | None:
    """Voxels and spacing in mm along z, y, x, as nnU-Net's class `reader` has them; None if there is no header."""
    header = sitk.ImageFileReader()
    header.SetFileName(image)
    try:
        header.ReadImageInformation()
    except RuntimeError:
        return None  # of a kind that nnU-Net reads otherwise, or damaged: preprocessing will name it
    size, spacing = header.GetSize()[::-1], header.GetSpacing()[::-1]
    if reader == FLAT_READER:
        size, spacing = size[-2:], (1.0, 1.0)
    if len(size) == 2:
        size, spacing = (1, *size), (FAR * max(spacing), *spacing)
    return size, spacing
