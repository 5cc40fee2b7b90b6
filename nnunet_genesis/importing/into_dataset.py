"""Unlabeled scans (NIfTI, NRRD, MetaImage, DICOM) or 2D images → a dataset in nnU-Net's raw format, without labels."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_genesis.errors import DatasetError, GenesisError, printable
from nnunet_genesis.files import read_json, written_atomically
from nnunet_genesis.importing.find import Scan, case_names, find_scans
from nnunet_genesis.importing.journal import PLANES, VOLUMES, Journal, Layout, Record, describe
from nnunet_genesis.importing.pictures import TakeOver, read_planes
from nnunet_genesis.importing.read import Geometry, UnusableScanError, check_nifti, is_gzip, read_channels
from nnunet_genesis.parallel import each_case
from nnunet_genesis.shards import EVERYTHING, Shard, claimed, one_at_a_time, share_of


@dataclass(frozen=True)
class ImportReport:
    """What `import_scans` did.

    Attributes:
        folder: The dataset.
        imported: Number of cases written in this run.
        already_there: Number of cases found finished; of a shard, its own.
        rejected: Source → why it was not imported; includes those rejected by an earlier run and unchanged.
    """

    folder: Path
    imported: int
    already_there: int
    rejected: dict[str, str]


Write = Callable[[Path, TakeOver], None]
"""Writes a channel into a file that it is given, by taking over a file where that will do."""


@dataclass(frozen=True)
class ImportJob:
    """One scan to import: small enough to send to a worker."""

    scan: Scan
    state: str
    outputs: tuple[Path, ...]
    workshop: Path
    link: bool
    flat: bool


def import_scans(
    sources: Sequence[Path], raw: Path, dataset_id: int, name: str, channels: Sequence[str], *, flat: bool = False,
    link: bool = False, shard: Shard = EVERYTHING, processes: int = 1, progress: bool = True,
) -> ImportReport:  # fmt: skip
    """Make or extend the dataset `raw/DatasetXXX_Name` from scans without labels.

    Gzipped NIfTI files are copied as they are; all other formats are converted, geometry kept. 2D images become
    grey PNG files, one for each channel or colour, without spacing; grey PNG files are copied. Files in `imagesTr` are
    complete or not there; the same call continues where a killed run stopped. Finished cases and rejected scans are not
    read again unless their source has changed. Scans that cannot be used are named in the result and in
    `import_report.json`, and stop nothing.

    Shards may run at the same time, in any order and again. Names of cases do not depend on them: the first run gives
    all names. A run of everything completes the dataset: it does what is missing and writes `dataset.json`.

    Args:
        sources: Files and folders, searched with their subfolders.
        raw: nnU-Net's folder of raw datasets (`nnUNet_raw`).
        dataset_id: 1 to 999.
        name: Name of the dataset without number.
        channels: Channel names in the order of the files' numbers `_0000`, `_0001`, ….
        flat: Import 2D images (PNG, JPEG, TIFF, BMP, DICOM radiographs) in place of volumes.
        link: Make symbolic links to the files that would be copied.
        shard: (i, n): only every n-th scan, from the i-th on; counted from 1.
        processes: Number of worker processes; each holds one image in memory.
        progress: Show a progress bar.

    Raises:
        DatasetError: Id, name or channels do not fit nnU-Net or the dataset that is there; nothing was found;
            or a file could not be written.
        GenesisError: Another run is at work on some of these cases.
    """
    layout = PLANES if flat else VOLUMES
    folder = dataset_folder(raw, dataset_id, name)
    _check_channels(channels)
    _check_existing(folder, channels, layout)
    scans = find_scans(sources, len(channels), skip=folder, flat=flat)
    try:
        (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"{folder} cannot be made ({error.strerror}). Check nnUNet_raw.") from None
    journal, mine = Journal(folder, channels, layout), share_of(scans, shard)
    if shard != EVERYTHING:
        journal.mine = frozenset(scan.source for scan in mine)
    with claimed(journal.locks, shard):
        jobs, already_there = _begin(scans, mine, journal, sources, link)
        imported = _work(jobs, journal, processes, progress)
    reasons = {scan.source: journal.records[scan.source].reason for scan in mine}
    rejected = {source: reason for source, reason in reasons.items() if reason}
    return ImportReport(folder, imported, already_there, rejected)


def _begin(
    scans: Sequence[Scan], mine: Sequence[Scan], journal: Journal, sources: Sequence[Path], link: bool
) -> tuple[list[ImportJob], int]:
    """Name all cases, whoever imports them; what is left to do of mine, and how many of these are there already."""
    with one_at_a_time(journal.locks):
        journal.records = Journal.read(journal.folder, journal.channels, journal.layout).records
        _forget_solved_rejections(journal, scans, sources)
        _name_cases(scans, journal)
        jobs, already_there = _open_jobs(mine, journal, link)
        _remove_leftovers(journal, jobs)
        journal.write()
    return jobs, already_there


def _work(jobs: Sequence[ImportJob], journal: Journal, processes: int, progress: bool) -> int:
    """Import the scans and record what became of each; the number of cases imported."""
    imported = 0
    try:
        with tqdm(total=len(jobs), desc=f"Importing {journal.folder.name}", unit="case", disable=not progress) as bar:
            for job, result in each_case(import_scan, jobs, processes):
                imported += _note(journal.records[job.scan.source], job, result)
                journal.save_now_and_then()
                bar.update()
    finally:
        journal.save()
    return imported


def import_scan(job: ImportJob) -> None:
    """Read, check and write one case: all of its channels, or nothing.

    Raises:
        UnusableScanError: The scan is rejected.
        DatasetError: The case could not be written.
    """
    with ExitStack() as stack:
        for write, output in zip(_planes(job) if job.flat else _volumes(job), job.outputs, strict=True):
            with writing(output):
                write(
                    stack.enter_context(written_atomically(output, job.workshop)),
                    _link if job.link else shutil.copyfile,
                )


def _planes(job: ImportJob) -> Iterator[Write]:
    """What writes each channel of a 2D image into a file."""
    for plane in read_planes([file for (file,) in job.scan.channels], len(job.outputs)):
        yield plane.write


def _volumes(job: ImportJob) -> Iterator[Write]:
    """What writes each channel of a volume into a file."""
    first: Geometry | None = None
    for image, files in zip(read_channels(job.scan.channels), job.scan.channels, strict=True):
        first = first or Geometry.of(image)
        yield partial(write_image, image, first, files[0])


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Say in one line that a file cannot be written, whatever SimpleITK or the system raises.

    Raises:
        DatasetError: The block has raised something; names `output` and the reason.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        why = printable(str(error).strip().rpartition("\n")[2], 200)
        raise DatasetError(
            f"{output} could not be written ({why}). Make space or give access, then run the same "
            "command again: finished cases are kept."
        ) from None


def _link(file: Path, target: Path) -> None:
    target.symlink_to(file)


def write_image(image: sitk.Image, geometry: Geometry, file: Path, target: Path, take_over: TakeOver) -> None:
    """Take over a gzipped NIfTI file as it is; convert all else.

    A channel whose spacing deviates a little from the first one's is converted too and gets its geometry:
    nnU-Net tolerates less than we do.

    Args:
        image: What `file` holds.
        geometry: Of the first channel.
        file: The file of a scan.
        target: The file to write.
        take_over: Copies or links `file` to `target`.

    Raises:
        UnusableScanError: NIfTI cannot hold the geometry.
        OSError: `target` cannot be written.
    """
    target.unlink(missing_ok=True)
    same = np.allclose(geometry.spacing, image.GetSpacing())
    if same and file.name.lower().endswith(".nii.gz") and is_gzip(file):
        take_over(file, target)
        return
    if not same:
        geometry.give_to(image)
    sitk.WriteImage(image, str(target), useCompression=True)
    written = sitk.ImageFileReader()
    try:
        check_nifti(target)
        written.SetFileName(str(target))
        written.ReadImageInformation()
    except UnusableScanError as error:
        raise OSError(f"the written file {error}") from None
    if difference := geometry.difference(Geometry.of(written)):
        raise UnusableScanError(f"its {difference} cannot be kept in NIfTI format")


def dataset_folder(raw: Path, dataset_id: int, name: str) -> Path:
    """The folder of a dataset, which need not exist.

    Raises:
        DatasetError: nnU-Net cannot take id or name, or another dataset has the id.
    """
    if not 1 <= dataset_id <= 999:
        raise DatasetError(f"The dataset id must be a number from 1 to 999, not {dataset_id}.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name, flags=re.ASCII):
        raise DatasetError(
            f'The dataset name "{printable(name, 80)}" may have letters, digits, "_" and "-" only. Change it.'
        )
    prefix = f"Dataset{dataset_id:03d}"
    folder = Path(os.path.abspath(raw)) / f"{prefix}_{name}"
    for other in sorted(folder.parent.glob(f"{prefix}*")):
        if other.is_dir() and other.name != folder.name:
            raise DatasetError(f"The id {dataset_id} is used by {other.name}. Choose another id, or that name.")
    return folder


def _check_channels(channels: Sequence[str]) -> None:
    """Refuse names of channels that cannot be told apart."""
    if not channels or not all(channel.strip() and channel.isprintable() for channel in channels):
        raise DatasetError("Name the channels of the scans, for example --channels CT or --channels T1,T2.")
    if len({channel.casefold() for channel in channels}) < len(channels):
        raise DatasetError(f"Channel names must differ from each other: {', '.join(channels)}. Rename one.")


def _check_existing(folder: Path, channels: Sequence[str], layout: Layout) -> None:
    """Refuse to add to a dataset with labels or with other channels."""
    if (folder / "labelsTr").exists():
        raise DatasetError(f"{folder} has labels (labelsTr). Import scans without labels under another id.")
    if not (folder / "dataset.json").exists():
        return
    found = read_json(folder / "dataset.json", "The dataset description", "Choose another id.")
    ours = describe(folder, channels, layout)
    for key in ("channel_names", "labels", "file_ending"):
        if found.get(key) != ours[key]:
            both = f"{printable(found.get(key), 80)} instead of {printable(ours[key], 80)}"
            raise DatasetError(f"{folder} exists with other {key}: {both}. Use the same, or another id.")


def _name_cases(scans: Sequence[Scan], journal: Journal) -> None:
    """Every scan gets a record, and a name unless it has a flaw."""
    recorded = {source: record.case for source, record in journal.records.items() if record.case}
    names = case_names(scans, recorded)
    for scan in scans:
        record = journal.records.setdefault(scan.source, Record())
        record.case = names.get(scan.source, record.case)


def _open_jobs(scans: Sequence[Scan], journal: Journal, link: bool) -> tuple[list[ImportJob], int]:
    """The scans still to be imported and the number of finished ones."""
    already_there, jobs = 0, []
    for scan in scans:
        record = journal.records[scan.source]
        if scan.flaw:
            _remove(journal.case_files(record.case) if record.case else [])
            record.reason, record.state = scan.flaw, ""
            continue
        state = scan.state()
        outputs = tuple(journal.case_files(record.case))
        if record.reason and record.state == state:
            continue
        if not record.reason and record.state in ("", state) and all(output.is_file() for output in outputs):
            record.state = state
            already_there += 1
        else:
            jobs.append(ImportJob(scan, state, outputs, journal.folder, link, journal.layout is PLANES))
    return jobs, already_there


def _note(record: Record, job: ImportJob, result: object) -> int:
    """Record what became of a job; returns the number of cases imported, 0 or 1.

    Raises:
        GenesisError: The error is not about this scan, so the others would fail as well.
    """
    if isinstance(result, UnusableScanError):
        record.reason, record.state = str(result), job.state
    elif isinstance(result, GenesisError):
        raise result
    elif isinstance(result, Exception):
        record.reason, record.state = printable(f"unexpected {type(result).__name__}: {result}", 200), ""
    else:
        record.reason, record.state = "", job.state
        return 1
    _remove(job.outputs)
    return 0


def _forget_solved_rejections(journal: Journal, scans: Sequence[Scan], sources: Sequence[Path]) -> None:
    """Drop rejected sources that lie in the folders searched now but are no longer there."""
    found, roots = {scan.source for scan in scans}, [os.path.abspath(source) for source in sources]
    for source, record in list(journal.records.items()):
        if record.reason and source not in found and any(Path(source).is_relative_to(root) for root in roots):
            del journal.records[source]


def _remove_leftovers(journal: Journal, jobs: Sequence[ImportJob]) -> None:
    """Remove what killed runs left: temporary files, and unfinished cases that lack a channel; a shard, its own."""
    if journal.mine is None:
        _remove(list(journal.folder.glob(".incomplete_*")))
        records = list(journal.records.values())
    else:
        _remove([journal.folder / f".incomplete_{output.name}" for job in jobs for output in job.outputs])
        records = [journal.records[source] for source in journal.mine]
    for record in records:
        outputs = journal.case_files(record.case)
        if record.case and not record.state and not all(output.is_file() for output in outputs):
            _remove(outputs)


def _remove(files: Sequence[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
