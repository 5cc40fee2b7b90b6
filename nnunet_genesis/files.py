"""Files that are either complete or not there: temporary name first, renamed when finished."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_genesis.errors import DatasetError, reason

DEEPEST = 50
"""Levels of blocks and lists in a JSON file."""
LARGEST_JSON = 1 << 27
"""Bytes of a JSON file: scores of 1,000 cases with 100 labels take a fifth of it."""


@contextmanager
def written_atomically(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path (same ending as `path`); rename it to `path` when the block ends well.

    The temporary file is removed when the block raises; a killed process leaves it behind, and the next write
    of the same file replaces it.

    Args:
        path: The file to write.
        folder: Where the temporary file lies, on the same file system; beside `path` by default. nnU-Net takes
            every file in `imagesTr` and in preprocessed folders for a case: for these, name another folder.
    """
    temporary = (folder or path.parent) / f".incomplete_{path.name}"
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(content: Any, path: Path) -> None:
    """Write `content` as indented JSON, atomically."""
    with written_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4) + "\n")


def read_json(path: Path, what: str, advice: str) -> dict[str, Any]:
    """Read the JSON object in the file `path`.

    Args:
        path: The file.
        what: What the file is, for the error message, e.g. "the plans file".
        advice: What the user should do when it is missing.

    Raises:
        DatasetError: The file is missing, very large or no valid JSON, names a key twice, or holds no object or a very
            deep one.
    """
    if not path.is_file():
        raise DatasetError(f"{what} {path} does not exist. {advice}")
    if path.stat().st_size > LARGEST_JSON:
        raise DatasetError(f"{what} {path} has more than {LARGEST_JSON >> 20} MiB. {advice}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_key_once)
    except RecursionError:
        raise DatasetError(f"{what} {path} nests blocks more than {DEEPEST} deep. {advice}") from None
    except ValueError as error:  # also of text that is not UTF-8, and of numbers with thousands of digits
        raise DatasetError(f"{what} {path} is not valid JSON ({reason(error)}). {advice}") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{what} {path} holds no block in braces. {advice}")
    if not _is_shallow(content):
        raise DatasetError(f"{what} {path} nests blocks more than {DEEPEST} deep. {advice}")
    return content


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    block = dict(pairs)
    if len(block) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for position, key in enumerate(keys) if key in keys[:position])
        raise ValueError(f'the key "{twice}" is there twice')
    return block


def _is_shallow(content: Any) -> bool:
    """Whether Python's own recursion, e.g. a deep copy, can walk through the content."""
    level = [content]
    for _ in range(DEEPEST):
        inner = (entry.values() if isinstance(entry, dict) else entry for entry in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return True
    return False


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def mapped_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays that `numpy.savez` wrote into a file, mapped into memory: numpy itself reads such files whole.

    Raises:
        ValueError: It is no such file, or is cut off; of damaged ones numpy and zipfile raise anything.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{path} is compressed")
            stream.seek(entry.header_offset)
            lengths = struct.unpack("<HH", stream.read(30)[26:])  # of name and extra field, which precede the array
            stream.seek(sum(lengths), os.SEEK_CUR)
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
            if dtype.hasobject:
                raise ValueError(f"{path} holds objects")
            empty = 0 in shape  # nothing to map
            array = np.zeros(shape, dtype) if empty else np.memmap(path, dtype, "r", stream.tell(), shape or (1,))
            arrays[entry.filename.removesuffix(".npy")] = array.reshape(shape)
    return arrays
