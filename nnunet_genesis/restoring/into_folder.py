"""Scans in files → a folder with restored volumes, difference maps, scores and a page that shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_genesis.checkpoints.saving import versions
from nnunet_genesis.errors import CheckpointError, DatasetError, printable
from nnunet_genesis.files import sha256, write_json, written_atomically
from nnunet_genesis.hub.locating import located, origin
from nnunet_genesis.importing.find import Scan, case_names, find_scans
from nnunet_genesis.importing.journal import PLANES
from nnunet_genesis.importing.read import Geometry, read_channels
from nnunet_genesis.restoring.restorer import Restorer, Volume
from nnunet_genesis.restoring.sheet import Row, row, write_sheet

SHEET, SCORES = "restore.html", "restore.json"
REORIENTING = "NibabelIOWithReorient"
"""nnU-Net's reader that turns and mirrors images until their axes point to right, anterior, superior."""


@dataclass(frozen=True)
class RestoreReport:
    """What `restore_scans` did.

    Attributes:
        folder: Where the files are.
        scores: Case → mean and 99th percentile of its difference, the largest mean first.
        left_out: Source → why it was not restored.
    """

    folder: Path
    scores: dict[str, tuple[float, float]]
    left_out: dict[str, str]


@dataclass(frozen=True)
class Case:
    """A scan and what became of it, all on its grid; scores are mean and 99th percentile of the difference."""

    original: list[sitk.Image]
    restored: list[sitk.Image]
    difference: sitk.Image
    scores: tuple[float, float]


def restore_scans(
    checkpoint: str | Path, sources: Sequence[Path], folder: Path, *, device: str = "cpu", hide: int = 0,
    progress: bool = True,
) -> RestoreReport:  # fmt: skip
    """Restore scans; one at a time is in memory. Files of an earlier run are written again.

    For each case `CASE_restored.nii.gz` (with several channels `CASE_restored_0000.nii.gz`, …) in the intensities of
    the scan, and `CASE_difference.nii.gz`, both on the scan's grid; for all of them `restore.html` and `restore.json`.

    Args:
        checkpoint: Of nnUNetTrainerGenesisPretrain; a path or an address.
        sources: Files and folders, searched with their subfolders; formats and names as in an import.
        folder: Where to write; made if need be. Scans in it are not restored.
        device: cpu, cuda or mps.
        hide: Parts in which the network sees an image, as `Restorer` says; 0: as a whole.
        progress: Show a progress bar.

    Raises:
        CheckpointError: The checkpoint cannot be read, or its network does not restore.
        GenesisError: Its plans or settings are not as they should be, or `hide` is out of range.
        DatasetError: A source is missing or in the folder, no scan can be restored, or a file cannot be written.
    """
    _refuse_scans_in(folder, sources)
    checkpoint = located(checkpoint)
    restorer = Restorer(checkpoint, device, hide)
    if restorer.plans.plans["image_reader_writer"] == PLANES.reader:
        raise CheckpointError(
            f"{checkpoint} was trained on 2D images; restore reads and writes volumes only. See restoration_final.png "
            "of the pre-training, or name a checkpoint of volumes."
        )
    scans = find_scans(sources, len(restorer.channels), skip=folder)
    names = case_names(scans, {})
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    for scan in tqdm(scans, desc="Restoring", unit="scan", disable=not progress):
        try:
            case = _restored(scan, restorer)
        except DatasetError as error:
            left_out[printable(scan.source)] = str(error)
            continue
        rows.append(_write(names[scan.source], scan, case, folder))
    if not rows:
        source, why = next(iter(left_out.items()))
        more = f" And {len(left_out) - 1} more." if len(left_out) > 1 else ""
        raise DatasetError(f"Nothing was restored: {source} {why}. The checkpoint reads {channels_of(restorer)}.{more}")
    rows.sort(key=lambda one: one.mean, reverse=True)
    _summarise(rows, left_out, checkpoint, hide, folder)
    return RestoreReport(folder, {one.case: (one.mean, one.peak) for one in rows}, left_out)


def _summarise(rows: list[Row], left_out: dict[str, str], checkpoint: Path, hide: int, folder: Path) -> None:
    """Write the page and the scores of all cases."""
    way = f"seen in {hide} parts, one at a time" if hide else "seen as a whole"
    write_sheet(rows, f"{len(rows)} scans, {way}; checkpoint {checkpoint.name}", folder / SHEET)
    scores = {one.case: {"mean": one.mean, "99th percentile": one.peak, "source": one.source} for one in rows}
    facts = {"unit": "normalised intensities", "checkpoint": origin(checkpoint) or checkpoint.name,
             "sha256": sha256(checkpoint), "hide": hide, "versions": versions(), "cases": scores,
             "left_out": left_out}  # fmt: skip
    write_json(facts, folder / SCORES)


def channels_of(restorer: Restorer) -> str:
    """The channels that a network reads, in words."""
    count = len(restorer.channels)
    names = printable(", ".join(restorer.channels), 200)
    return (
        f"{count} channels ({names}), in files that end in _0000, _0001, …" if count > 1 else f"one channel ({names})"
    )


def _refuse_scans_in(folder: Path, sources: Sequence[Path]) -> None:
    """The folder of results must not be one of scans, whose names results might take."""
    for source in sources:
        if source.resolve().is_relative_to(folder.resolve()):
            raise DatasetError(f"{source} lies in {folder}, where results are to be written. Name another folder.")


def _restored(scan: Scan, restorer: Restorer) -> Case:
    """Read a scan and restore it.

    Raises:
        DatasetError: The scan cannot be used.
    """
    if scan.flaw:
        raise DatasetError(scan.flaw)
    images = list(read_channels(scan.channels))
    seen = images
    if restorer.plans.plans["image_reader_writer"] == REORIENTING:
        seen = [sitk.DICOMOrient(image, "RAS") for image in images]
    volumes = np.stack([sitk.GetArrayViewFromImage(image) for image in seen]).astype(np.float32, copy=False)
    done = restorer.restore(volumes, seen[0].GetSpacing()[::-1])
    within = done.difference[done.box]
    scores = float(within.mean(dtype=np.float64)), float(np.percentile(within, 99))
    channels: Iterable[Volume] = done.volume
    restored = [_on_grid(volume, seen[0], images[0]) for volume in channels]
    return Case(images, restored, _on_grid(done.difference, seen[0], images[0]), scores)


def _on_grid(volume: Volume, seen: sitk.Image, original: sitk.Image) -> sitk.Image:
    """A volume on the grid that the network saw → an image on the grid of the original."""
    image = sitk.GetImageFromArray(volume)
    image.CopyInformation(seen)
    if seen is not original and seen.GetDirection() != original.GetDirection():
        code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(original.GetDirection())
        image = sitk.DICOMOrient(image, code)
    Geometry.of(original).give_to(image)
    return image


def _write(name: str, scan: Scan, case: Case, folder: Path) -> Row:
    """Write the files of a case; its row of the page."""
    several = len(case.restored) > 1
    for number, image in enumerate(case.restored):
        _write_image(image, folder / f"{name}_restored{f'_{number:04d}' if several else ''}.nii.gz")
    _write_image(case.difference, folder / f"{name}_difference.nii.gz")
    original, restored, difference = map(
        sitk.GetArrayViewFromImage, (case.original[0], case.restored[0], case.difference)
    )
    spacing = case.difference.GetSpacing()[::-1]
    return row(name, printable(scan.source), original, restored, difference, spacing, case.scores)


def _write_image(image: sitk.Image, path: Path) -> None:
    """Write an image, and look whether its format has kept the geometry.

    Raises:
        DatasetError: It cannot be written, or its geometry cannot be kept.
    """
    with written_atomically(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:
            why = printable(str(error).strip().rpartition("\n")[2], 200)
            raise DatasetError(
                f"{path} could not be written ({why}). Make space or give access, then run again."
            ) from None
        written = sitk.ImageFileReader()
        written.SetFileName(str(temporary))
        written.ReadImageInformation()
        if difference := Geometry.of(image).difference(Geometry.of(written)):
            raise DatasetError(f"The {difference} of {path} cannot be kept in NIfTI format. Resample the scan.")
