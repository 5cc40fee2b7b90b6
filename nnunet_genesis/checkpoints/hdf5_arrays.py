"""Arrays of a file of Keras (HDF5), in a process of their own: no link is followed, and nothing is unpacked or run.

The library that reads HDF5 was not made for files that mean harm. `hdf5.py` starts this module as a process with limits
on memory and time; whatever becomes of it, the one that asked goes on.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from itertools import islice
from math import prod
from typing import Any

ENTRIES = 2000
"""Groups and arrays in a file; the network of Models Genesis has 100."""
DEPTH = 4
"""Groups within each other: model, layer, layer again, array."""
NAME = 200
"""Characters of a name."""
MEMORY = 2 << 30
"""Bytes that the process may have, beside four times the file's: libraries are most of it."""

REFUSED = 3
"""Exit code; the reason is on the standard output."""


class RefusedFileError(ValueError):
    """The file holds what no model of Keras does; the text follows its name."""


def main(source: str, made: str) -> None:
    """Write the arrays of the file `source` into a new file of safetensors; names are `layer/weight`."""
    import h5py  # before the limit on memory
    import numpy as np
    from safetensors.numpy import save_file

    most, before = MEMORY + 4 * os.path.getsize(source), resource.getrlimit(resource.RLIMIT_AS)[1]
    most = most if before == resource.RLIM_INFINITY else min(most, before)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with h5py.File(source, "r", locking=False) as file:
            found = dict(_arrays(file, os.path.getsize(source)))
        save_file({name: np.ascontiguousarray(array) for name, array in found.items()}, made)
    except RefusedFileError as error:
        print(error)  # noqa: T201
        sys.exit(REFUSED)


def _arrays(file: Any, size: int) -> Iterator[tuple[str, Any]]:
    """Weights by layer; those of a whole model are in a group of their own."""
    whole = file.id.links.exists(b"model_weights")
    weights = _linked(file, "model_weights") if whole else file
    taken: set[str] = set()
    for layer, where, dataset in _datasets(weights, "", 0, [ENTRIES]):
        name = f"{layer}/{where.rpartition('/')[2].partition(':')[0]}"
        if name in taken:
            raise RefusedFileError(f"holds two arrays {name}.")
        taken.add(name)
        size -= _stored(dataset, name)
        if size < 0:
            raise RefusedFileError("describes larger arrays than it holds; it is cut off, or Keras did not write it.")
        array = dataset[()]
        yield name, array.astype(array.dtype.newbyteorder("="))


def _datasets(group: Any, layer: str, depth: int, left: list[int]) -> Iterator[tuple[str, str, Any]]:
    """Layer, name and handle of every array below a group."""
    import h5py

    names = list(islice(iter(group), left[0] + 1))
    left[0] -= len(names)
    if left[0] < 0 or depth > DEPTH:
        raise RefusedFileError("nests or repeats groups beyond reason; no model of Keras does.")
    for name in names:
        if len(name) > NAME or not name.isprintable():
            raise RefusedFileError("holds names that no layer has.")
        inner = _linked(group, name)
        if isinstance(inner, h5py.Dataset):
            yield layer or name, name, inner
        elif isinstance(inner, h5py.Group):
            yield from _datasets(inner, layer or name, depth + 1, left)
        else:
            raise RefusedFileError(f"holds {name}, which is neither a layer nor an array.")


def _linked(group: Any, name: str) -> Any:
    """What is in a group under a name; soft links and links to other files are not followed."""
    import h5py

    if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise RefusedFileError(f"holds a link in place of {name}; links are not followed.")
    return group[name]


def _stored(dataset: Any, name: str) -> int:
    """Bytes of an array, which is stored as it is, and in this file.

    Raises:
        RefusedFileError: It is packed, in pieces, elsewhere, incomplete, or of another kind than weights.
    """
    import h5py

    made = dataset.id.get_create_plist()
    plain = made.get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    if not plain or made.get_nfilters() or made.get_external_count():
        raise RefusedFileError(f"stores {name} packed, in pieces or in another file, as Keras never does.")
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (2, 4, 8) or dataset.shape is None:
        raise RefusedFileError(f"holds other values than numbers with a point in {name}.")
    wanted = prod(dataset.shape) * dataset.dtype.itemsize
    if dataset.id.get_storage_size() != wanted:
        raise RefusedFileError(f"describes a larger array {name} than it holds.")
    return int(wanted)
