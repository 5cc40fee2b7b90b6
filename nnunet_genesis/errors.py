"""What can go wrong for a user, as one family: every message says what was wrong and what to do next."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class GenesisError(ValueError):
    """Something the user can put right. The command line prints its text as one line and exits with 1."""


class SettingsError(GenesisError):
    """A setting has an unknown name, a wrong type or a value out of range."""


class DatasetError(GenesisError):
    """A dataset, an image or a folder of nnU-Net is missing or does not fit."""


class CheckpointError(GenesisError):
    """A checkpoint cannot be read, or is not what it should be."""


class TransferError(GenesisError):
    """Weights of a checkpoint do not fit the target network."""


@contextmanager
def one_line() -> Iterator[None]:
    """End the process with one line and exit code 1 where a GenesisError occurs.

    Our trainers run inside nnU-Net's own commands, which would print a traceback.
    """
    try:
        yield
    except GenesisError as error:
        sys.exit(f"nnunet_genesis: {error}")
