"""Medical Segmentation Decathlon: its ten tasks as downloads, and the archive that its server takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from nnunet_genesis.challenges.archive import Submission, Wanted
from nnunet_genesis.challenges.download import CASE_NAME, CHALLENGE, Case, Download, files_below, once
from nnunet_genesis.errors import DatasetError, printable
from nnunet_genesis.files import read_json
from nnunet_genesis.plans_checks import check_description

NAME = "msd"
TASK = re.compile(r"Task(\d\d)_(\w+)", flags=re.ASCII)
ENDING = ".nii.gz"
OVERLAPS = {
    "Task01_BrainTumour": "BraTS 2016 and 2017 have the same cases under other names, and other years overlap with "
    "them: do not pre-train on BraTS and test on this task. Channels are "
    "in the order FLAIR, T1w, t1gd, T2w, in BraTS (`dataset brats`) T1w, t1gd, T2w, FLAIR: the command transfer "
    "matches them by name; other tools must be told.",
    "Task03_Liver": "LiTS is the same data, training and test: do not pre-train on one and test on the other.",
}
"""What other public data have in common with a task."""
TASKS = ("Task01_BrainTumour", "Task02_Heart", "Task03_Liver", "Task04_Hippocampus", "Task05_Prostate", "Task06_Lung",
         "Task07_Pancreas", "Task08_HepaticVessel", "Task09_Spleen", "Task10_Colon")  # fmt: skip
EXCLUDED = frozenset(f"liver_{n}" for n in (141, 156, 160, 161, 162, 164, 167, 182, 189, 190)) | {"hepaticvessel_247"}
"""Test cases that the challenge asks to leave out of a submission."""


def find_download(source: Path) -> Download:
    """The cases, channels and labels of a task.

    nnU-Net's nnUNetv2_convert_MSD_dataset is not called as a whole: it refuses folders with a second underscore and an
    id that is in use, so that it cannot go on after an interruption; it fails at a dataset.json without "test" when the
    images are written; it does not recount cases and writes files in place. The function in it that splits
    four-dimensional images is right, and is called (`raw_dataset`).

    Args:
        source: A folder `TaskNN_Name` with dataset.json, imagesTr, labelsTr and, for a submission, imagesTs.

    Raises:
        DatasetError: It is no such folder, or dataset.json is not the Decathlon's.
    """
    source = source.absolute()
    if not source.is_dir():
        next(files_below(source), None)  # says what is wrong
    task = TASK.fullmatch(source.name)
    if not task:
        raise DatasetError(f"{source} is no folder of a Decathlon task, such as Task03_Liver. Name that folder.")
    path = source / "dataset.json"
    content = read_json(path, "The task's description", "Name the folder TaskNN_Name of the Decathlon.")
    channels, labels = described(content, path)
    named = {part: set(_named(content, part, path)) for part in ("training", "test")}
    images, tests = _images(source / "imagesTr"), _images(source / "imagesTs")
    references = _images(source / "labelsTr")
    training = [
        _case(case, images.get(case), references.get(case))
        for case in sorted({*images, *references, *named["training"]})
    ]
    test = [
        Case(case, (tests[case],)) if case in tests else Case(case, flaw="its image is missing")
        for case in sorted({*tests, *named["test"]})
    ]
    kept = ("description", "reference", "licence", "release", "tensorImageSize")
    facts = {key: str(content[key]) for key in kept if key in content}
    if "relase" in content:  # so misspelled in several of the archives
        facts.setdefault("release", str(content["relase"]))
    return Download(
        challenge=NAME,
        name=task[2],
        channels=channels,
        labels=labels,
        values={value: value for value in labels.values()},
        training=tuple(training),
        test=tuple(test),
        # of the test cases also those that cannot be used: a submission wants them all
        description={**facts, CHALLENGE: {"task": source.name, "test": sorted({*tests, *named["test"]})}},
        notes=(OVERLAPS[source.name],) if source.name in OVERLAPS else (),
    )


def described(content: Mapping[str, Any], path: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Channels and labels (name → value) of the Decathlon's dataset.json, which has the latter the other way round.

    Raises:
        DatasetError: It has others, or none.
    """
    try:
        channels = {int(number): str(name) for number, name in content["modality"].items()}
        values = {int(value): str(name) for value, name in content["labels"].items()}
        values[0] = "background"
        fine = sorted(channels) == list(range(len(channels))) and sorted(values) == list(range(len(values)))
        fine = fine and 0 < len(channels) <= 16 and len(set(values.values())) == len(values) <= 256
    except (KeyError, ValueError, AttributeError):
        fine = False
    if not fine:
        raise DatasetError(
            f'{path} is not the Decathlon\'s: "modality" and "labels" must have names under the numbers 0, 1, … '
            "Download it again."
        )
    names = {values[value]: value for value in sorted(values)}
    return tuple(channels[number] for number in sorted(channels)), names


def _named(content: Mapping[str, Any], part: str, path: Path) -> Iterator[str]:
    """Cases that dataset.json lists; only the names of files are used, not where they are said to lie."""
    entries = content.get(part, [])
    if not isinstance(entries, list):
        raise DatasetError(f'{path}: "{part}" must be a list of cases. Download it again.')
    for entry in entries:
        image = entry.get("image") if isinstance(entry, dict) else entry
        name = PurePosixPath(image).name if isinstance(image, str) else ""
        if not name.endswith(ENDING) or not CASE_NAME.fullmatch(case := name.removesuffix(ENDING)):
            raise DatasetError(f'{path}: "{part}" lists {printable(entry, 80)}, no image. Download it again.')
        yield case


def _images(folder: Path) -> dict[str, Path]:
    """Case → file.

    Raises:
        DatasetError: A case is there twice, by names that differ in letter case.
    """
    if not folder.is_dir():
        return {}
    files = [file for file in files_below(folder) if file.parent == folder and file.name.lower().endswith(ENDING)]
    found: dict[str, Path] = {}
    for file in files:
        if CASE_NAME.fullmatch(case := file.name[: -len(ENDING)]):
            once(found, case, file)
    return found


def _case(name: str, image: Path | None, label: Path | None) -> Case:
    if image and label:
        return Case(name, (image,), label)
    missing = "image and label are" if not image and not label else "image is" if not image else "label is"
    return Case(name, flaw=f"its {missing} missing")


def _listed(content: Mapping[str, Any], path: Path) -> list[str]:
    """Test cases of the download, as a dataset that was made from it lists them."""
    block = content.get(CHALLENGE)
    cases = block.get("test", []) if isinstance(block, dict) else []
    if not isinstance(cases, list) or not all(isinstance(case, str) and CASE_NAME.fullmatch(case) for case in cases):
        raise DatasetError(f'{path}: "test" must be a list of names of cases. Make the dataset again.')
    return cases


def plan_submission(predictions: Path | None, images: Path, partial: bool = False) -> Submission:
    """What the leaderboard wants: a folder for each task, files named like the test images, without the 11 excluded.

    Args:
        predictions: Folder with a folder for each task, named like the task; None to check an archive.
        images: Folder with the tasks as downloaded, or with nnU-Net's datasets that were made from them (nnUNet_raw).
            One task's folder will do for one task; for predictions, too.
        partial: Whether to take the tasks that there are predictions for (test images, without predictions), in place
            of all ten.

    Raises:
        DatasetError: There is no task.
    """
    there = _tasks_below(images)
    folders = _prediction_folders(predictions) if predictions else dict.fromkeys(there, Path())
    tasks = sorted(folders) if partial else list(TASKS)
    wanted: list[Wanted] = []
    excluded, missing = [], []
    for task in tasks:
        if task not in there:
            missing.append(f"{task}: there are no test images of this task in {images}")
        elif task not in folders:
            missing.append(f"{task}: there is no folder of predictions for this task")
        else:
            tests, values = _tests(there[task])
            for case, image in sorted(tests.items()):
                file = folders[task] / (case + ENDING)
                if case in EXCLUDED:
                    excluded.append(file)
                else:
                    wanted.append(Wanted(f"{task}/{case}{ENDING}", file, image, values))
    if not wanted and not missing:
        raise DatasetError(
            f"There is no folder of one of the ten tasks, such as Task03_Liver, in {predictions or images}."
        )
    return Submission(tuple(wanted), tuple(excluded), tuple(missing))


def _prediction_folders(predictions: Path) -> dict[str, Path]:
    """Task → its folder of predictions."""
    inside = [predictions.absolute(), *(sorted(predictions.iterdir()) if predictions.is_dir() else [])]
    return {folder.name: folder for folder in inside if folder.name in TASKS and folder.is_dir()}


def _tasks_below(images: Path) -> dict[str, Path]:
    """Task → its folder: as downloaded, or a dataset that was made from it."""
    images = images.absolute()
    if images.name == "imagesTs":
        images = images.parent
    if not images.is_dir():
        next(files_below(images), None)  # says what is wrong
    found = {}
    for folder in (images, *sorted(images.iterdir())):
        if folder.name in TASKS and folder.is_dir():
            found[folder.name] = folder
        elif (folder / "dataset.json").is_file():
            block = read_json(folder / "dataset.json", "The dataset description", "Correct it.").get(CHALLENGE)
            task = block.get("task") if isinstance(block, dict) and block.get("name") == NAME else None
            if task in TASKS:
                found.setdefault(task, folder)
    return found


def _tests(folder: Path) -> tuple[dict[str, Path | None], dict[int, int]]:
    """Test case → image, and the labels of a task, from its download or a dataset that was made from it."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    path = folder / "dataset.json"
    content = read_json(path, "The task's description", "Name the folder of the Decathlon, or nnU-Net's datasets.")
    images = _images(folder / "imagesTs")
    if "channel_names" in content:  # nnU-Net's
        check_description(content, f"The dataset description {path}")
        values = LabelManager(content["labels"], content.get("regions_class_order")).all_labels
        first = {case.removesuffix("_0000"): image for case, image in images.items() if case.endswith("_0000")}
        return {**dict.fromkeys(_listed(content, path)), **first}, {int(value): int(value) for value in values}
    _, labels = described(content, path)
    named = dict.fromkeys(_named(content, "test", path))
    return {**named, **images}, {value: value for value in labels.values()}
