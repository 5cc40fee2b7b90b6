"""A record of cases that is too long for a checkpoint → a file beside it, which the checkpoint names; and back."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_genesis.errors import CheckpointError, printable
from nnunet_genesis.files import sha256, written_atomically

MOST_ROWS_INSIDE = 1000
"""Rows of a record that a checkpoint holds itself: 4 MB."""
BESIDE = 2
"""Format of what a checkpoint holds in place of a longer record."""
LARGEST_RECORD = 1 << 32
"""Bytes of a record of cases, unpacked, where its file has fewer."""


def write_record(block: Mapping[str, Any], path: Path, compressed: bool) -> None:
    """Write a record of cases as arrays."""
    arrays = {key: block[key].numpy() for key in ("digests", "signatures")}
    write = np.savez_compressed if compressed else np.savez
    write(path, format=block["format"], names=np.array(block["names"], dtype=np.str_), **arrays)


def read_record_file(path: Path) -> dict[str, Any]:
    """The record of cases in a file, as a checkpoint holds it; whether it is one is for its reader to say.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > max(LARGEST_RECORD, path.stat().st_size):
                raise ValueError("it is too large")
        with np.load(path, allow_pickle=False) as kept:
            return {
                "format": int(kept["format"]),
                "names": [str(name) for name in kept["names"]],
                **{key: torch.from_numpy(kept[key]) for key in ("digests", "signatures")},
            }
    except Exception as error:  # of damaged archives, numpy raises anything
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}). Download it again.") from None


def kept_record(block: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a checkpoint in a folder is to hold of a record: a long one is written into a file there, and named."""
    if len(block["names"]) <= MOST_ROWS_INSIDE:
        return block
    unnamed = folder / "cases.npz"
    with written_atomically(unnamed) as temporary:
        write_record(block, temporary, compressed=False)
        digest = sha256(temporary)
    path = folder / f"cases_{digest[:16]}.npz"
    os.replace(unnamed, path)
    return {"format": BESIDE, "file": path.name, "sha256": digest}


def whole_record(block: Any, checkpoint: Path) -> Any:
    """The record that a checkpoint holds, or that of the file beside it that it names.

    Raises:
        CheckpointError: That file is missing, is another one or cannot be read.
    """
    if not _is_beside(block):
        return block
    path = _path_of(block, checkpoint)
    if not path.is_file():
        raise CheckpointError(
            f"{checkpoint} has the record of its cases in {printable(path.name, 80)}, which is not beside it. Copy it "
            "there from where the checkpoint was."
        )
    if sha256(path) != block["sha256"]:
        raise CheckpointError(f"{path} is not the record of cases that {checkpoint.name} names. Copy it again.")
    return read_record_file(path)


def carry_record(block: Any, checkpoint: Path, folder: Path) -> None:
    """Copy the file beside a checkpoint that holds its record, if there is one, into another folder."""
    if _is_beside(block) and (path := _path_of(block, checkpoint)).is_file() and path.parent != folder:
        with written_atomically(folder / path.name) as temporary:
            shutil.copyfile(path, temporary)


def _is_beside(block: Any) -> bool:
    return isinstance(block, Mapping) and type(block.get("format")) is int and block["format"] == BESIDE


def _path_of(block: Mapping[str, Any], checkpoint: Path) -> Path:
    """Where the file is; its name is made from the digest, so that no other file can be named."""
    digest = block.get("sha256")
    if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise CheckpointError(f"{checkpoint} has a damaged record of the cases that it saw. Take another copy of it.")
    return checkpoint.with_name(f"cases_{digest[:16]}.npz")
