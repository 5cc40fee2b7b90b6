"""A challenge's download → a complete raw dataset of nnU-Net; goes on where an interrupted run stopped."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_genesis.challenges.case_log import REPORT, CaseLog, CaseRecord
from nnunet_genesis.challenges.download import CHALLENGE, FOLDS_FILE, Case, Download
from nnunet_genesis.challenges.segmentation_file import information, values_in
from nnunet_genesis.errors import DatasetError, GenesisError, printable
from nnunet_genesis.files import write_json, written_atomically
from nnunet_genesis.importing.into_dataset import dataset_folder, write_image, writing
from nnunet_genesis.importing.read import (
    Geometry,
    UnusableScanError,
    check_nifti,
    is_gzip,
    read_channels,
    read_image,
)
from nnunet_genesis.parallel import each_case

ENDING = ".nii.gz"
FOLDS = 5


@dataclass(frozen=True)
class DatasetReport:
    """What `write_dataset` did.

    Attributes:
        folder: The dataset.
        written: Number of cases written in this run.
        already_there: Number of cases found finished.
        left_out: Case → why it is not in the dataset.
        mended: Case → what was put right in it.
        splits: Number of folds in the file of splits that was written; 0 without one.
    """

    folder: Path
    written: int
    already_there: int
    left_out: dict[str, str]
    mended: dict[str, str]
    splits: int


@dataclass(frozen=True)
class CaseJob:
    """One case to write: small enough to send to a worker. The label, if any, is the last output."""

    key: str
    case: Case
    state: str
    outputs: tuple[Path, ...]
    workshop: Path
    values: Mapping[int, int]


def write_dataset(
    download: Download,
    raw: Path,
    dataset_id: int,
    name: str | None = None,
    *,
    processes: int = 1,
    progress: bool = True,
) -> DatasetReport:
    """Make or complete the dataset `raw/DatasetXXX_Name`, with dataset.json and, where patients ask for it, splits.

    Files that nnU-Net can read as they are become hard links, or copies on another file system; the others are
    converted. Finished cases are not read again unless their files have changed. Cases that cannot be used are named
    in the result and in `challenge_report.json`, and stop nothing. `dataset.json` is written last.

    Args:
        download: What was found.
        raw: nnU-Net's folder of raw datasets (`nnUNet_raw`).
        dataset_id: 1 to 999.
        name: Name of the dataset without number; that of the download by default.
        processes: Number of worker processes; each holds one case in memory.
        progress: Show a progress bar.

    Raises:
        DatasetError: Id or name do not fit nnU-Net, the folder holds something else, a file cannot be written, or no
            case with a label is left.
    """
    cases = [*download.training, *download.test]
    if len({case.name.lower() for case in cases}) < len(cases):
        raise DatasetError(f"The download of {download.challenge} has two cases of one name. Name a folder without.")
    folder = dataset_folder(raw, dataset_id, name or download.name)
    log = CaseLog.read(folder, download.origin)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        log.save()  # from here on the folder is known for one of ours
        for part in ("imagesTr", "labelsTr", *(["imagesTs"] if download.test else [])):
            (folder / part).mkdir(exist_ok=True)
        _remove_leftovers(folder)
        jobs = _open_jobs(download, folder, log)
        log.save()
    _work(jobs, log, processes, progress)
    keys = _keys(download)
    left_out = {case: log.cases[key].reason for key, case in keys.items() if log.cases[key].reason}
    mended = {case: log.cases[key].note for key, case in keys.items() if log.cases[key].note}
    with writing(folder):
        folds = _describe(download, folder)
    written = sum(not log.cases[job.key].reason for job in jobs)
    return DatasetReport(folder, written, len(cases) - len(left_out) - written, left_out, mended, folds)


def write_case(job: CaseJob) -> str:
    """Write one case: all of its files, or nothing; what was put right in it.

    The label comes to its place before the images: nnU-Net finds cases by their images.

    Raises:
        UnusableScanError: The case is left out.
        DatasetError: It could not be written.
    """
    with writing(job.outputs[0]), ExitStack() as stack:
        targets = [stack.enter_context(written_atomically(output, job.workshop)) for output in job.outputs]
        if job.case.label is None:
            _write_images(job.case, targets, job.workshop)
            return ""
        geometry = _write_images(job.case, targets[:-1], job.workshop)
        return _write_label(job.case.label, geometry, job.values, targets[-1])


def _write_images(case: Case, targets: Sequence[Path], workshop: Path) -> Geometry:
    """Write the channels of a case; where they lie."""
    if len(case.images) < len(targets):
        return _split(case.images[0], targets, workshop)
    first: Geometry | None = None
    images = read_channels([(file,) for file in case.images])
    for image, file, target in zip(images, case.images, targets, strict=True):
        first = first or Geometry.of(image)
        write_image(image, first, file, target, _take_over)
    if first is None:
        raise UnusableScanError("has no image")
    return first


def _split(file: Path, targets: Sequence[Path], workshop: Path) -> Geometry:
    """Write the channels of a four-dimensional file, with nnU-Net's own function; where they lie."""
    from nnunetv2.dataset_conversion.convert_MSD_dataset import split_4d_nifti

    check_nifti(file)
    reader = information(file)
    size = reader.GetSize()
    if len(size) != 4 or size[3] != len(targets):
        shown = " x ".join(map(str, size))
        raise UnusableScanError(f"its image is {shown}, without the {len(targets)} channels of this task")
    with tempfile.TemporaryDirectory(prefix=".incomplete_", dir=workshop) as shelf:
        split_4d_nifti(str(file), shelf)  # it writes names of its own choice, and not atomically: hence the shelf
        for part, target in zip(sorted(Path(shelf).iterdir()), targets, strict=True):
            os.replace(part, target)
    return Geometry.of(information(targets[0]))


def _write_label(file: Path, geometry: Geometry, values: Mapping[int, int], target: Path) -> str:
    """Write the segmentation of a case, on the grid of its image; what was put right in it.

    nnU-Net refuses labels that lie elsewhere than their image, or tells nothing and trains on them.
    """
    try:
        image = read_image([file])
    except UnusableScanError as error:
        raise UnusableScanError(f"its label {error}") from None
    labels = sitk.GetArrayViewFromImage(image)
    if strangers := sorted(values_in(labels) - set(values)):
        shown = ", ".join(f"{value:g}" for value in strangers[:5])
        raise UnusableScanError(f"its label holds {shown}, but the labels of the challenge are {_list(values)}")
    difference = geometry.difference(Geometry.of(image))
    if difference == "size":
        raise UnusableScanError(f"its label has another size than the image ({image.GetSize()}, {geometry.size})")
    unchanged = all(value == new for value, new in values.items())
    # nnU-Net's verification tolerates less than we do
    same = not difference and np.allclose(geometry.spacing, image.GetSpacing())
    if unchanged and same and file.name.endswith(ENDING) and is_gzip(file):
        _take_over(file, target)
        return ""
    table = np.zeros(max(values) + 1, np.uint8)
    table[list(values)] = list(values.values())
    mapped = sitk.GetImageFromArray(table[labels.astype(np.uint8)])
    geometry.give_to(mapped)
    sitk.WriteImage(mapped, str(target), useCompression=True)
    return f"its label had another {difference} than the image and now has the image's" if difference else ""


def _take_over(file: Path, target: Path) -> None:
    """Give the same file a second name, which takes no space; copy it from another file system."""
    target.unlink(missing_ok=True)
    try:
        os.link(file.resolve(), target)
    except OSError:
        shutil.copyfile(file, target)


def _list(values: Mapping[int, int]) -> str:
    return ", ".join(map(str, sorted(values)))


def _keys(download: Download) -> dict[str, str]:
    """Name in the report → case."""
    training = {f"imagesTr/{case.name}": case.name for case in download.training}
    return training | {f"imagesTs/{case.name}": case.name for case in download.test}


def _open_jobs(download: Download, folder: Path, log: CaseLog) -> list[CaseJob]:
    """The cases still to be written; every case gets a record, and what is there of those without is removed."""
    jobs = []
    for part, cases in (("imagesTr", download.training), ("imagesTs", download.test)):
        for case in cases:
            images = [folder / part / f"{case.name}_{n:04d}{ENDING}" for n in range(len(download.channels))]
            outputs = (*images, *([folder / "labelsTr" / (case.name + ENDING)] if part == "imagesTr" else []))
            key, state = f"{part}/{case.name}", case.flaw or case.state()
            record = log.cases.setdefault(key, CaseRecord())
            if record.state == state and (record.reason or all(output.is_file() for output in outputs)):
                continue
            for output in outputs:  # also since a name is not replaced by another name of the same file
                output.unlink(missing_ok=True)
            log.cases[key] = CaseRecord(state if case.flaw else "", case.flaw)
            if not case.flaw:
                jobs.append(CaseJob(key, case, state, outputs, folder, dict(download.values)))
    return jobs


def _work(jobs: Sequence[CaseJob], log: CaseLog, processes: int, progress: bool) -> None:
    """Write the cases and record what became of each."""
    name = log.path.parent.name
    try:
        with tqdm(total=len(jobs), desc=f"Writing {name}", unit="case", disable=not progress) as bar:
            for job, result in each_case(write_case, jobs, processes):
                log.cases[job.key] = _record(job, result)
                log.save_now_and_then()
                bar.update()
    finally:
        log.save()


def _record(job: CaseJob, result: str | Exception) -> CaseRecord:
    """What became of a job.

    Raises:
        GenesisError: The error is not about this case, so the others would fail as well.
    """
    if isinstance(result, str):
        return CaseRecord(job.state, note=result)
    if isinstance(result, UnusableScanError):
        return CaseRecord(job.state, str(result))
    if isinstance(result, GenesisError):
        raise result
    return CaseRecord("", printable(f"unexpected {type(result).__name__}: {result}", 200))


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders of runs that were killed."""
    for path in folder.glob(".incomplete_*"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _describe(download: Download, folder: Path) -> int:
    """Write splits and dataset.json; the number of folds.

    Raises:
        DatasetError: There is no case with a label.
    """
    suffix = f"_0000{ENDING}"  # nnU-Net counts the cases like this
    cases = sorted(path.name.removesuffix(suffix) for path in (folder / "imagesTr").glob(f"*{suffix}"))
    if not cases:
        raise DatasetError(f"No case of {download.challenge} could be used: see {folder / REPORT} for the reasons.")
    splits = splits_by_patient(cases, download.patients)
    if splits:
        write_json(splits, folder / FOLDS_FILE)
    else:  # those of an earlier run may name cases that are gone
        (folder / FOLDS_FILE).unlink(missing_ok=True)
    channels = {str(number): channel for number, channel in enumerate(download.channels)}
    content: dict[str, Any] = {"name": folder.name, **download.description, "channel_names": channels}
    content |= {"labels": dict(download.labels), "numTraining": len(cases), "file_ending": ENDING}
    content[CHALLENGE] = {"name": download.challenge, **download.description.get(CHALLENGE, {})}
    write_json(content, folder / "dataset.json")
    return len(splits)


def splits_by_patient(cases: Sequence[str], patients: Mapping[str, str]) -> list[dict[str, list[str]]]:
    """Folds of nnU-Net's split that keep the cases of a patient together; none if no patient has several cases.

    Args:
        cases: Names of the cases with labels.
        patients: Case → patient.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    everyone = sorted({patients.get(case, case) for case in cases})
    if len(everyone) in (1, len(cases)):
        return []
    folds = generate_crossval_split(everyone, seed=12345, n_splits=min(FOLDS, len(everyone)))  # nnU-Net's own seed
    return [
        {part: [case for case in cases if patients.get(case, case) in fold[part]] for part in ("train", "val")}
        for fold in folds
    ]
