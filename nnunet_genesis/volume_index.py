"""A folder of preprocessed volumes → one file that says what each is like, mapped into memory by whoever reads it."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from tqdm import tqdm

from nnunet_genesis.errors import DatasetError, printable, reason
from nnunet_genesis.files import mapped_npz, written_atomically
from nnunet_genesis.ignored_regions import digest_in
from nnunet_genesis.leaks.case_record import CaseRecord, unreadable
from nnunet_genesis.leaks.signature import DIGEST, LENGTH, Array, digest, pooled, signature

FORMAT = 1
ENDINGS = (".b2nd", ".npz")
"""Of nnU-Net's volumes; a folder has one of them."""
THREADS = min(8, os.cpu_count() or 1)
"""Volumes that are read at a time: decompression, sums and digests run beside each other."""
SETTLED = 2 * 10**9
"""Nanoseconds after which a folder's time of change tells of a later change, whatever the file system's clock."""
PAUSE = 300.0
"""Seconds after which what is known so far is written, so that a run that is killed loses no more."""
MOST_NAMED = 10
"""Volumes that a line names when they cannot be read; the index names all."""
COLUMNS: dict[str, tuple[str, int]] = {"names": ("S", 1), "flaws": ("S", 1), "stamps": ("<i8", 2), "shapes": ("<i8", 2),
                                       "marked": ("b1", 1), "spreads": ("<f4", 2), "digests": ("u1", 3),
                                       "signatures": ("i1", 3)}  # fmt: skip
"""Columns of the file: their kind of values, and their number of axes, of which cases are the first."""


@dataclass(frozen=True)
class VolumeIndex:
    """What is known of the volumes in a folder, in the order of their names.

    Attributes:
        folder: Of the volumes.
        ending: Of their files.
        changed: When the folder had changed last, in nanoseconds; 0: to be looked through again.
        columns: Arrays with a row for each case, by name: `names` and `flaws` (why a volume cannot be read, or empty;
            UTF-8), `stamps` int64 (bytes of the file, when it was written), `shapes` (C, z, y, x) int64, `marked`
            (whether some of its voxels are to be ignored), `spreads` (C,) float32, `digests` (C, 16) uint8 of all
            voxels, and `signatures` (C, 4096) int8, both as in a checkpoint's record of its cases.
    """

    folder: Path
    ending: str
    changed: int
    columns: Mapping[str, Array] = field(repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the file itself."""
        return _opened, (self.folder, self.changed, len(self))

    def __len__(self) -> int:
        """Number of cases, those included that cannot be read."""
        return len(self.columns["names"])

    def rows(self, cases: Iterable[str]) -> Array:
        """Rows of some cases.

        Raises:
            DatasetError: There is no such case.
        """
        wanted = np.array([os.fsencode(case) for case in cases], dtype=np.bytes_)
        names = self.columns["names"]
        found = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
        if (unknown := np.flatnonzero(names[found] != wanted)).size:
            raise DatasetError(
                f"There is no volume of {printable(os.fsdecode(wanted[unknown[0]]), 80)} in {self.folder}. "
                "Preprocess it."
            )
        return np.asarray(found)

    def readable(self) -> list[str]:
        """Names of the cases whose volumes can be read."""
        return [os.fsdecode(name) for name in self.columns["names"][self.columns["flaws"] == b""]]

    def flaws(self) -> dict[str, str]:
        """Cases whose volumes cannot be read, and why."""
        rows = np.flatnonzero(self.columns["flaws"] != b"")
        names, flaws = ([column[row] for row in rows] for column in (self.columns["names"], self.columns["flaws"]))
        return {os.fsdecode(name): flaw.decode() for name, flaw in zip(names, flaws, strict=True)}

    def warning(self) -> str:
        """One line on the volumes that cannot be read; "" if there are none."""
        flaws = self.flaws()
        named = "; ".join(f"{printable(case, 80)} ({why})" for case, why in itertools.islice(flaws.items(), MOST_NAMED))
        more = "" if len(flaws) <= MOST_NAMED else f"; and {len(flaws) - MOST_NAMED} more"
        many = f"{len(flaws)} of {len(self)} volumes in {self.folder.name} cannot be read and are left out"
        return f"{many}: {named}{more}" if flaws else ""

    def record(self, cases: Sequence[str]) -> CaseRecord:
        """What a checkpoint is to remember of some cases, in their order."""
        rows = self.rows(cases)
        channels = self.columns["digests"].shape[1]
        names = tuple(case for case in cases for _ in range(channels))
        return CaseRecord(
            names,
            np.ascontiguousarray(self.columns["digests"][rows]).reshape(-1, DIGEST),
            np.ascontiguousarray(self.columns["signatures"][rows]).reshape(-1, LENGTH),
        )


class Names(Sequence[str]):
    """Names of some cases of an index, which stay in the file until they are asked for."""

    def __init__(self, index: VolumeIndex, rows: Array) -> None:
        """Take an index and rows of it."""
        self.source, self.rows = index, rows

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        """The name at a place."""
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        return os.fsdecode(self.source.columns["names"][self.rows[place]])


class IndexedVolumes:
    """Some volumes of a folder, as nnU-Net's datasets offer them, found by its index.

    A process holds four bytes for each of them. To read one is to open one file, or two where voxels are ignored.
    """

    def __init__(self, index: VolumeIndex, cases: Iterable[str]) -> None:
        """Take an index and names of cases in it; their order is that of names, as in nnU-Net."""
        self.index = index
        self.identifiers = Names(index, np.sort(index.rows(cases)).astype(np.int32))

    def load_case(self, case: str) -> tuple[Any, Any, None, dict[str, Any]]:
        """Volume (C, z, y, x), segmentation (None where nothing is ignored), None, and the volume's `spread`.

        Raises:
            DatasetError: The volume was damaged after it was indexed.
        """
        (row,) = self.index.rows([case])
        marked = bool(self.index.columns["marked"][row])
        try:
            volume, segmentation = read_volume(self.index.folder, case, self.index.ending, marked)
        except Exception as error:  # whatever nnU-Net's readers raise for damaged files
            raise unreadable(case, self.index.folder, error) from None
        return volume, segmentation, None, {"spread": np.array(self.index.columns["spreads"][row])}


def read_volume(folder: Path, case: str, ending: str, segmented: bool) -> tuple[Any, Any]:
    """A volume, of which blosc2 reads what it is asked for, and its segmentation, None unless asked for."""
    from nnunetv2.training.dataloading.nnunet_dataset import file_ending_dataset_mapping, nnUNetDatasetBlosc2

    dataset = file_ending_dataset_mapping[ending[1:]](str(folder), [case])
    if segmented or not isinstance(dataset, nnUNetDatasetBlosc2):
        volume, segmentation, *_ = dataset.load_case(case)
        return volume, segmentation if segmented else None
    import blosc2

    path = str(folder / f"{case}{ending}")  # nnU-Net would open two more files
    return blosc2.open(urlpath=path, mode="r", dparams={"nthreads": 1}, **dataset.mmap_kwargs), None


def spread(volume: Any) -> Array:
    """Standard deviation of each channel over the volume's three central planes, (C,).

    A cheap stand-in for that of the whole volume, which would have to be decompressed.
    """
    planes = []
    for axis, length in enumerate(volume.shape[1:], start=1):
        window = [slice(None)] * len(volume.shape)
        window[axis] = slice(length // 2, length // 2 + 1)
        planes.append(np.asarray(volume[tuple(window)], dtype=np.float32).reshape(volume.shape[0], -1))
    return np.asarray(np.nanstd(np.concatenate(planes, axis=1), axis=1))


def index_file(folder: Path) -> Path:
    """Where the index of a folder of volumes lies: beside it."""
    return folder.with_name(f"{folder.name}_index.npz")


def index_of(folder: Path) -> VolumeIndex:
    """The index of the volumes in a folder, brought up to date if the folder has changed, and written beside it.

    A new volume is read once, whole. Volumes that cannot be read are in the index, with the reason.

    Args:
        folder: Of preprocessed volumes.

    Raises:
        DatasetError: The folder has no volumes, or volumes that do not belong together; or nothing can be written.
    """
    changed = folder.stat().st_mtime_ns  # before the folder is looked through
    known = _stored(folder)
    if known is not None and known.changed == changed:
        return known
    if time.time_ns() - changed < SETTLED:
        changed = 0
    ending, cases = _listed(folder)
    with ThreadPoolExecutor(THREADS, "stamps") as pool:
        stamps = dict(zip(cases, pool.map(lambda case: _stamp(folder, case, ending), cases), strict=True))
    kept = _kept(known, stamps) if known is not None and known.ending == ending else {}
    held = set(map(os.fsdecode, kept["names"])) if kept else set()
    rows, written = [], time.monotonic()
    for row in _computed(folder, ending, [case for case in cases if case not in held], stamps):
        rows.append(row)
        if time.monotonic() - written > PAUSE:
            _store(VolumeIndex(folder, ending, 0, _columns(kept, rows, folder)))
            written = time.monotonic()
    index = VolumeIndex(folder, ending, changed, _columns(kept, rows, folder))
    _store(index)
    return _stored(folder) or index


def _opened(folder: Path, changed: int, length: int) -> VolumeIndex:
    index = _stored(folder)
    if index is None or (index.changed, len(index)) != (changed, length):
        raise DatasetError(f"The index {index_file(folder)} was changed while it was in use. Start again.")
    return index


def _stored(folder: Path) -> VolumeIndex | None:
    """The index beside a folder; None where it is missing, damaged or of another version, which costs time only."""
    try:
        content = mapped_npz(index_file(folder))
        if int(content["format"]) != FORMAT or str(content["ending"]) not in ENDINGS:
            return None
        columns = {name: content[name] for name in COLUMNS}
        cases, channels = len(columns["names"]), columns["spreads"].shape[1]
        for column, (kind, axes) in zip(columns.values(), COLUMNS.values(), strict=True):
            if not column.dtype.str.strip("|").startswith(kind.strip("|")) or (len(column), column.ndim) != (
                cases,
                axes,
            ):
                return None
        if columns["digests"].shape[1:] != (channels, DIGEST) or columns["signatures"].shape[1:] != (channels, LENGTH):
            return None
        return VolumeIndex(folder, str(content["ending"]), int(content["changed"]), columns)
    except Exception:  # of damaged archives, numpy raises anything
        return None


def _store(index: VolumeIndex) -> None:
    path = index_file(index.folder)
    try:
        # several trainings may start at the same time: each writes a file of its own, and the last one stays
        with (
            tempfile.TemporaryDirectory(prefix=".incomplete_", dir=path.parent) as workshop,
            written_atomically(path, Path(workshop)) as temporary,
        ):
            facts = {"format": FORMAT, "ending": index.ending, "changed": index.changed}
            np.savez(temporary, **facts, **index.columns)  # type: ignore[arg-type]
    except OSError as error:
        why = reason(error, 80)
        raise DatasetError(f"The index {path} cannot be written ({why}). Make its folder writable.") from None


def _listed(folder: Path) -> tuple[str, list[str]]:
    """Ending and names of the volumes in a folder."""
    names = os.listdir(folder)
    for ending in ENDINGS:
        cases = [name.removesuffix(ending) for name in names if name.endswith(ending)]
        cases = [case for case in cases if not (ending == ".b2nd" and case.endswith("_seg"))]
        if cases:
            return ending, sorted(cases)
    raise DatasetError(f"There are no volumes in {folder}. Preprocess the dataset.")


def _stamp(folder: Path, case: str, ending: str) -> tuple[int, int]:
    """Bytes of a case's file and when it was written."""
    found = (folder / f"{case}{ending}").stat()
    return found.st_size, found.st_mtime_ns


def _kept(known: VolumeIndex, stamps: Mapping[str, tuple[int, int]]) -> Mapping[str, Array]:
    """Rows of an earlier index that still hold; none if no volume of them can be read."""
    same = np.array([stamps.get(os.fsdecode(name)) == (int(stamp[0]), int(stamp[1]))
                     for name, stamp in zip(known.columns["names"], known.columns["stamps"], strict=True)])  # fmt: skip
    if (known.columns["flaws"][same] != b"").all():
        return {}
    if same.all():
        return known.columns  # which stay in the file
    return {name: column[same] for name, column in known.columns.items()}


Row = dict[str, Any]
"""The columns of one case; nothing but name, flaw and stamp where it cannot be read."""


def _computed(folder: Path, ending: str, cases: Sequence[str], stamps: Mapping[str, tuple[int, int]]) -> Iterator[Row]:
    def of(case: str) -> Row:
        row: Row = {"names": os.fsencode(case), "flaws": b"", "stamps": stamps[case]}
        try:
            return row | _described(folder, case, ending)
        except Exception as error:  # whatever nnU-Net's readers raise for damaged files
            return row | {"flaws": reason(error, 80).encode()}

    with ThreadPoolExecutor(THREADS, "index") as pool:
        try:
            yield from tqdm(pool.map(of, cases), "Index of the volumes", len(cases), unit="case",
                            disable=len(cases) < 10)  # fmt: skip
        finally:
            pool.shutdown(cancel_futures=True)  # older versions of tqdm hold on to what they walk through


def _described(folder: Path, case: str, ending: str) -> Row:
    volume, segmentation = read_volume(folder, case, ending, segmented=True)
    row: Row = {"shapes": volume.shape, "marked": bool(digest_in(segmentation)), "spreads": spread(volume)}
    described = []
    for number in range(volume.shape[0]):
        channel = np.asarray(volume[number])
        described.append((np.frombuffer(digest(channel), np.uint8), signature(pooled(channel))))
    return row | {"digests": [one[0] for one in described], "signatures": [one[1] for one in described]}


def _columns(kept: Mapping[str, Array], rows: Sequence[Row], folder: Path) -> dict[str, Array]:
    """Rows of both as columns, in the order of names.

    Raises:
        DatasetError: Their numbers of channels differ.
    """
    channels = {len(row["spreads"]) for row in rows if "spreads" in row}
    channels |= {kept["spreads"].shape[1]} if kept else set()
    if len(channels) > 1:
        numbers = " and ".join(map(str, sorted(channels)))
        raise DatasetError(f"Volumes in {folder} have {numbers} channels. Delete the folder, and preprocess again.")
    count = min(channels, default=1)
    unknown = {"shapes": np.zeros(4), "marked": False, "spreads": np.zeros(count), "digests": np.zeros((count, DIGEST)),
               "signatures": np.zeros((count, LENGTH))}  # fmt: skip
    if not rows:
        return dict(kept)
    columns: dict[str, Array] = {}
    for name, (kind, _) in COLUMNS.items():
        new = np.array([row.get(name, unknown.get(name)) for row in rows]).astype(kind)
        columns[name] = np.concatenate([kept[name], new]) if kept else new
    order = np.argsort(columns["names"], kind="stable")
    return {name: column[order] for name, column in columns.items()}
