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
"""Seconds between two writings of the report during a run."""


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
    """The records of all sources of a dataset, in memory and in its folder."""

    folder: Path
    channels: Sequence[str]
    layout: Layout
    records: dict[str, Record] = field(default_factory=dict)
    saved: float = 0.0

    @classmethod
    def read(cls, folder: Path, channels: Sequence[str], layout: Layout) -> Journal:
        """The records of earlier runs, if there are any.

        Raises:
            DatasetError: The report was damaged by other hands.
        """
        path, advice = folder / REPORT, "Delete it; imported cases are kept."
        content = read_json(path, "The import report", advice) if path.exists() else {"sources": {}}
        try:
            records = {source: Record(**kept) for source, kept in content["sources"].items()}
            if not all(record.is_sound() for record in records.values()):
                raise TypeError
        except (AttributeError, KeyError, TypeError):
            raise DatasetError(f"The import report {path} was changed and cannot be used. {advice}") from None
        return cls(folder, channels, layout, records)

    def case_files(self, case: str) -> list[Path]:
        """The files of a case in `imagesTr`, one per channel."""
        return [self.folder / "imagesTr" / f"{case}_{n:04d}{self.layout.ending}" for n in range(len(self.channels))]

    def save(self) -> None:
        """Write the report and `dataset.json`; in the latter, what was added by hand is kept.

        Raises:
            DatasetError: They cannot be written.
        """
        rejected = {source: record.reason for source, record in self.records.items() if record.reason}
        imported = sum(bool(record.state) and not record.reason for record in self.records.values())
        sources = {source: asdict(record) for source, record in self.records.items()}
        report = {"imported": imported, "rejected": rejected, "sources": sources}
        ours = describe(self.folder, self.channels, self.layout)
        path = self.folder / "dataset.json"
        found = read_json(path, "The dataset description", "Delete it.") if path.exists() else {}
        try:
            write_json(report, self.folder / REPORT)
            write_json({**ours, **found, "numTraining": ours["numTraining"]}, path)
        except OSError as error:
            raise DatasetError(
                f"{self.folder} cannot be written to ({error.strerror}). Make space or give access, then run "
                "the same command again: finished cases are kept."
            ) from None
        self.saved = time.monotonic()

    def save_now_and_then(self) -> None:
        """Save if the last time is some seconds ago."""
        if time.monotonic() - self.saved > REPORT_EVERY:
            self.save()


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
