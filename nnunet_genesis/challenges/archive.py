"""Predictions and test images → a challenge's archive, or all that is wrong; an archive → all that is wrong with it."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from nnunet_genesis.challenges.download import files_below
from nnunet_genesis.challenges.segmentation_file import BESIDES, faults, grid_of, write_final
from nnunet_genesis.errors import DatasetError, printable
from nnunet_genesis.files import written_atomically
from nnunet_genesis.importing.into_dataset import writing
from nnunet_genesis.importing.read import UnusableScanError
from nnunet_genesis.parallel import each_case

LARGEST_DIRECTORY = 4 << 20
"""Bytes of the list of an archive's files; that of the Decathlon, with 500 files, takes 50 KiB."""
DATE = (1980, 1, 1, 0, 0, 0)
"""Of all files in archives, so that the same predictions give the same bytes."""
MOST_NAMED = 50
"""Surplus files that are named."""


@dataclass(frozen=True)
class Wanted:
    """One file of an archive.

    Attributes:
        member: Its name there.
        prediction: nnU-Net's file.
        image: Its test image; None if it is missing.
        values: Label in the prediction → label in the archive.
    """

    member: str
    prediction: Path
    image: Path | None
    values: Mapping[int, int]


@dataclass(frozen=True)
class Submission:
    """What a challenge wants to be submitted.

    Attributes:
        wanted: The files of the archive.
        excluded: Predictions of test cases that the challenge asks to leave out.
        missing: What is wrong already, such as tasks without test images.
    """

    wanted: tuple[Wanted, ...]
    excluded: tuple[Path, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Job:
    wanted: Wanted
    archive: Path
    shelf: Path


def write_archive(submission: Submission, predictions: Path, archive: Path, processes: int = 1,
                  progress: bool = True) -> list[str]:  # fmt: skip
    """Write the archive, unless something is wrong: then nothing is written. What was written is checked like any.

    Args:
        submission: What the challenge wants.
        predictions: Folder of nnU-Net's predictions; every other file below it that is not nnU-Net's own is surplus.
        archive: The zip file to write. The same predictions give the same bytes.
        processes: Number of worker processes; each holds one segmentation in memory.
        progress: Show progress bars.

    Returns:
        All that is wrong, a line for each; empty if the archive was written.

    Raises:
        DatasetError: The archive cannot be written.
    """
    if archive.is_dir() or not archive.parent.is_dir():
        raise DatasetError(f"{archive} cannot be written: name a file (-o) in a folder that exists.")
    found = [*submission.missing, *_surplus_predictions(submission, predictions, archive)]
    with writing(archive), tempfile.TemporaryDirectory(prefix=".incomplete_", dir=archive.parent) as shelf:
        jobs = [_Job(wanted, archive, Path(shelf)) for wanted in submission.wanted]
        found += _each(_convert, jobs, processes, progress, "Converting")
        if found:
            return found
        with written_atomically(archive, Path(shelf)) as temporary:
            _pack(submission.wanted, Path(shelf), temporary)
            if found := check_archive(submission, temporary, processes, progress):
                raise DatasetError(f"{archive} does not hold what was put in: {found[0]}. Report this.")
    return []


def check_archive(submission: Submission, archive: Path, processes: int = 1, progress: bool = True) -> list[str]:
    """All that is wrong with an archive, a line for each. Nothing in it is unpacked under its own name.

    Raises:
        DatasetError: It is no zip file, or one that no submission needs.
    """
    surplus = _surplus_members(submission, archive)
    with tempfile.TemporaryDirectory() as shelf:
        jobs = [_Job(wanted, archive, Path(shelf)) for wanted in submission.wanted]
        return [*submission.missing, *surplus, *_each(_check, jobs, processes, progress, "Checking")]


def _each(function: Callable[[_Job], list[str]], jobs: Sequence[_Job], processes: int, progress: bool,
          title: str) -> list[str]:  # fmt: skip
    """What is wrong with each file, in the order of the jobs."""
    results: dict[str, list[str]] = {}
    with tqdm(total=len(jobs), desc=title, unit="case", disable=not progress) as bar:
        for job, result in each_case(function, jobs, processes):
            if isinstance(result, Exception):
                raise result
            results[job.wanted.member] = result
            bar.update()
    return [f"{job.wanted.member}: {line}" for job in jobs for line in results[job.wanted.member]]


def _convert(job: _Job) -> list[str]:
    """Write the file of the archive on the shelf, unless something is wrong."""
    wanted = job.wanted
    if wanted.image is None:
        return ["its test image is missing"]
    if not wanted.prediction.is_file():
        return [f"missing: there is no {wanted.prediction}"]
    wrong = faults(wanted.prediction, wanted.image, wanted.values, final=False)
    if not wrong:
        target = _on_shelf(job.shelf, wanted.member)
        target.parent.mkdir(exist_ok=True)
        write_final(wanted.prediction, wanted.image, wanted.values, target)
    return wrong


def _check(job: _Job) -> list[str]:
    """Look at one file of the archive, in a copy that is bounded by the size of its test image."""
    wanted = job.wanted
    if wanted.image is None:
        return ["its test image is missing"]
    try:
        geometry = grid_of(wanted.image)
    except UnusableScanError as error:
        return [f"its test image {wanted.image.name} {error}"]
    voxels = geometry.size[0] * geometry.size[1] * geometry.size[2]
    copy = _on_shelf(job.shelf, wanted.member)
    copy.parent.mkdir(exist_ok=True)
    try:
        with zipfile.ZipFile(job.archive) as archive, archive.open(wanted.member) as packed, copy.open("wb") as out:
            left = 2 * voxels + BESIDES  # also of a file that is wrong by being 16 bits wide
            while block := packed.read(min(left, 1 << 20)):
                left -= out.write(block)
        if left <= 0:
            return ["is larger than an image of its size"]
        return faults(copy, wanted.image, set(wanted.values.values()), final=True)
    except KeyError:
        return ["missing"]
    except Exception as error:  # whatever zipfile and its decompressors raise at damaged or hostile data
        return [printable(f"cannot be unpacked ({error})", 200)]
    finally:
        copy.unlink(missing_ok=True)


def _on_shelf(shelf: Path, member: str) -> Path:
    """A file for a member of the archive, in a folder of its own."""
    return shelf / member.replace("/", "_") / Path(member).name


def _pack(wanted: Sequence[Wanted], shelf: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w") as archive:
        for member in sorted(each.member for each in wanted):
            file = _on_shelf(shelf, member)
            entry = zipfile.ZipInfo(member, DATE)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_STORED if member.endswith(".gz") else zipfile.ZIP_DEFLATED
            entry.file_size = file.stat().st_size
            with archive.open(entry, "w") as out, file.open("rb") as stream:
                shutil.copyfileobj(stream, out, 1 << 20)


def _surplus_predictions(submission: Submission, predictions: Path, archive: Path) -> Iterator[str]:
    """Files among the predictions that are neither wanted nor nnU-Net's own."""
    known = {wanted.prediction for wanted in submission.wanted} | {*submission.excluded, archive}
    paths = {os.path.abspath(file) for file in known}
    own = ("dataset.json", "plans.json", "predict_from_raw_data_args.json")
    return _surplus(
        [
            str(file)
            for file in files_below(predictions)
            if os.path.abspath(file) not in paths and file.name not in own and file.suffix not in (".npz", ".pkl")
        ]
    )


def _surplus_members(submission: Submission, archive: Path) -> Iterator[str]:
    """Files in an archive that are not wanted, or are there twice."""
    _refuse_large_directory(archive)
    try:
        with zipfile.ZipFile(archive) as opened:
            names = Counter(entry.filename for entry in opened.infolist())
    except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError) as error:
        raise DatasetError(f"{archive} is no zip file that can be read ({printable(error, 80)}).") from None
    wanted = {each.member for each in submission.wanted}
    folders = {f"{member.rpartition('/')[0]}/" for member in wanted}
    twice = [f"{name}: is in the archive twice" for name, count in names.items() if count > 1]
    yield from twice[:MOST_NAMED]
    yield from _surplus([name for name in names if name not in wanted | folders])


def _surplus(names: Sequence[str]) -> Iterator[str]:
    yield from (f"{printable(name, 200)}: surplus" for name in sorted(names)[:MOST_NAMED])
    if len(names) > MOST_NAMED:
        yield f"{len(names) - MOST_NAMED} more surplus files"


def _refuse_large_directory(archive: Path) -> None:
    """Refuse an archive whose list of files would fill the memory: zipfile reads all of it at once.

    Raises:
        DatasetError: It is no zip file, has more files than any submission, or is larger than 4 GiB.
    """
    with archive.open("rb") as stream:
        size = archive.stat().st_size
        stream.seek(max(0, size - (1 << 16) - 42))
        tail = stream.read()
    at = tail.rfind(b"PK\5\6", 0, len(tail) - 18)
    if at < 0:
        raise DatasetError(f"{archive} is no zip file, or is cut off. Name the archive to check.")
    (length,) = struct.unpack_from("<L", tail, at + 12)
    if length > LARGEST_DIRECTORY or tail[max(0, at - 20) : at].startswith(b"PK\6\7"):
        raise DatasetError(f"{archive} has more files, or larger ones, than any submission. Pack the right folder.")
