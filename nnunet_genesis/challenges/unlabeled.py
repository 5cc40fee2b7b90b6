"""Scans that were chosen from a download → a dataset without labels, with the split that the choice came with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_genesis.challenges.download import CHALLENGE, FOLDS_FILE
from nnunet_genesis.errors import DatasetError
from nnunet_genesis.files import read_json, write_json
from nnunet_genesis.importing.into_dataset import ImportReport, dataset_folder, import_scans
from nnunet_genesis.shards import EVERYTHING, Shard


@dataclass(frozen=True)
class Selection:
    """The scans of a download that a pre-training may see.

    Attributes:
        challenge: Name of the download, e.g. "luna16".
        name: Name of the dataset to be, without number.
        channel: Name of the channel.
        files: One for each scan; their stems become the names of cases.
        validation: Names of cases that fold 0 validates on; without any, there is no file of folds.
        held_out: Number of scans of the download that were not chosen.
        flat: Whether they are 2D images.
        chosen: What was chosen, for dataset.json.
        notes: What a user should know of these data.
    """

    challenge: str
    name: str
    channel: str
    files: tuple[Path, ...]
    validation: tuple[str, ...] = ()
    held_out: int = 0
    flat: bool = False
    chosen: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def import_selection(
    selection: Selection,
    raw: Path,
    dataset_id: int,
    name: str | None = None,
    *,
    shard: Shard = EVERYTHING,
    processes: int = 1,
    progress: bool = True,
) -> ImportReport:
    """Import the chosen scans as `import_scans` does, and nothing else of the download.

    What describes the dataset, its folds included, is written by a run of everything, not by shards.

    Args:
        selection: What was chosen.
        raw: nnU-Net's folder of raw datasets (`nnUNet_raw`).
        dataset_id: 1 to 999.
        name: Name of the dataset without number; that of the selection by default.
        shard: (i, n): only every n-th scan, from the i-th on; counted from 1.
        processes: Number of worker processes.
        progress: Show a progress bar.

    Raises:
        DatasetError: The dataset has cases that were not chosen, or what `import_scans` refuses.
    """
    folder = dataset_folder(raw, dataset_id, name or selection.name)
    chosen = {file.stem for file in selection.files}
    if strangers := cases_in(folder) - chosen:
        raise DatasetError(
            f"{folder} has {len(strangers)} cases that this choice leaves out, e.g. {min(strangers)}: a pre-training "
            "would see what is to be kept from it. Choose another id, or delete the dataset."
        )
    report = import_scans(
        selection.files, raw, dataset_id, name or selection.name, [selection.channel], flat=selection.flat,
        shard=shard, processes=processes, progress=progress,
    )  # fmt: skip
    if shard != EVERYTHING:
        return report
    path = folder / "dataset.json"
    description = read_json(path, "The dataset description", "Delete it.")
    write_json(description | {CHALLENGE: {"name": selection.challenge, **selection.chosen}}, path)
    if selection.validation:
        there = cases_in(folder)
        validation = there & set(selection.validation)
        write_json([{"train": sorted(there - validation), "val": sorted(validation)}], folder / FOLDS_FILE)
    return report


def cases_in(folder: Path) -> set[str]:
    """Names of the cases in a raw dataset of one channel."""
    names = (file.name for file in (folder / "imagesTr").glob("*_0000.*"))
    return {name.rpartition("_0000.")[0] for name in names}
