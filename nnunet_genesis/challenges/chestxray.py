"""ChestX-ray14 of the NIH, X-rays without segmentations: its official split, and findings for a classification."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from nnunet_genesis.challenges.download import files_below, once
from nnunet_genesis.challenges.unlabeled import Selection
from nnunet_genesis.errors import DatasetError, printable

NAME = "chestxray"
TRAINING, TEST, ENTRIES = "train_val_list.txt", "test_list.txt", "Data_Entry_2017*.csv"
IMAGE = re.compile(r"(\d{8})_\d{3}\.png", re.ASCII)
"""Patient and number of the visit."""
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
LONGEST_LIST = 1 << 24
"""Bytes of a list or table that are read: the largest has 8 million."""
NOTES = (
    "The official split is by patient: images of its test list, and other images of those patients, are not imported.",
)


def find_images_of(source: Path) -> Selection:
    """The images of the official training and validation list; `test_list.txt` must be there to keep the others out.

    Args:
        source: Folder with the two lists and the images, in folders such as `images_001/images` or all in one.

    Raises:
        DatasetError: A list is missing, names something else than images, or both name the same image; an image is
            there twice, or no image of the first list is there.
    """
    listed, test = official_split(source)
    files = images_below(source)
    patients = {name[:8] for name in test}
    chosen = [name for name in listed if name in files and name[:8] not in patients]
    if not chosen:
        raise DatasetError(f"{printable(source)} has no image that {TRAINING} names. Unpack images_001.tar.gz … there.")
    missing = sum(name not in files for name in listed)
    absent = f"{missing} of the {len(listed)} images that {TRAINING} names are not there: unpack all twelve archives."
    return Selection(
        challenge=NAME,
        name="ChestXray14",
        channel="Xray",
        flat=True,
        chosen={"split": TRAINING},
        files=tuple(files[name] for name in chosen),
        held_out=len(files) - len(chosen),
        notes=(*([absent] if missing else []), *NOTES),
    )


def official_split(source: Path) -> tuple[list[str], list[str]]:
    """Names of the images to train and validate on, and of those to test on.

    Raises:
        DatasetError: A list is missing, names something else than images, or both name the same image.
    """
    lists = []
    for name in (TRAINING, TEST):
        words = _text(
            source / name, f"Download {name} beside the images: without it test images cannot be kept out."
        ).split()
        if strange := next((word for word in words if not IMAGE.fullmatch(word)), ""):
            raise DatasetError(f"{source / name} names {printable(strange, 60)}, no image. Download it again.")
        lists.append(list(dict.fromkeys(words)))
    if common := set(lists[0]) & set(lists[1]):
        raise DatasetError(f"{TRAINING} and {TEST} both name {min(common)}. Download both again.")
    return lists[0], lists[1]


def images_below(source: Path) -> dict[str, Path]:
    """Name → file of the images below a folder.

    Raises:
        DatasetError: An image is there twice: which of the files is meant is not known.
    """
    found: dict[str, Path] = {}
    for file in files_below(source):
        if IMAGE.fullmatch(file.name):
            once(found, file.name, file)
    return found


def findings(source: Path) -> dict[str, frozenset[str]]:
    """Name of each image → its findings, of `FINDINGS`.

    Raises:
        DatasetError: The table is missing, or not that of ChestX-ray14.
    """
    tables = sorted(source.glob(ENTRIES)) or [source / ENTRIES.replace("*", "")]
    text = _text(tables[-1], "Download it beside the images.")
    try:
        return dict(_rows(text))
    except (KeyError, ValueError, AttributeError, csv.Error):
        raise DatasetError(
            f'{tables[-1]} has no columns "Image Index" and "Finding Labels" as they were published. Download it again.'
        ) from None


def _rows(text: str) -> Iterator[tuple[str, frozenset[str]]]:
    for row in csv.DictReader(text.splitlines()):
        named = frozenset(row["Finding Labels"].split("|")) - {"No Finding"}
        if not named <= set(FINDINGS):
            raise ValueError(f"unknown finding {named}")
        yield row["Image Index"], named


def _text(file: Path, advice: str) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(LONGEST_LIST + 1)
        if len(content) > LONGEST_LIST:
            raise DatasetError(f"{file} has more than {LONGEST_LIST >> 20} MiB. Download it again.")
        return content.decode()
    except OSError as error:
        raise DatasetError(f"{file} cannot be read ({error.strerror}). {advice}") from None
    except UnicodeDecodeError:
        raise DatasetError(f"{file} is no text. Download it again.") from None
