"""Raw images without labels → volumes in nnU-Net's preprocessed layout, by nnU-Net's own preprocessor."""

from __future__ import annotations

import glob
import math
import os
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunet_genesis.errors import DatasetError, GenesisError, reason
from nnunet_genesis.files import read_json, sha256, write_json
from nnunet_genesis.ignored_regions import digest_in, mark, masks_of
from nnunet_genesis.importing.read import check_nifti
from nnunet_genesis.nnunet_dataset import (
    configuration_of,
    has_labels,
    made_by,
    preprocessed_folder,
    preprocessing_command,
    read_dataset_json,
    read_plans,
    record_of,
    refuse_cascade,
    refuse_other_plans,
)
from nnunet_genesis.parallel import each_case
from nnunet_genesis.planning import FLAT_READER, header_of, raw_cases
from nnunet_genesis.shards import EVERYTHING, LOCKS, Shard, claimed, file_name, one_at_a_time, share_of
from nnunet_genesis.volume_index import index_of

MOST_GROWTH = 1000
"""Voxels after resampling for each voxel of the image: ten along each axis."""
MOST_VOXELS = 2**32
"""Voxels of a resampled image: a cube with edges of 1600."""
ENDINGS = ("_seg.b2nd", ".pkl", ".b2nd")
"""The files of a case, in the order in which they get their final names: nnU-Net lists cases by `.b2nd`."""


@dataclass(frozen=True)
class Job:
    """One case to preprocess: small enough to send to a worker."""

    case: str
    images: tuple[str, ...]
    plans_file: str
    configuration: str
    dataset_json: str
    folder: str
    workshop: str
    mask: Path | None = None
    """File with the voxels that pre-training ignores."""


@dataclass
class PreprocessingReport:
    """What `preprocess` did: number of cases written, number found finished, and failures with their reason."""

    folder: Path
    written: int = 0
    already_there: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    unreadable: str = ""
    """One line on finished volumes that cannot be read any more."""

    def outcome(self) -> dict[str, Any]:
        """What became of the cases, for a file in it."""
        return {"written": self.written, "already_there": self.already_there, "failed": self.failed}


def preprocess(
    dataset: str, plans_name: str, configuration: str, *, shard: Shard = EVERYTHING, processes: int = 1,
    progress: bool = True,
) -> PreprocessingReport:  # fmt: skip
    """Preprocess the images of a raw dataset without reading labels.

    Transposes, crops to nonzero, normalises, resamples and stores like `nnUNetv2_preprocess`, whose files stock
    trainers can read. Masks in the raw dataset's `ignoreTr` mark what pre-training ignores. Finished cases are skipped
    unless their mask has changed; a killed run loses at most the unfinished cases. A case that fails is reported, also
    in `<data identifier>_preprocessing.json` beside the folder, and stops nothing. The folder's index is written last,
    not by a shard. Shards may run at the same time, in any order and again; a run of everything does what is missing.

    Args:
        dataset: Name of the dataset in `nnUNet_raw`.
        plans_name: Plans written by `nnunet_genesis plan`.
        configuration: A configuration of these plans.
        shard: (i, n): only every n-th case, from the i-th on; counted from 1.
        processes: Number of worker processes; memory grows with it, not with the number of cases.
        progress: Show a progress bar.

    Raises:
        DatasetError: Something is missing, the dataset has labels, the configuration is a cascade's second stage,
            a mask belongs to no case, or the finished cases were preprocessed with other plans.
        GenesisError: Another run is at work on some of these cases.
    """
    plans, description = read_plans(dataset, plans_name), read_dataset_json(dataset)
    folder = folder_to_fill(dataset, plans, configuration)
    base = folder.parent
    cases = raw_cases(dataset, description)
    masks = masks_of(dataset, cases, description["file_ending"])
    record = Record(record_of(folder), base / LOCKS / folder.name, made_by(plans, configuration))
    mine = share_of(list(cases), shard)
    with claimed(record.locks, shard):
        record.begin(folder, shard)
        workshop = _fresh_workshop(folder, shard)
        files = str(base / f"{plans_name}.json"), configuration, str(base / "dataset.json"), str(folder), str(workshop)
        unfinished = [
            Job(case, tuple(cases[case]), *files, masks.get(case))
            for case in mine
            if not is_finished(folder, case, masks.get(case))
        ]
        report = PreprocessingReport(folder, already_there=len(mine) - len(unfinished))
        _work(unfinished, report, processes, progress)
        shutil.rmtree(workshop, ignore_errors=True)
        record.finish(report, mine, shard)
        if shard == EVERYTHING and report.written + report.already_there:
            report.unreadable = index_of(folder).warning()
    return report


@dataclass(frozen=True)
class Record:
    """What is kept beside the volumes about how they were made, in a file that all shards write.

    Attributes:
        path: The file.
        locks: Folder of locks.
        made_by: What of the plans decides how a volume looks.
    """

    path: Path
    locks: Path
    made_by: dict[str, Any]

    def begin(self, folder: Path, shard: Shard) -> None:
        """Record the plans before the first volume.

        Raises:
            DatasetError: The volumes that are there were made by others.
        """
        with one_at_a_time(self.locks):
            refuse_other_plans(self.made_by, folder)
            kept = {} if shard == EVERYTHING else {"failed": self._failures()}
            write_json({"made_by": self.made_by} | kept, self.path)

    def finish(self, report: PreprocessingReport, mine: Sequence[str], shard: Shard) -> None:
        """Record what became of the cases; after a shard, the failures of all shards alone."""
        with one_at_a_time(self.locks):
            outcome = report.outcome()
            if shard != EVERYTHING:
                others = {case: why for case, why in self._failures().items() if case not in set(mine)}
                outcome = {"failed": others | report.failed}
            write_json({"made_by": self.made_by} | outcome, self.path)

    def _failures(self) -> dict[str, Any]:
        content = read_json(self.path, "The record", "Delete it.") if self.path.is_file() else {}
        failed = content.get("failed", {})
        return failed if isinstance(failed, dict) else {}


def _fresh_workshop(folder: Path, shard: Shard) -> Path:
    """Make the dataset's folder, and an empty one for unfinished volumes; those of killed runs go."""
    name = f"{folder.name}_unfinished"
    workshop = folder.with_name(name if shard == EVERYTHING else f"{name}_{file_name(shard)}")
    left = [workshop, *(folder.parent.glob(f"{glob.escape(name)}_*_of_*") if shard == EVERYTHING else ())]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    workshop.mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    return workshop


def folder_to_fill(dataset: str, plans: dict[str, Any], configuration: str) -> Path:
    """Where `preprocess` writes the volumes of a dataset.

    Raises:
        DatasetError: It has labels, or the configuration is unknown, a cascade's second stage or none of 2D images.
    """
    refuse_cascade(plans, configuration)
    manager = configuration_of(plans, configuration)
    if plans["image_reader_writer"] == FLAT_READER and len(manager.patch_size) > 2:
        raise DatasetError(f"{dataset} holds 2D images, of which {configuration} cannot be trained. Use 2d.")
    folder: Path = preprocessed_folder(dataset) / manager.configuration["data_identifier"]
    if has_labels(dataset):
        command = preprocessing_command(plans, configuration, folder.name)
        raise DatasetError(f"{dataset} has labels: nnU-Net's own volumes serve pre-training too. Run: {command}")
    return folder


def _clear(folder: Path, jobs: list[Job]) -> None:
    """Remove what is there of cases: a case whose mask has changed must not stay as it was if it fails now."""
    for job in jobs:
        for ending in reversed(ENDINGS):
            (folder / f"{job.case}{ending}").unlink(missing_ok=True)


def _work(jobs: list[Job], report: PreprocessingReport, processes: int, progress: bool) -> None:
    """Preprocess the cases and enter into the report what became of each."""
    _clear(report.folder, jobs)
    with tqdm(total=len(jobs), desc=f"Preprocessing {report.folder.name}", unit="case", disable=not progress) as bar:
        for job, result in each_case(preprocess_case, jobs, processes):
            if isinstance(result, Exception):
                report.failed[job.case] = reason(result)
            else:
                report.written += 1
            bar.update()


def is_finished(folder: Path, case: str, mask: Path | None = None) -> bool:
    """True when all files of a preprocessed case have their final names, and its mask is the one it was marked with."""
    import blosc2

    if not all((folder / f"{case}{ending}").is_file() for ending in ENDINGS):
        return False
    try:
        marked_with = digest_in(blosc2.open(str(folder / f"{case}_seg.b2nd"), mode="r"))
    except RuntimeError:  # damaged
        return False
    return marked_with == (sha256(mask) if mask else "")


def preprocess_case(job: Job) -> None:
    """Preprocess one case into the workshop, then rename its files into the dataset's folder.

    Raises:
        DatasetError: An image or mask is damaged, or the image holds NaN, infinite values or no variation at all, or
            the mask does not fit it.
    """
    plans_manager, configuration_manager = _managers(job.plans_file, job.configuration)
    for image in job.images:
        _check_nifti(image)
    _refuse_growth_of(job.images[0], plans_manager, configuration_manager)
    if job.mask:
        try:
            _check_nifti(str(job.mask))
            _refuse_growth_of(str(job.mask), plans_manager, configuration_manager)
        except GenesisError as error:
            raise DatasetError(f"its mask in {job.mask.parent.name} {error}") from None
    preprocessor = configuration_manager.preprocessor_class(verbose=False)
    unfinished = Path(job.workshop) / job.case
    preprocessor.run_case_save(
        str(unfinished), list(job.images), None, plans_manager, configuration_manager, job.dataset_json
    )
    _check_volume(unfinished)
    properties = _declare_unlabeled(Path(f"{unfinished}.pkl"))
    if job.mask:
        mark(unfinished, job.mask, plans_manager, configuration_manager, properties)
    for ending in ENDINGS:
        os.replace(f"{unfinished}{ending}", Path(job.folder) / f"{job.case}{ending}")


def _check_nifti(image: str) -> None:
    if image.endswith((".nii", ".nii.gz")):
        check_nifti(Path(image))  # SimpleITK reads files that are cut short, and NaN as 0


@lru_cache(maxsize=1)
def _managers(plans_file: str, configuration: str) -> tuple[Any, Any]:
    import torch
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.set_num_threads(1)
    plans_manager = PlansManager(plans_file)
    return plans_manager, plans_manager.get_configuration(configuration)


def _refuse_growth_of(image: str, plans_manager: Any, configuration_manager: Any) -> None:
    if header := header_of(image, plans_manager.plans["image_reader_writer"]):
        refuse_growth(*header, plans_manager.transpose_forward, configuration_manager.spacing)


def refuse_growth(size: Sequence[int], given: Sequence[float], order: Sequence[int], spacing: Sequence[float]) -> None:
    """Refuse an image whose header makes it grow without bounds when it is resampled.

    Args:
        size: Voxels along each axis, in any order.
        given: Spacing of the axes z, y, x in mm.
        order: The plans' order of these axes.
        spacing: That of the plans, in their order; two numbers for 2d.

    Raises:
        DatasetError: Names the spacings.
    """
    if len(given) != len(order):
        return
    given = tuple(given[axis] for axis in order)
    # 2d keeps the distance of slices, which are along the first axis
    growth = math.prod(given[-len(spacing) :]) / math.prod(spacing)
    voxels = growth * math.prod(size)
    if growth > MOST_GROWTH or voxels > MOST_VOXELS:
        shown = [", ".join(f"{step:g}" for step in steps) for steps in (given, spacing)]
        raise DatasetError(
            f"would become {voxels:.3g} voxels: its spacing is {shown[0]} mm, that of the plans {shown[1]} mm. Correct "
            "its header, or plan again"
        )


def _declare_unlabeled(properties_file: Path) -> dict[str, Any]:
    """Add the empty class locations that nnU-Net's loader asks for; all properties.

    The pickle is the one that nnU-Net's preprocessor has just written here: nobody else's code is in it.
    """
    properties = pickle.loads(properties_file.read_bytes()) | {"class_locations": {}}
    properties_file.write_bytes(pickle.dumps(properties))
    return properties  # type: ignore[no-any-return]


def _check_volume(unfinished: Path) -> None:
    import blosc2

    volume = blosc2.open(urlpath=f"{unfinished}.b2nd", mode="r")[:]
    if not np.isfinite(volume).all():
        raise DatasetError("holds NaN or infinite values after preprocessing; remove or repair the image")
    if volume.min() == volume.max():
        raise DatasetError("is constant after preprocessing; remove the image")
