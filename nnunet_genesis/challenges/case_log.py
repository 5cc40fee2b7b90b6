"""What became of each case of a download ⇄ `challenge_report.json` in the dataset folder."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nnunet_genesis.errors import DatasetError, printable
from nnunet_genesis.files import read_json, write_json

REPORT = "challenge_report.json"
REPORT_EVERY = 2.0
"""Seconds between two writings of the report during a run."""
ADVICE = "Delete it; its cases will be looked at again."


@dataclass
class CaseRecord:
    """What is kept about one case.

    Attributes:
        state: State of its files when it was written or left out; empty if it was never finished.
        reason: Why it was left out, or empty.
        note: What was put right in it, or empty.
    """

    state: str = ""
    reason: str = ""
    note: str = ""


@dataclass
class CaseLog:
    """The records of a dataset: `imagesTr/case` or `imagesTs/case` → record.

    Attributes:
        path: The file.
        challenge: What all cases are of, in one text, e.g. "brats 2023".
        cases: Case → record.
        saved: When it was last written.
    """

    path: Path
    challenge: str
    cases: dict[str, CaseRecord] = field(default_factory=dict)
    saved: float = 0.0

    @classmethod
    def read(cls, folder: Path, challenge: str) -> CaseLog:
        """The records of earlier runs, if there are any.

        Raises:
            DatasetError: The folder holds something else, or the report was damaged by other hands.
        """
        path = folder / REPORT
        if not path.exists():
            if folder.is_dir() and any(folder.iterdir()):
                raise DatasetError(f"{folder} exists and was not written by this command. Choose another id.")
            return cls(path, challenge)
        content = read_json(path, "The report", ADVICE)
        if content.get("challenge") != challenge:
            of = printable(content.get("challenge"), 40)
            raise DatasetError(f"{folder} holds cases of {of}, not of {challenge}. Choose another id.")
        try:
            cases = {case: CaseRecord(**kept) for case, kept in content["cases"].items()}
            texts = [text for record in cases.values() for text in asdict(record).values()]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError
        except (AttributeError, KeyError, TypeError):
            raise DatasetError(f"The report {path} was changed and cannot be used. {ADVICE}") from None
        return cls(path, challenge, cases)

    def save(self) -> None:
        """Write the report."""
        cases = {case: asdict(record) for case, record in sorted(self.cases.items())}
        left_out = {case: record.reason for case, record in sorted(self.cases.items()) if record.reason}
        write_json({"challenge": self.challenge, "left_out": left_out, "cases": cases}, self.path)
        self.saved = time.monotonic()

    def save_now_and_then(self) -> None:
        """Save if the last time is some seconds ago."""
        if time.monotonic() - self.saved > REPORT_EVERY:
            self.save()
