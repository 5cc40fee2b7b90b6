"""What was found in a challenge's download: cases, channels, labels, and what there is to say about them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_genesis.errors import DatasetError
from nnunet_genesis.importing.find import Scan

CHALLENGE = "challenge"
"""Block in dataset.json: which challenge the dataset is of, and what a submission must know of it."""
FOLDS_FILE = "splits_final.json"
"""nnU-Net's file of folds."""
CASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}", flags=re.ASCII)
"""What names of cases look like in all challenges here."""


@dataclass(frozen=True)
class Case:
    """One case of a download; nothing but headers has been read yet.

    Attributes:
        name: Name of the case, as in the challenge.
        images: A file for each channel, or one four-dimensional file with all of them.
        label: File of the segmentation; None for a test case.
        flaw: Why it cannot be used, where names and headers tell already; else empty.
    """

    name: str
    images: tuple[Path, ...] = ()
    label: Path | None = None
    flaw: str = ""

    def state(self) -> str:
        """Text that changes when one of the files is added, removed or replaced."""
        files = (*self.images, *([self.label] if self.label else []))
        return Scan("", self.name, tuple((file,) for file in files)).state()


@dataclass(frozen=True)
class Download:
    """A download, as nnU-Net's terms have it.

    Attributes:
        challenge: Name of the challenge, e.g. "msd".
        name: Name of the dataset to be, without number.
        channels: Names of the channels.
        labels: As in nnU-Net's dataset.json: name → value, or values of a region.
        values: Value in the label files → value in the dataset.
        training: Cases with labels.
        test: Cases without.
        description: Further entries of dataset.json.
        patients: Case → patient, where some patients have several cases; else empty.
        notes: What a user should know of these data.
    """

    challenge: str
    name: str
    channels: tuple[str, ...]
    labels: Mapping[str, int | list[int]]
    values: Mapping[int, int]
    training: tuple[Case, ...]
    test: tuple[Case, ...] = ()
    description: Mapping[str, Any] = field(default_factory=dict)
    patients: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Challenge, and its task or years: all cases of a dataset share them, and so what labels mean."""
        block = self.description.get(CHALLENGE, {})
        return " ".join(str(each) for each in (self.challenge, block.get("task"), block.get("years")) if each)


def files_below(folder: Path) -> Iterator[Path]:
    """Files of a folder and its subfolders, linked ones included, sorted, without names that start with a dot.

    Archives made on macOS hold a `._x.nii.gz` beside each `x.nii.gz`: no image, though its name says so.

    Raises:
        DatasetError: There is no such folder, or one cannot be opened: its cases would be left out in silence.
    """
    if not folder.is_dir():
        hint = f" Unpack it first: tar -xf {folder}" if folder.is_file() else " Check the path."
        raise DatasetError(f"{folder} is no folder.{hint}")
    seen = set()  # links may lead in circles, or to the same folder twice
    for where, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_closed):
        if (real := os.path.realpath(where)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where) / name for name in sorted(names) if not name.startswith("."))


def _refuse_closed(error: OSError) -> None:
    raise DatasetError(f"{error.filename} cannot be opened ({error.strerror}). Give access to it.") from None


def once(found: dict[str, Path], key: str, file: Path) -> None:
    """Note a file under a key.

    Raises:
        DatasetError: There is another one.
    """
    if found.setdefault(key, file) != file:
        raise DatasetError(f"{found[key]} and {file} are the same case. Name a folder that has it once.")
