"""One command's cases shared among processes on machines with a common file system: whose they are, who is at them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from nnunet_genesis.errors import GenesisError, reason

Item = TypeVar("Item")
Shard = tuple[int, int]
"""(i, n): every n-th case, from the i-th on; counted from 1."""
EVERYTHING: Shard = (1, 1)
LOCKS = ".locks"
"""Folder of lock files; they stay there, and mean nothing when nobody holds them."""
MOMENT = 10.0
"""Seconds for which somebody who only looks whether a lock is free may hold it."""


def share_of(items: Sequence[Item], shard: Shard) -> Sequence[Item]:
    """The items of a shard, in their order; all shards of a list hold each item once."""
    return items[shard[0] - 1 :: shard[1]]


def file_name(shard: Shard) -> str:
    """(2, 4) → "2_of_4"."""
    return f"{shard[0]}_of_{shard[1]}"


@contextmanager
def claimed(locks: Path, shard: Shard) -> Iterator[None]:
    """Keep every other run that has cases of this shard out while the block runs.

    The system takes the claim away from a process that ends, however it does. First claim, then look at the others:
    of two runs that start at the same moment at least one sees the other.

    Args:
        locks: Folder of lock files of one task, made if needed.
        shard: What the run works on; other shards of the same number of shards have no case in common with it.

    Raises:
        GenesisError: Another run has some of these cases, or the folder cannot be written to.
    """
    with _held(locks / f"{file_name(shard)}.lock", 0):
        for other in locks.glob("*_of_*.lock"):
            count = re.fullmatch(r"\d+_of_(\d+)\.lock", other.name, re.ASCII)
            if count and int(count[1]) != shard[1]:
                with _held(other, MOMENT):
                    pass
        yield


@contextmanager
def one_at_a_time(locks: Path) -> Iterator[None]:
    """Let one process at a time into the block, which reads and writes a file of all of them: milliseconds.

    Raises:
        GenesisError: The folder cannot be written to.
    """
    with _held(locks / "record.lock", -1):
        yield


@contextmanager
def _held(path: Path, seconds: float) -> Iterator[None]:
    lock: Any = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=seconds)
        lock.acquire()
    except Timeout:
        raise GenesisError(
            f"Another run is at work on the same cases (its lock: {path}). Wait for it, or end it; then run again."
        ) from None
    except (OSError, NotImplementedError) as error:  # the latter from file systems without locks
        raise GenesisError(
            f"{path} cannot be locked ({reason(error)}). Give access, or use a file system with locks."
        ) from None
    try:
        yield
    finally:
        lock.release()
