"""What a file asks for → a refusal of what no checkpoint needs: memory and time stay those of the file's size.

The limits lie far above anything real. Small files may ask for much: tensors that repeat one value, lists that hold a
list many times.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_genesis.errors import CheckpointError, printable

VALUES = 1 << 20
"""Values that a small file may hold, each counted as often as it is reached; a larger one may hold its size."""
DEPTH = 100
"""Dictionaries and lists within each other."""
TEXT = 64
"""Characters that count as one value."""
NAMES = 8
"""Names of one tensor; nnU-Net gives four."""

VISITED = (torch.Tensor, np.ndarray, str, bytes, bytearray, Mapping, list, tuple, set, frozenset)


def values_allowed(size: int) -> int:
    """How many values a file of so many bytes may hold."""
    return max(VALUES, size)


def refuse_packed_archive(path: Path) -> None:
    """Refuse a zip archive that torch would not write: it holds nothing compressed, and nothing twice.

    Raises:
        CheckpointError: It is another one; torch would unpack it, whatever its size.
        BadZipFile: It is cut off.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(f"{path} is compressed, as torch.save never does. Save it again with torch.save.")
    if len({name.casefold() for name in names}) < len(names):
        raise CheckpointError(f"{path} holds two files of one name: torch.save did not write it.")


def refuse_repetition(content: Any, size: int) -> None:
    """Visit all values of a file's content.

    Args:
        content: What was read: containers, tensors, arrays, plain values.
        size: Bytes of the file.

    Raises:
        CheckpointError: Values are repeated beyond the size of a file, or nested too deeply; the message follows the
            file's name.
    """
    left, waiting = values_allowed(size), [(content, 0)]
    storages: dict[int, int] = {}
    while waiting:
        value, depth = waiting.pop()
        inner: Iterable[Any] = ()
        if isinstance(value, torch.Tensor):
            storages |= _storage_of(value)
        elif isinstance(value, str | bytes | bytearray):
            left -= len(value) // TEXT
        elif isinstance(value, np.ndarray):
            left -= value.size
        elif isinstance(value, Mapping):
            left -= 2 * len(value)
            inner = (part for pair in value.items() for part in pair)
        elif isinstance(value, list | tuple | set | frozenset):
            left -= len(value)
            inner = value
        if left < 0 or depth > DEPTH:
            raise CheckpointError("repeats or nests its values beyond reason; no training writes such a file.")
        waiting += [(part, depth + 1) for part in inner if isinstance(part, VISITED)]
    if sum(storages.values()) > size:
        raise CheckpointError("describes larger tensors than it holds; it is cut off, or no training wrote it.")


def _storage_of(tensor: torch.Tensor) -> dict[int, int]:
    """Where a tensor's values lie → their bytes.

    Raises:
        CheckpointError: It has more values than there are.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        kind = "quantised" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}".replace("torch.", "")
        raise CheckpointError(f"holds tensors of a kind that weights do not have ({kind}).")
    if tensor.is_neg() or tensor.is_conj():  # numpy does not take them
        raise CheckpointError("holds tensors of a kind that weights do not have (views with another sign).")
    storage = tensor.untyped_storage()
    if tensor.numel() * tensor.itemsize > storage.nbytes():
        raise CheckpointError(
            f"holds a tensor of {printable(tuple(tensor.shape), 60)} that repeats fewer values (expanded). Save it "
            "again after .clone()."
        )
    return {storage.data_ptr(): storage.nbytes()}


def refuse_strange_tensors(weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors of kinds that cannot be computed with as they are, and one tensor under very many names.

    Raises:
        CheckpointError: Names the first; the message follows the file's name.
    """
    total, storages = 0, dict[int, int]()
    for name, tensor in weights.items():
        storages |= _storage_of(tensor)
        total += tensor.numel() * tensor.itemsize
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.itemsize < 2):
            raise CheckpointError(
                f"holds {str(tensor.dtype).removeprefix('torch.')} in {name[:100]}; weights are read in float16, "
                "bfloat16, float32 and float64. Convert it."
            )
    if total > NAMES * sum(storages.values()):
        raise CheckpointError("gives one tensor too many names; no training writes such a file.")
