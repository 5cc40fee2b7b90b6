"""LUNA16, chest CT without labels here: its ten subsets, and which of them the papers on Models Genesis trained on."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from nnunet_genesis.challenges.download import CASE_NAME, files_below, once
from nnunet_genesis.challenges.unlabeled import Selection
from nnunet_genesis.errors import DatasetError, printable

NAME = "luna16"
SUBSETS = range(10)
SPLITS = {
    "genesis2019": (range(6), range(0)),
    "genesis2021": (range(7), range(0)),
    "released": (range(5), range(5, 7)),
}
"""Name → subsets to train on, and to validate on: Models Genesis at MICCAI 2019 (534 scans) and in Medical Image
Analysis 2021 (623), and its released code, which keeps 7 to 9 for the tests of its target tasks."""
SUBSET = re.compile(r"subset(\d)", re.ASCII)
NOTES = ("LUNA16 is 888 scans of LIDC-IDRI (TCIA): do not test on these under another name.",)


def find_scans_of(source: Path, training: Collection[int], validation: Collection[int] = ()) -> Selection:
    """The scans of some subsets, as folders `subset0` … `subset9` of `.mhd` and `.raw` files, subfolders included.

    Args:
        source: Folder of the subsets.
        training: Numbers of subsets.
        validation: Numbers of subsets whose scans are imported too, as the validation cases of fold 0.

    Raises:
        DatasetError: A subset is missing, is no subset of LUNA16, or is to train and to validate; or a scan is there
            twice in the subsets.
    """
    chosen = [*training, *validation]
    if not training or not set(chosen) <= set(SUBSETS) or len(set(chosen)) < len(chosen):
        raise DatasetError("Subsets of LUNA16 are numbers from 0 to 9, each named once, and at least one to train on.")
    found: dict[int, dict[str, Path]] = {}
    seen: dict[str, Path] = {}
    for file in files_below(source):
        inside = [SUBSET.fullmatch(part) for part in file.relative_to(source).parts[:-1]]
        number = next((int(match[1]) for match in inside if match), None)
        if number is not None and file.suffix.lower() == ".mhd" and CASE_NAME.fullmatch(file.stem):
            once(seen, file.stem, file)
            found.setdefault(number, {})[file.stem] = file
    if missing := [f"subset{number}" for number in sorted(chosen) if number not in found]:
        raise DatasetError(
            f"{printable(source)} has no scans in {', '.join(missing)}. Unpack {missing[0]}.zip there, or name "
            "other subsets."
        )
    held_out = sum(len(found[number]) for number in found if number not in chosen)
    counts = ", ".join(f"subset{number} {len(found[number])}" for number in sorted(chosen))
    subsets = {"training": sorted(training), "validation": sorted(validation)}
    return Selection(
        challenge=NAME,
        name="LUNA16",
        channel="CT",
        chosen={"subsets": subsets},
        files=tuple(file for number in sorted(chosen) for file in found[number].values()),
        validation=tuple(name for number in sorted(validation) for name in found[number]),
        held_out=held_out,
        notes=(f"Scans found: {counts}. All ten subsets have 888.", *NOTES),
    )
