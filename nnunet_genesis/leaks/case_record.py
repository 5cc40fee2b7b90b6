"""What a checkpoint says of the cases that it was pre-trained on: written, read and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_genesis.checkpoints.case_files import whole_record
from nnunet_genesis.checkpoints.reading import read_content
from nnunet_genesis.errors import CheckpointError, DatasetError, printable, reason
from nnunet_genesis.leaks.signature import DIGEST, LENGTH, Array

FORMAT = 1
KEY = "cases"
"""Where a checkpoint's "genesis" facts hold the record."""


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
    block = whole_record(facts[KEY], checkpoint)
    try:
        return read_record(block)
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
        raise unreadable(case, folder, error) from None


def unreadable(case: str, folder: Path, error: Exception) -> DatasetError:
    """What there is to say of a volume that cannot be read."""
    return DatasetError(
        f"The volume of {printable(case, 80)} in {folder} cannot be read ({reason(error, 80)}). Preprocess it again."
    )
