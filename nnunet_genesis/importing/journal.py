"""What the runs of an import did ⇄ `import_report.json` and `dataset.json` in the dataset folder."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_genesis.errors import DatasetError
from nnunet_genesis.files import read_json, write_json
from nnunet_genesis.shards import LOCKS, one_at_a_time

REPORT = "import_report.json"


@dataclass(frozen=True)
class Layout:
    """What the images of a dataset are.

    Attributes:
        ending: How their file names end.
        reader: nnU-Net's class that reads them.
    """

    ending: str
    reader: str


VOLUMES = Layout(".nii.gz", "SimpleITKIO")
PLANES = Layout(".png", "NaturalImage2DIO")
"""2D images: a PNG file for each channel. nnU-Net's reader of it knows no spacing."""
CASE = re.compile(r"([A-Za-z0-9-][A-Za-z0-9._-]*)?")
"""What case names look like; empty for scans that never got one."""
REPORT_EVERY = 2.0
"""Seconds between two writings of the report during a run, if it is small."""
WRITING = 0.05
"""Largest part of a run that these writings may take."""


@dataclass
class Record:
    """What is kept about one source.

    Attributes:
        case: Case name, kept for later runs.
        state: State of the source when it was imported or rejected; empty if it was never finished.
        reason: Why it was rejected, or empty.
    """

    case: str = ""
    state: str = ""
    reason: str = ""

    def is_sound(self) -> bool:
        """Whether the case is a name that we give: files are removed and written under it."""
        texts = all(isinstance(text, str) for text in (self.case, self.state, self.reason))
        return texts and bool(CASE.fullmatch(self.case))


@dataclass
class Journal:
    """The records of all sources of a dataset, in memory and in its folder.

    Attributes:
        folder: The dataset.
        channels: Names of its channels.
        layout: What its images are.
        records: Source → what is kept about it.
        mine: Sources of this run, where others are at work on the rest at the same time; without: all.
        saved: When the report was last written, in seconds.
        took: Seconds that this took.
    """

    folder: Path
    channels: Sequence[str]
    layout: Layout
    records: dict[str, Record] = field(default_factory=dict)
    mine: frozenset[str] | None = None
    saved: float = 0.0
    took: float = 0.0

    @classmethod
    def read(cls, folder: Path, channels: Sequence[str], layout: Layout) -> Journal:
        """The records of earlier runs, if there are any.

        Raises:
            DatasetError: The report was damaged by other hands.
        """
        return cls(folder, channels, layout, _recorded(folder / REPORT))

    def case_files(self, case: str) -> list[Path]:
        """The files of a case in `imagesTr`, one per channel."""
        return [self.folder / "imagesTr" / f"{case}_{n:04d}{self.layout.ending}" for n in range(len(self.channels))]

    @property
    def locks(self) -> Path:
        """Where the locks of an import lie."""
        return self.folder / LOCKS / "import"

    def save(self) -> None:
        """Write the report, with what others have written about their sources meanwhile, and `dataset.json`.

        Raises:
            DatasetError: They cannot be written.
        """
        started = time.monotonic()
        with one_at_a_time(self.locks):
            if self.mine is not None:
                ours = {source: record for source, record in self.records.items() if source in self.mine}
                self.records = _recorded(self.folder / REPORT) | ours
            self.write()
        self.saved = time.monotonic()
        self.took = self.saved - started

    def write(self) -> None:
        """Write the report as it is in memory, and `dataset.json`; in the latter, what was added by hand is kept.

        A shard leaves `dataset.json` to the run that completes the dataset: nobody should plan with a part of it.

        Raises:
            DatasetError: They cannot be written.
        """
        rejected = {source: record.reason for source, record in self.records.items() if record.reason}
        imported = sum(bool(record.state) and not record.reason for record in self.records.values())
        sources = {source: asdict(record) for source, record in self.records.items()}
        report = {"imported": imported, "rejected": rejected, "sources": sources}
        path = self.folder / "dataset.json"
        try:
            write_json(report, self.folder / REPORT)
            if self.mine is None:
                ours = describe(self.folder, self.channels, self.layout)
                found = read_json(path, "The dataset description", "Delete it.") if path.exists() else {}
                write_json({**ours, **found, "numTraining": ours["numTraining"]}, path)
        except OSError as error:
            raise DatasetError(
                f"{self.folder} cannot be written to ({error.strerror}). Make space or give access, then run "
                "the same command again: finished cases are kept."
            ) from None

    def save_now_and_then(self) -> None:
        """Save if the last time is some seconds ago; more if the report is large or many processes wait for it."""
        if time.monotonic() - self.saved > max(REPORT_EVERY, self.took / WRITING):
            self.save()


def _recorded(path: Path) -> dict[str, Record]:
    """The records in a report, if it is there."""
    advice = "Delete it; imported cases are kept."
    content = read_json(path, "The import report", advice) if path.exists() else {"sources": {}}
    try:
        records = {source: Record(**kept) for source, kept in content["sources"].items()}
        if not all(record.is_sound() for record in records.values()):
            raise TypeError
    except (AttributeError, KeyError, TypeError):
        raise DatasetError(f"The import report {path} was changed and cannot be used. {advice}") from None
    return records


def describe(folder: Path, channels: Sequence[str], layout: Layout) -> dict[str, Any]:
    """The content of `dataset.json`; cases are counted as nnU-Net finds them in `imagesTr`."""
    files = (folder / "imagesTr").glob(f"*{layout.ending}")
    return {
        "name": folder.name,
        "description": "Unlabeled scans, imported by nnunet-genesis for pre-training.",
        "channel_names": {str(number): channel for number, channel in enumerate(channels)},
        "labels": {"background": 0},
        "numTraining": len({file.name[: -len(f"_0000{layout.ending}")] for file in files}),
        "file_ending": layout.ending,
        "overwrite_image_reader_writer": layout.reader,
    }
