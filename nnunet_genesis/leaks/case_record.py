"""Preprocessed volumes → a record of their cases, which a checkpoint carries, and the way back, checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nnunet_genesis.checkpoints.reading import read_content
from nnunet_genesis.errors import CheckpointError, DatasetError, printable, reason
from nnunet_genesis.files import written_atomically
from nnunet_genesis.leaks.signature import DIGEST, LENGTH, Array, digest, pooled, signature

FORMAT = 1
KEY = "cases"
"""Where a checkpoint's "genesis" facts hold the record."""
THREADS = min(8, os.cpu_count() or 1)
"""Volumes that are read at a time: decompression, sums and digests run beside each other."""


@dataclass(frozen=True)
class CaseRecord:
    """The images of a set of cases, one row for each channel of a case.

    Attributes:
        names: Name of the case of each row.
        digests: (rows, 16) uint8, of the voxels.
        signatures: (rows, 4096) int8.
    """

    names: tuple[str, ...]
    digests: Array
    signatures: Array

    def block(self) -> dict[str, Any]:
        """The record for a checkpoint, in tensors and plain types."""
        return {
            "format": FORMAT,
            "names": list(self.names),
            "digests": torch.from_numpy(self.digests),
            "signatures": torch.from_numpy(self.signatures),
        }

    def joined(self, other: CaseRecord) -> CaseRecord:
        """Rows of both, each once."""
        known = set(zip(self.names, map(bytes, self.digests), strict=True))
        keys = zip(other.names, map(bytes, other.digests), strict=True)
        new = [row for row, key in enumerate(keys) if key not in known]
        return CaseRecord(
            self.names + tuple(other.names[row] for row in new),
            np.concatenate([self.digests, other.digests[new]]),
            np.concatenate([self.signatures, other.signatures[new]]),
        )


def read_record(block: Any) -> CaseRecord:
    """The record that a checkpoint holds.

    Raises:
        CheckpointError: It is none; the message follows the file's name.
    """
    content = block if isinstance(block, Mapping) else {}
    version, names, arrays = content.get("format"), content.get("names"), []
    if isinstance(version, int) and version != FORMAT:  # of other types, e.g. tensors, comparing may fail
        raise CheckpointError("records its cases in another format. Read it with the version that wrote it.")
    if isinstance(version, int) and isinstance(names, list) and all(isinstance(name, str) for name in names):
        for key, kind, width in (("digests", torch.uint8, DIGEST), ("signatures", torch.int8, LENGTH)):
            tensor = content.get(key)
            if isinstance(tensor, torch.Tensor) and tensor.dtype == kind and tensor.shape == (len(names), width):
                arrays.append(tensor.contiguous().numpy())
    if len(arrays) < 2:
        raise CheckpointError("has a damaged record of the cases that it saw. Take another copy of it.")
    return CaseRecord(tuple(names), *arrays)  # type: ignore[arg-type]


def record_in(checkpoint: Path) -> CaseRecord | None:
    """The cases that a checkpoint was pre-trained on; None if it does not say, as files of others do not.

    Raises:
        CheckpointError: It cannot be read.
    """
    facts = read_content(checkpoint).get("genesis")
    if not isinstance(facts, Mapping) or facts.get(KEY) is None:
        return None
    try:
        return read_record(facts[KEY])
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint} {error}") from None


def channels_of(folder: Path, case: str) -> Iterator[Array]:
    """The channels of a preprocessed case, (z, y, x) each.

    Raises:
        DatasetError: The volume cannot be read.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    try:
        volume = infer_dataset_class(str(folder))(str(folder), [case]).load_case(case)[0]
        for channel in range(volume.shape[0]):
            yield np.asarray(volume[channel])
    except Exception as error:  # whatever nnU-Net's readers raise for damaged files
        raise DatasetError(
            f"The volume of {printable(case, 80)} in {folder} cannot be read ({reason(error, 80)}). "
            "Preprocess it again."
        ) from None


def record_of(folder: Path, cases: Sequence[str]) -> CaseRecord:
    """The record of preprocessed cases; what was computed before, of files that have not changed, is taken over.

    Writes `<folder>_cases.npz` beside the folder. A volume is read once, whole.

    Args:
        folder: Of preprocessed volumes.
        cases: Names of some of them.

    Raises:
        DatasetError: A volume cannot be read.
    """
    store = folder.with_name(f"{folder.name}_cases.npz")
    rows = _stored(store)
    stamps = {case: _stamp(folder, case) for case in cases}
    rows = {key: found for key, found in rows.items() if stamps.get(key[0], key[1]) == key[1]}
    missing = [case for case in cases if (case, stamps[case]) not in rows]
    try:
        for case, found in zip(missing, _computed(folder, missing), strict=True):
            rows[case, stamps[case]] = found
    finally:
        if any((case, stamps[case]) in rows for case in missing):
            _store(rows, store)
    return _joined((case, rows[case, stamps[case]]) for case in cases)


Rows = list[tuple[bytes, Array]]
"""Digest and signature of each channel of a case."""


def _computed(folder: Path, cases: Sequence[str]) -> Iterator[Rows]:
    def of(case: str) -> Rows:
        return [(digest(channel), signature(pooled(channel))) for channel in channels_of(folder, case)]

    with ThreadPoolExecutor(THREADS, "signatures") as pool:
        try:
            waiting = pool.map(of, cases)
            yield from tqdm(waiting, "Signatures of the volumes", len(cases), unit="case", disable=len(cases) < 10)
        finally:
            pool.shutdown(cancel_futures=True)


def _joined(cases: Iterable[tuple[str, Rows]]) -> CaseRecord:
    rows = [(case, *row) for case, found in cases for row in found]
    digests = np.frombuffer(b"".join(row[1] for row in rows), np.uint8).reshape(-1, DIGEST)
    signatures = np.array([row[2] for row in rows], np.int8).reshape(-1, LENGTH)
    return CaseRecord(tuple(row[0] for row in rows), digests.copy(), signatures)


def _stamp(folder: Path, case: str) -> tuple[int, int]:
    """Bytes of a case's file and when it was written."""
    for ending in (".b2nd", ".npz"):
        if (path := folder / f"{case}{ending}").is_file():
            found = path.stat()
            return found.st_size, found.st_mtime_ns
    raise DatasetError(f"There is no volume of {printable(case, 80)} in {folder}. Preprocess it.")


def _stored(store: Path) -> dict[tuple[str, tuple[int, int]], Rows]:
    """What is kept of earlier computations: nothing where the file is missing or damaged, which costs time only."""
    rows: dict[tuple[str, tuple[int, int]], Rows] = {}
    try:
        with np.load(store, allow_pickle=False) as kept:
            columns = [kept[name] for name in ("names", "stamps", "digests", "signatures")]
        names, stamps, digests, signatures = columns
        if digests.shape != (len(names), DIGEST) or signatures.shape != (len(names), LENGTH):
            return {}
        for row, name in enumerate(names):
            key = str(name), (int(stamps[row][0]), int(stamps[row][1]))
            rows.setdefault(key, []).append((digests[row].astype(np.uint8).tobytes(), signatures[row].astype(np.int8)))
    except Exception:  # of damaged archives, numpy raises anything
        return {}
    return rows


def _store(rows: Mapping[tuple[str, tuple[int, int]], Rows], store: Path) -> None:
    record = _joined((case, found) for (case, _), found in rows.items())
    stamps = np.array([stamp for (_, stamp), found in rows.items() for _ in found], np.int64)
    with written_atomically(store) as temporary:
        np.savez(temporary, names=np.array(record.names), stamps=stamps, digests=record.digests,
                 signatures=record.signatures)  # fmt: skip
