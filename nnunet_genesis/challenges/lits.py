"""LiTS, the Liver Tumor Segmentation benchmark of 2017: its download, and the archive that its server takes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_genesis.challenges.archive import Submission, Wanted
from nnunet_genesis.challenges.download import Case, Download, files_below, once
from nnunet_genesis.errors import DatasetError
from nnunet_genesis.importing.read import Geometry

NAME = "lits"
FILE = re.compile(r"(test-volume|volume|segmentation)-(\d{1,3})\.nii(?:\.gz)?", flags=re.ASCII | re.IGNORECASE)
TEST_IMAGE = re.compile(r"test-volume-(\d{1,3})(?:_0000)?\.nii(?:\.gz)?", flags=re.ASCII | re.IGNORECASE)
TESTS = 70
LABELS = {"background": 0, "liver": 1, "tumor": 2}
OVERLAP = (
    "LiTS is the same data as Task03_Liver of the Decathlon, training and test: do not pre-train on one and test on "
    "the other. Volumes 28 to 47 are those of 3D-IRCADb-01, which is part of other collections, too."
)
NO_SPACING = "its header has no spacing (identity affine, as volumes 28 to 47 were published)"
NOTE = (
    "{} volumes have an identity affine: their real spacing is unknown, and nnU-Net, which resamples by spacing, would "
    "take them for scans of 1 mm. "
)


def find_download(source: Path, keep_identity: bool = False) -> Download:
    """The volumes of LiTS, wherever they lie below a folder: the training batches were published apart.

    nnU-Net has no converter for LiTS.

    Args:
        source: Folder with `volume-N.nii`, `segmentation-N.nii` and `test-volume-N.nii`, subfolders included.
        keep_identity: Whether to take volumes with an identity affine for scans of 1 mm. By default they are left out;
            one whose header was repaired is taken.

    Raises:
        DatasetError: There is no training volume, or one is there twice.
    """
    kinds: dict[str, dict[str, Path]] = {"volume": {}, "segmentation": {}, "test-volume": {}}
    for file in files_below(source):
        if named := FILE.fullmatch(file.name):
            once(kinds[named[1].lower()], str(int(named[2])), file)
    volumes, labels, tests = kinds.values()
    numbers = sorted({*volumes, *labels}, key=int)
    if not numbers:
        raise DatasetError(f"{source} has no volume-N.nii with segmentation-N.nii. Name the folder of LiTS's download.")
    without_spacing = [number for number in numbers if number in volumes and has_identity_affine(volumes[number])]
    training = []
    for number in numbers:
        missing = f"volume-{number}.nii" if number not in volumes else f"segmentation-{number}.nii"
        if number not in volumes or number not in labels:
            training.append(Case(f"volume-{number}", flaw=f"{missing} is missing"))
        elif number in without_spacing and not keep_identity:
            training.append(Case(f"volume-{number}", flaw=NO_SPACING))
        else:
            training.append(Case(f"volume-{number}", (volumes[number],), labels[number]))
    advice = "They are kept." if keep_identity else "They are left out; --keep-identity-affine keeps them."
    return Download(
        challenge=NAME,
        name="LiTS",
        channels=("CT",),
        labels=LABELS,
        values={value: value for value in LABELS.values()},
        training=tuple(training),
        test=tuple(Case(f"test-volume-{number}", (tests[number],)) for number in sorted(tests, key=int)),
        description={
            "description": "Liver Tumor Segmentation benchmark (LiTS), 2017",
            "reference": "Bilic et al., Medical Image Analysis 84 (2023) 102680",
            "licence": "that of the challenge's page",
        },
        notes=(*([NOTE.format(len(without_spacing)) + advice] if without_spacing else []), OVERLAP),
    )


def has_identity_affine(file: Path) -> bool:
    """Whether a header says 1 mm, no rotation, no offset: signs of axes aside, what a lost affine looks like."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return False  # what is wrong with the file is said when it is read
    geometry = Geometry.of(reader)
    if len(geometry.size) != 3:
        return False
    spacing, origin, direction = geometry.spacing, np.abs(geometry.origin), np.abs(geometry.direction)
    return np.allclose(spacing, 1) and np.allclose(origin, 0) and np.allclose(direction, np.eye(3).ravel())


def plan_submission(predictions: Path | None, images: Path, partial: bool = False) -> Submission:
    """What LiTS wants: `test-segmentation-N.nii`, uncompressed, without a folder, for N from 0 to 69.

    Args:
        predictions: Folder with `test-volume-N.nii.gz`; None to check an archive.
        images: Folder with the test volumes, as downloaded or as nnU-Net's images.
        partial: Whether to take the volumes that are there, in place of all 70.

    Raises:
        DatasetError: There is no test volume, or one is there twice.
    """
    found: dict[str, Path] = {}
    for file in files_below(images):
        if named := TEST_IMAGE.fullmatch(file.name):
            once(found, str(int(named[1])), file)
    if not found:
        raise DatasetError(f"{images} has no test-volume-N.nii. Name the folder of LiTS's test volumes, or imagesTs.")
    numbers = sorted(found, key=int) if partial else [str(number) for number in range(TESTS)]
    values = {value: value for value in LABELS.values()}
    folder = predictions or Path()
    return Submission(
        tuple(
            Wanted(f"test-segmentation-{n}.nii", folder / f"test-volume-{n}.nii.gz", found.get(n), values)
            for n in numbers
        )
    )
