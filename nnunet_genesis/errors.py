"""What can go wrong for a user, as one family: every message says what was wrong and what to do next."""

from __future__ import annotations

import sys
import warnings
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


class LeakError(GenesisError):
    """A checkpoint was pre-trained on cases that are meant to test it, or does not say so."""


class HubError(GenesisError):
    """An address is none, or what it names cannot be fetched or written to."""


class StudyError(GenesisError):
    """A study cannot be planned, run or reported as asked."""


def reason(error: BaseException, most: int = 200) -> str:
    """What an exception says, as `printable` text; its kind if it says nothing."""
    return printable(error, most) or type(error).__name__


def printable(text: object, most: int | None = None) -> str:
    """One line of at most `most` characters, safe for a terminal: names in foreign files may hold its commands."""
    line = " ".join(str(text).split())
    return "".join(character if character.isprintable() else "?" for character in line)[:most]


@contextmanager
def one_line() -> Iterator[None]:
    """End the process with one line and exit code 1 where a GenesisError occurs.

    Our trainers run inside nnU-Net's own commands, which would print a traceback.
    """
    try:
        yield
    except GenesisError as error:
        sys.exit(printable(f"nnunet_genesis: {error}"))


@contextmanager
def network_of(plans: str) -> Iterator[None]:
    """Say in one line that nnU-Net cannot build a network, whatever its class, which may be anybody's, raises.

    Args:
        plans: The plans that describe it, in words.

    Raises:
        TransferError: The block has raised something; names the plans and the reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Network class .* not found")  # the error says it too
            yield
    except Exception as error:
        why = printable(f"{type(error).__name__}: {error}", 300)
        raise TransferError(f"nnU-Net cannot build the network of {plans} ({why}). Correct the plans file.") from None
