"""BraTS, gliomas from 2013 to 2024: three conventions of labels and names as downloads, and archives of two of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nnunet_genesis.challenges.archive import Submission, Wanted
from nnunet_genesis.challenges.case_log import REPORT, CaseLog
from nnunet_genesis.challenges.download import CASE_NAME, CHALLENGE, Case, Download, files_below, once
from nnunet_genesis.errors import DatasetError, printable
from nnunet_genesis.files import read_json

NAME = "brats"
CHANNELS = ("T1w", "t1gd", "T2w", "FLAIR")
"""In the order of nnU-Net's Dataset137_BraTS21, with the names of the Decathlon's Task01, where FLAIR comes first: a
transfer matches channels by name."""
OEDEMA, CORE, ENHANCING, CAVITY = "edema", "necrotic or non-enhancing core", "enhancing tumor", "resection cavity"
LABELS = (OEDEMA, CORE, ENHANCING, CAVITY)
PARTS = {"whole tumor": (OEDEMA, CORE, ENHANCING), "tumor core": (CORE, ENHANCING), "enhancing tumor": (ENHANCING,),
         "resection cavity": (CAVITY,)}  # fmt: skip
"""Regions that the challenge scores, largest first, so that later ones may overwrite earlier ones."""
BORDERS = {"whole tumor": OEDEMA, "tumor core": CORE, "enhancing tumor": ENHANCING, "resection cavity": CAVITY}
"""Region → the label of its voxels that lie in no smaller region."""


class Named(NamedTuple):
    """What a file's name tells; the patient may be empty."""

    years: str
    case: str
    part: str
    patient: str


@dataclass(frozen=True)
class Edition:
    """What some years have in common.

    Attributes:
        name: Years, and the name of the dataset.
        channels: What files of `CHANNELS` are called.
        values: Value in the challenge's files → label. Several values may mean one label.
        labels: Label → value in the dataset, consecutive as nnU-Net needs it.
    """

    name: str
    channels: tuple[str, ...]
    values: Mapping[int, str]
    labels: Mapping[str, int]

    def to_dataset(self) -> dict[int, int]:
        """Value in the challenge's files → value in the dataset."""
        return {0: 0} | {value: self.labels[label] for value, label in self.values.items()}


NNUNETS = {OEDEMA: 1, CORE: 2, ENHANCING: 3}
"""nnU-Net's convention for BraTS, which is the Decathlon's, too."""
EDITIONS = {
    # Label 3, the non-enhancing core, was united with label 1 in 2017, by the challenge itself.
    "2013-2016": Edition("BraTS2015", ("mr_t1", "mr_t1c", "mr_t2", "mr_flair"),
                         {1: CORE, 2: OEDEMA, 3: CORE, 4: ENHANCING}, NNUNETS),
    "2017-2021": Edition("BraTS2021", ("t1", "t1ce", "t2", "flair"), {1: CORE, 2: OEDEMA, 4: ENHANCING}, NNUNETS),
    "2023": Edition("BraTS2023", ("t1n", "t1c", "t2w", "t2f"), {1: CORE, 2: OEDEMA, 3: ENHANCING},
                    {CORE: 1, OEDEMA: 2, ENHANCING: 3}),
    "2024": Edition("BraTS2024", ("t1n", "t1c", "t2w", "t2f"), {1: CORE, 2: OEDEMA, 3: ENHANCING, 4: CAVITY},
                    {CORE: 1, OEDEMA: 2, ENHANCING: 3, CAVITY: 4}),
}  # fmt: skip
FILES = {
    "2017-2021": re.compile(
        r"(?P<case>bra?ts\w*?)_(?P<part>t1|t1ce|t2|flair|seg)\.nii(?:\.gz)?", re.IGNORECASE | re.ASCII
    ),
    "2023": re.compile(
        r"(?P<case>BraTS-GLI-(?P<patient>\d{5})-0\d\d)-(?P<part>t1n|t1c|t2w|t2f|seg)\.nii\.gz", re.ASCII
    ),
    "2024": re.compile(
        r"(?P<case>BraTS-GLI-(?P<patient>\d{5})-1\d\d)-(?P<part>t1n|t1c|t2w|t2f|seg)\.nii\.gz", re.ASCII
    ),
}
"""Names of files: after the patient's number the scan's, below 100 before treatment (2023), above after it (2024)."""
FIRST = {"2017-2021": "_t1", "2023": "-t1n", "2024": "-t1n"}
"""End of the name of the file of the first channel."""
VSD = re.compile(r"VSD\.Brain\w*\.\w+\.O\.(?P<part>MR_T1|MR_T1c|MR_T2|MR_Flair|OT)\.\d+\.mha", re.IGNORECASE | re.ASCII)
"""Names until 2016, when the case is the folder of the files' folders, its last number that of a patient's scan."""
OTHER_TASK = re.compile(r"BraTS-(?!GLI-)([A-Za-z-]+)-\d+.*\.nii\.gz", re.ASCII)
STRAY_LABEL = re.compile(r".*_segm?\.nii(?:\.gz)?", re.IGNORECASE)
"""BraTS20_Training_355 was published with the label W39_1998.09.19_Segm.nii."""
NOTES = (
    "Task01_BrainTumour of the Decathlon has cases of BraTS 2016 and 2017, and other years overlap with these: do not "
    "pre-train on one and test on the other.",
    "Channels are T1w, t1gd (contrast-enhanced), T2w, FLAIR; Task01_BrainTumour has FLAIR first. The command transfer "
    "matches them by name; other tools must be told.",
)


def find_download(source: Path, regions: bool = False) -> Download:
    """The cases of BraTS below a folder; names of files tell the years, and with them the meaning of labels.

    nnU-Net's own scripts for BraTS are not called: they name folders of their authors. Their labels and channels
    (2017-2021) are kept, so that models and datasets made with them agree with ours.

    Args:
        source: Folder of the download, subfolders such as HGG and LGG included; cases without a label are test cases.
        regions: Whether to train on the overlapping regions that are scored, in place of labels.

    Raises:
        DatasetError: There is no case, one is there twice, or there are cases of several conventions.
    """
    found, patients, years, others = _files_of_cases(source)
    edition = EDITIONS[years]
    cases = [_case(name, files, edition) for name, files in sorted(found.items())]
    training, test = [case for case in cases if case.label], [case for case in cases if not case.label]
    labels, order = described(edition, regions)
    counted = f"{len(training)} cases have a label, {len(test)} have none and become test cases (imagesTs)."
    passed_over = f"Cases of other tasks ({', '.join(others)}) are not taken: their labels mean something else."
    return Download(
        challenge=NAME,
        name=edition.name,
        channels=CHANNELS,
        labels=labels,
        values=edition.to_dataset(),
        training=tuple(training),
        test=tuple(test),
        description={
            "description": f"Brain Tumor Segmentation challenge (BraTS), names and labels of {years}",
            "reference": "Menze et al., IEEE TMI 34 (2015) 1993; Baid et al., arXiv:2107.02314",
            "licence": "that of the challenge's page",
            **({"regions_class_order": order} if regions else {}),
            CHALLENGE: {"years": years, "meaning": dict(edition.labels)},
        },
        patients=patients,
        notes=(counted, *([passed_over] if others else []), *NOTES),
    )


def described(edition: Edition, regions: bool) -> tuple[dict[str, int | list[int]], list[int]]:
    """Labels of dataset.json, or regions with nnU-Net's regions_class_order."""
    if not regions:
        by_value = sorted(edition.labels, key=lambda label: edition.labels[label])
        return {"background": 0, **{label: edition.labels[label] for label in by_value}}, []
    known = {name: parts for name, parts in PARTS.items() if set(parts) <= set(edition.labels)}
    values = {name: sorted(edition.labels[part] for part in parts) for name, parts in known.items()}
    return {"background": 0, **values}, [edition.labels[BORDERS[name]] for name in known]


def _files_of_cases(source: Path) -> tuple[dict[str, dict[str, Path]], dict[str, str], str, list[str]]:
    """Case → part → file; case → patient; the years; names of other tasks.

    Raises:
        DatasetError: There is no case, one is there twice, or there are cases of several conventions.
    """
    found: dict[str, dict[str, Path]] = {}
    patients: dict[str, str] = {}
    years: dict[str, Path] = {}
    others, stray = set(), []
    for file in files_below(source):
        if named := _named(file):
            years.setdefault(named.years, file)
            once(found.setdefault(named.case, {}), named.part, file)
            patients |= {named.case: named.patient} if named.patient else {}
        elif STRAY_LABEL.fullmatch(file.name):
            stray.append(file)
        elif other := OTHER_TASK.fullmatch(file.name):
            others.add(other[1])
    for file in stray:
        if file.parent.name in found:
            found[file.parent.name].setdefault("seg", file)
    if len(years) != 1:
        raise DatasetError(_wrong_years(source, years, others))
    return found, patients, next(iter(years)), sorted(others)


def _named(file: Path) -> Named | None:
    """What a file's name tells."""
    if named := VSD.fullmatch(file.name):
        part, case = named["part"].lower(), file.parent.parent.name
        if not CASE_NAME.fullmatch(case):
            return None
        return Named("2013-2016", case, "seg" if part == "ot" else part, case.rpartition("_")[0])
    for years, pattern in FILES.items():
        if named := pattern.fullmatch(file.name):
            return Named(years, named["case"], named["part"].lower(), named.groupdict().get("patient") or "")
    return None


def _wrong_years(source: Path, years: Mapping[str, Path], others: Collection[str]) -> str:
    if years:
        each = "; ".join(f"{year}: {file.name}" for year, file in sorted(years.items()))
        return f"{source} has cases with different labels ({each}). Make a dataset of each, from a folder of its own."
    if others:
        each = ", ".join(sorted(others))
        return (
            f"{source} has cases of other tasks of BraTS ({each}), whose labels mean something else. Only GLI is read."
        )
    return (
        f"{source} has no files named like those of BraTS (…_t1ce.nii.gz, BraTS-GLI-…-t1c.nii.gz, VSD.Brain….mha). "
        "Name the folder of the unpacked download."
    )


def _case(name: str, files: Mapping[str, Path], edition: Edition) -> Case:
    missing = [part for part in edition.channels if part not in files]
    if missing:
        return Case(name, label=files.get("seg"), flaw=f"its image {', '.join(missing)} is missing")
    return Case(name, tuple(files[part] for part in edition.channels), files.get("seg"))


def plan_submission(predictions: Path | None, images: Path, partial: bool = False) -> Submission:
    """What BraTS wants: a file named like each case, without a folder, with the labels of the test cases' year.

    Labels are mapped by their meaning, which dataset.json tells that nnU-Net leaves beside predictions: a model may be
    of another year than the test cases.

    Args:
        predictions: Folder with a file for each case, and dataset.json; None to check an archive.
        images: Folder with the cases to segment, as downloaded or as nnU-Net's images; cases with a label are none.
        partial: Do without the test cases that were left out of the dataset that `images` is.

    Raises:
        DatasetError: There is no case, there are cases of several years, or labels have no known meaning.
    """
    found: dict[str, Path] = {}
    years, cases, labeled = set(), set[str](), set[str]()
    for file in files_below(images):
        for year, end in FIRST.items():  # nnU-Net's first channel is that of BraTS
            named = FILES[year].fullmatch(file.name.replace("_0000.nii", f"{end}.nii"))
            if named and named["part"].lower() == "seg":
                labeled.add(named["case"])
            elif named and file.parent.name != "imagesTr":
                cases.add(named["case"])
                years.add(year)
                if named["part"].lower() == end[1:]:
                    once(found, named["case"], file)
    if len(years) != 1 or cases <= labeled:
        what = "cases of several years" if len(years) > 1 else "no case of BraTS from 2017 on"
        raise DatasetError(f"{images} has {what} to segment. Name a folder with the cases of one year, or imagesTs.")
    (year,) = years
    values = _to_challenge(predictions, EDITIONS[year])
    folder = predictions or Path()
    return Submission(
        tuple(
            Wanted(f"{case}.nii.gz", folder / f"{case}.nii.gz", found.get(case), values)
            for case in sorted(cases - labeled)
        ),
        missing=() if partial else _left_out({file.parent for file in found.values()}, year),
    )


def _left_out(folders: Iterable[Path], years: str) -> tuple[str, ...]:
    """A line for each test case that could not become one of the datasets whose folders of images these are."""
    lines = []
    for dataset in sorted({folder.parent for folder in folders if folder.name == "imagesTs"}):
        if (dataset / REPORT).is_file():
            for case, record in sorted(CaseLog.read(dataset, f"{NAME} {years}").cases.items()):
                if record.reason and case.startswith("imagesTs/"):
                    name = printable(case.removeprefix("imagesTs/"), 80)
                    lines.append(f"{name}.nii.gz: left out of {dataset.name} ({printable(record.reason, 200)})")
    return tuple(lines)


def _to_challenge(predictions: Path | None, edition: Edition) -> dict[int, int]:
    """Value in predictions → value in the challenge's files; without predictions, those of the challenge.

    Raises:
        DatasetError: The dataset.json beside the predictions does not tell what its labels mean.
    """
    back = {label: value for value, label in edition.values.items()}  # from 2017 on a label has one value
    if predictions is None:
        return {0: 0} | {value: value for value in back.values()}
    advice = "nnUNetv2_predict writes it; copy it from the dataset that the model was trained on."
    content = read_json(predictions / "dataset.json", "The description of the predictions", advice)
    block = content.get(CHALLENGE)
    meaning = block.get("meaning") if isinstance(block, dict) and block.get("name") == NAME else None
    known = isinstance(meaning, dict) and all(
        label in LABELS and isinstance(value, int) and 0 < value < 256 for label, value in meaning.items()
    )
    if not known or not isinstance(meaning, dict):
        raise DatasetError(
            f"{predictions / 'dataset.json'} does not say which labels of BraTS it has: its dataset was not made by "
            "nnunet_genesis dataset brats. Make it so, or copy the dataset.json of one with the same labels."
        )
    return {0: 0} | {value: back[label] for label, value in meaning.items() if label in back}
