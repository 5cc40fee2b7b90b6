"""Files and folders → the scans in them (image files, channel groups, DICOM series), each with a name."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import SimpleITK as sitk

from nnunet_genesis.errors import DatasetError

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
COLOURS = 3
"""Channels that one file of a 2D image may hold."""
COMPANIONS = (".raw", ".zraw", ".img", ".hdr")
"""Files that belong to another one; never scans of their own."""
LABEL_FOLDERS = ("labelsTr", "labelsTs")
"""Folders of nnU-Net and of the Medical Segmentation Decathlon that hold segmentations, not scans."""
LONGEST_CASE = 180
"""Characters of a case name, so that the file names made from it stay below 255."""


@dataclass(frozen=True)
class Scan:
    """One case to be, as found on disk; nothing has been read yet.

    Attributes:
        source: What reports call it and what identifies it in later runs: the path of its file, or a
            path-like name of its channel group (`folder/stem_*`) or DICOM series (`folder/series UID`).
        proposed: Case name before it is made unique.
        channels: For each channel its files: one image file, or the ordered slices of a DICOM series.
        flaw: Why it cannot be imported, where names and folders tell already; else empty.
    """

    source: str
    proposed: str
    channels: tuple[tuple[Path, ...], ...] = ()
    flaw: str = ""

    def state(self) -> str:
        """Text that changes when a file of the scan is added, removed or replaced (by size and time)."""
        digest = hashlib.sha256()
        for file in (file for files in self.channels for file in files):
            data_files = (".raw", ".zraw") if file.suffix.lower() == ".mhd" else ()
            for part in (file, *(file.with_suffix(ending) for ending in data_files)):
                with suppress(OSError):
                    facts = part.stat()
                    digest.update(repr((part.name, facts.st_size, facts.st_mtime_ns)).encode())
        return digest.hexdigest()[:16]


def find_scans(sources: Sequence[Path], channels: int, skip: Path, flat: bool = False) -> list[Scan]:
    """Search files and folders, subfolders included.

    Names that start with a dot are skipped, as are `labelsTr` and `labelsTs` folders. A file that is no image
    by its ending stands for the DICOM series of its folder, or with `flat` for itself. A scan that is reachable from
    several sources is taken once, named after the first.

    Args:
        sources: Files and folders.
        channels: Channels of a case. With more than one, `stem_0000`, `stem_0001`, … of a folder are a case.
        skip: Folder to leave out: the dataset that is being written.
        flat: Search 2D images (pictures and DICOM files) in place of volumes.

    Raises:
        DatasetError: A source does not exist, or there is nothing to import.
    """
    sources = [Path(os.path.abspath(source)) for source in sources]
    missing = [str(source) for source in sources if not source.exists()]
    if missing:
        raise DatasetError(f"No scans: {', '.join(missing)} does not exist. Check the path.")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    found: dict[str, Scan] = {}
    for scan in _scans_of(sources, channels, skip.resolve(), _pictures if flat else _volumes):
        found.setdefault(scan.source, scan)
    if not found:
        volumes = f"files ending in {', '.join(ENDINGS)} and for DICOM series. X-rays and other pictures: import --2d"
        looked_for = f"2D images: files ending in {', '.join(PICTURES)} and DICOM files" if flat else volumes
        raise DatasetError(
            f"No scans found in {', '.join(map(str, sources))}, subfolders included. Looked for {looked_for}."
        )
    return [found[source] for source in sorted(found)]


def case_names(scans: Sequence[Scan], recorded: Mapping[str, str]) -> dict[str, str]:
    """Source → unique case name, without the scans that have a flaw.

    Recorded names are kept. On collision (letter case ignored) a hash of the source is appended.
    """
    names = dict(recorded)
    taken = {name.lower() for name in recorded.values()}
    for scan in scans:
        if scan.source not in names and not scan.flaw:
            name = scan.proposed
            if name.lower() in taken:
                name = f"{name}-{_hash(scan.source)}"
            taken.add(name.lower())
            names[scan.source] = name
    return {scan.source: names[scan.source] for scan in scans if not scan.flaw}


Search = Callable[[Path, Sequence[str], tuple[str, ...], int], Iterator[Scan]]
"""A folder, names of files in it, its path from the source as parts, number of channels → scans."""


def _scans_of(sources: Sequence[Path], channels: int, skip: Path, search: Search) -> Iterator[Scan]:
    given: dict[Path, list[str]] = defaultdict(list)
    for source in sources:
        if not source.is_dir():
            given[source.parent].append(source.name)
            continue
        for folder, files in _folders(source, skip):
            if isinstance(files, str):
                yield Scan(str(folder), "", flaw=files)
                continue
            yield from search(folder, files, folder.relative_to(source).parts, channels)
    for folder, files in given.items():
        if folder.resolve().is_relative_to(skip):
            continue
        yield from search(folder, _with_siblings(folder, files, channels), (), channels)


def _volumes(folder: Path, files: Sequence[str], parts: tuple[str, ...], channels: int) -> Iterator[Scan]:
    yield from _image_files(folder, [name for name in files if _ending(name) in ENDINGS], parts, channels)
    if any(_ending(name) not in ENDINGS + COMPANIONS for name in files):
        yield from _dicom_series(folder, parts or (folder.name,), channels)


def _pictures(folder: Path, files: Sequence[str], parts: tuple[str, ...], channels: int) -> Iterator[Scan]:
    named = [name for name in files if _ending(name) in PICTURES]
    yield from _image_files(folder, named, parts, channels, in_one=channels == COLOURS)
    flaw = "" if channels == 1 else f"a DICOM image holds one channel, but {channels} were named"
    for name in files:
        if _ending(name) not in PICTURES + ENDINGS + COMPANIONS and _is_dicom(folder / name):
            stem = name[:-4] if _ending(name) == ".dcm" else name
            yield Scan(str(folder / name), _safe(*parts, stem), ((folder / name,),), flaw)


def _is_dicom(file: Path) -> bool:
    """Whether a file says that it is one, by its name or after its first 128 bytes."""
    if _ending(file.name) == ".dcm":
        return True
    with suppress(OSError):
        if file.is_file():  # to open a pipe waits for somebody who writes into it
            with file.open("rb") as stream:
                return stream.read(132)[128:] == b"DICM"
    return False


def _folders(source: Path, skip: Path) -> Iterator[tuple[Path, list[str] | str]]:
    """Folders below `source` with their file names, or with the reason why they cannot be listed."""
    seen = set()
    unreadable: list[OSError] = []
    for folder, subfolders, files in os.walk(source, followlinks=True, onerror=unreadable.append):
        real = os.path.realpath(folder)
        if real in seen or Path(real).is_relative_to(skip):
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(n for n in subfolders if not n.startswith(".") and n not in LABEL_FOLDERS)
        yield Path(folder), sorted(name for name in files if not name.startswith("."))
    for error in unreadable:
        yield Path(error.filename), f"cannot be opened ({error.strerror})"


def _with_siblings(folder: Path, files: Sequence[str], channels: int) -> list[str]:
    """The names of files that were given, with the other channels of their cases."""
    names = {name for name in files if not name.startswith(".")}
    stems = {_split(name)[0] for name in names if channels > 1 and _split(name)[1]}
    for name in os.listdir(folder) if stems else ():
        if _split(name)[1] and _split(name)[0] in stems and not name.startswith("."):
            names.add(name)
    return sorted(names)


def _image_files(
    folder: Path, files: Sequence[str], parts: tuple[str, ...], channels: int, in_one: bool = False
) -> Iterator[Scan]:
    """The scans in the image files of one folder, grouped by channel numbers; `in_one` file may be all channels."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name in files:
        stem, number = _split(name)
        if number is None:
            yield _single(folder / name, _safe(*parts, stem), 1 if in_one else channels)
        else:
            groups.setdefault(stem, []).append((number, name))
    for stem, members in groups.items():
        paths = tuple((folder / name,) for _, name in sorted(members))
        group = Scan(str(folder / f"{stem}_*"), _safe(*parts, stem), paths)
        numbers = sorted(number for number, _ in members)
        if channels > 1 and not (in_one and numbers == ["0000"]):
            yield replace(group, flaw=_channel_flaw(numbers, channels))
        elif numbers[0] == "0000" and len(set(numbers)) > 1:
            flaw = f"has {len(numbers)} channel files ({_short(numbers)}) but one channel was named: "
            advice = "name every channel with --channels, or rename the files if they are separate scans"
            yield replace(group, flaw=flaw + advice)
        else:
            for number, name in members:
                kept = stem if number == "0000" else f"{stem}_{number}"
                yield _single(folder / name, _safe(*parts, kept), 1)


def _single(file: Path, proposed: str, channels: int) -> Scan:
    expected = " and ".join(f"_{number:04d}" for number in (0, channels - 1))
    flaw = "" if channels == 1 else f"has no channel number: the files of a case must end in {expected}"
    return Scan(str(file), proposed, ((file,),), flaw)


def _channel_flaw(numbers: list[str], channels: int) -> str:
    expected = [f"{number:04d}" for number in range(channels)]
    missing = [number for number in expected if number not in numbers]
    if missing:
        return f"lacks the file of channel {_short(missing)} ({channels} channels were named)"
    if len(set(numbers)) < len(numbers):
        return f"has more than one file for a channel ({_short(numbers)})"
    if len(numbers) > channels:
        return f"has {len(numbers)} channel files but {channels} channels were named"
    return ""


def _dicom_series(folder: Path, parts: tuple[str, ...], channels: int) -> Iterator[Scan]:
    """One scan per DICOM series of the folder, and one per `.dcm` file that no reader takes for an image."""
    reader, used = sitk.ImageSeriesReader, set()
    for series in sorted(reader.GetGDCMSeriesIDs(str(folder))):
        files = [Path(name) for name in reader.GetGDCMSeriesFileNames(str(folder), series)]
        files = [file for file in files if not file.name.startswith(".")]
        used |= {file.name for file in files}
        flaw = "" if channels == 1 else f"a DICOM series holds one channel, but {channels} were named"
        if files:
            yield Scan(str(folder / f"series {series}"), _safe(*parts), (tuple(files),), flaw)
    for name in sorted(os.listdir(folder)):
        if _ending(name) == ".dcm" and name not in used and not name.startswith("."):
            flaw = "holds no DICOM image that can be read (damaged, or another kind of object)"
            yield Scan(str(folder / name), _safe(*parts, name), ((folder / name,),), flaw)


def _ending(name: str) -> str:
    lower = name.lower()
    return ".nii.gz" if lower.endswith(".nii.gz") else Path(lower).suffix


def _split(name: str) -> tuple[str, str | None]:
    """`scan_0001.nii.gz` → `scan`, `0001`; a name without channel number → its stem, None."""
    stem = name[: -len(_ending(name))]
    numbered = re.fullmatch(r"(.+)_(\d{4})", stem, flags=re.ASCII | re.DOTALL)
    return (numbered[1], numbered[2]) if numbered else (stem, None)


def _safe(*parts: str) -> str:
    """Parts of a path as a case name that nnU-Net and file systems can take.

    nnU-Net takes preprocessed files that end in `_seg` for segmentations; no case may be called so.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts)).strip("._-") or "scan"
    if name.endswith("_seg"):
        name = name[: -len("_seg")] + "-seg"
    return name if len(name) <= LONGEST_CASE else f"{name[:LONGEST_CASE]}-{_hash(name)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]


def _short(numbers: Sequence[str]) -> str:
    return ", ".join(numbers) if len(numbers) <= 4 else f"{numbers[0]} … {numbers[-1]}"
