"""From a challenge's download, by the commands, to an archive that the same rules check."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tests.challenges.layouts import labels, write_brats21, write_brats23, write_lits, write_msd


def predict(raw: Path, folder: Path) -> None:
    """What nnU-Net leaves: a segmentation of each test case with all of the dataset's labels, and its dataset.json."""
    folder.mkdir(parents=True)
    shutil.copyfile(raw / "dataset.json", folder / "dataset.json")
    description = json.loads((raw / "dataset.json").read_text())
    values = [value for value in description["labels"].values() if value]
    for image in sorted((raw / "imagesTs").glob("*_0000.nii.gz")):
        scan = sitk.ReadImage(str(image))
        segmentation = sitk.GetImageFromArray(labels(values, scan.GetSize()[::-1]))
        segmentation.CopyInformation(scan)
        sitk.WriteImage(segmentation, str(folder / f"{image.name.removesuffix('_0000.nii.gz')}.nii.gz"))


def task(name: str) -> Callable[[Path], Path]:
    return lambda folder: write_msd(folder / "MSD", name)


@pytest.mark.parametrize(
    ("challenge", "write", "values"),
    [
        ("msd", task("Task01_BrainTumour"), {0, 1, 2, 3}),
        ("msd", task("Task03_Liver"), {0, 1, 2}),
        ("msd", task("Task04_Hippocampus"), {0, 1, 2}),
        ("lits", write_lits, {0, 1, 2}),
        ("brats", write_brats21, {0, 1, 2, 4}),
        ("brats", write_brats23, {0, 1, 2, 3}),
    ],
)
def test_from_the_download_to_a_checked_archive(challenge, write, values, nnunet, genesis, tmp_path):
    source, archive = write(tmp_path), tmp_path / "submission.zip"
    incomplete = challenge == "lits"  # volumes that lost their spacing
    assert genesis("dataset", challenge, source, "-d", 77) == (2 if incomplete else 0)
    (raw,) = (nnunet / "nnUNet_raw").iterdir()
    predictions = tmp_path / "predictions"
    predict(raw, predictions / source.name if challenge == "msd" else predictions)
    images = ("--images", source.parent if challenge == "msd" else source, "--partial")
    assert genesis("submission", challenge, predictions, *images, "-o", archive) == 0
    assert genesis("submission", challenge, *images, "--check", archive) == 0
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            packed = tmp_path / "one" / Path(name).name
            packed.parent.mkdir(exist_ok=True)
            packed.write_bytes(opened.read(name))
            found = sitk.ReadImage(str(packed))
            assert set(np.unique(sitk.GetArrayFromImage(found))) == values
            assert found.GetPixelID() == sitk.sitkUInt8
