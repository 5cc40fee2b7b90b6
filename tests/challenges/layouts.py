"""Miniature downloads in the challenges' own layouts: folders, names, channels, labels and known oddities.

Each function writes a few images of 8 voxels along each axis and returns the folder that a user would name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

SHAPE = (8, 8, 8)
SPACING = (0.7, 0.8, 2.5)
ORIGIN = (-12.5, 33.25, 101.0)
DIRECTION = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # no equal of its own transpose

MSD = {
    "Task01_BrainTumour": (("FLAIR", "T1w", "t1gd", "T2w"), ("edema", "non-enhancing tumor", "enhancing tumour"),
                           ("BRATS_001", "BRATS_002"), ("BRATS_485", "BRATS_486")),
    "Task02_Heart": (("MRI",), ("left atrium",), ("la_003", "la_004"), ("la_001", "la_002")),
    "Task03_Liver": (("CT",), ("liver", "cancer"), ("liver_0", "liver_1"), ("liver_132", "liver_141", "liver_200")),
    "Task04_Hippocampus": (("MRI",), ("Anterior", "Posterior"), ("hippocampus_001", "hippocampus_003"),
                           ("hippocampus_002", "hippocampus_005")),
    "Task05_Prostate": (("T2", "ADC"), ("PZ", "TZ"), ("prostate_00", "prostate_01"), ("prostate_03", "prostate_05")),
    "Task06_Lung": (("CT",), ("cancer",), ("lung_001", "lung_003"), ("lung_002", "lung_007")),
    "Task07_Pancreas": (("CT",), ("pancreas", "cancer"), ("pancreas_001", "pancreas_004"),
                        ("pancreas_002", "pancreas_003")),
    "Task08_HepaticVessel": (("CT",), ("Vessel", "Tumour"), ("hepaticvessel_001", "hepaticvessel_002"),
                             ("hepaticvessel_003", "hepaticvessel_247")),
    "Task09_Spleen": (("CT",), ("spleen",), ("spleen_2", "spleen_3"), ("spleen_1", "spleen_7")),
    "Task10_Colon": (("CT",), ("colon cancer primaries",), ("colon_001", "colon_005"), ("colon_002", "colon_003")),
}  # fmt: skip
"""Task → channels, labels besides the background, some training cases, some test cases."""


def voxels(name: str, channels: int = 1, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """Intensities (channels, z, y, x) that differ from case to case."""
    rng = np.random.default_rng(list(name.encode()))
    return (rng.normal(100, 20, (channels, *shape)) + 300.0 * ball(shape)).round().astype(np.int16)


def ball(shape: Sequence[int] = SHAPE) -> np.ndarray:
    """1 inside, 0 outside."""
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return (sum(axis**2 for axis in grid) < 0.6).astype(np.uint8)


def labels(values: Sequence[int], shape: Sequence[int] = SHAPE) -> np.ndarray:
    """A ball that holds all of the values, in layers."""
    layers = np.asarray(values, np.uint8)[np.arange(shape[0]) % len(values)]
    return (ball(shape) * layers[:, None, None]).astype(np.uint8)


def write(array: np.ndarray, path: Path, *, spacing: Sequence[float] = SPACING, origin: Sequence[float] = ORIGIN,
          direction: Sequence[float] = DIRECTION) -> Path:  # fmt: skip
    """Write (z, y, x), or (channel, z, y, x) as a four-dimensional file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=False)
    if array.ndim == 4:
        matrix = np.eye(4)
        matrix[:3, :3] = np.reshape(direction, (3, 3))
        spacing, origin, direction = (*spacing, 1.0), (*origin, 0.0), tuple(matrix.ravel())
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path), useCompression=path.name.endswith(".gz"))
    return path


def write_msd(folder: Path, task: str = "Task03_Liver", shape: Sequence[int] = SHAPE, cases: int = 2) -> Path:
    """A task of the Decathlon below `folder`, with macOS's residue and the misspelt `relase`.

    With more cases than `MSD` names, further ones are numbered from 301.
    """
    channels, names, training, tests = MSD[task]
    training = (*training[:cases], *(f"{training[0].rpartition('_')[0]}_{301 + n}" for n in range(cases - 2)))
    where = folder / task
    for part, listed in (("imagesTr", training), ("imagesTs", tests)):
        for case in listed:
            array = voxels(case, len(channels), shape)
            write(array if len(channels) > 1 else array[0], where / part / f"{case}.nii.gz")
            (where / part / f"._{case}.nii.gz").write_bytes(b"\0\5\26\7 resource fork")
    for case in training:
        write(labels(range(1, len(names) + 1), shape), where / "labelsTr" / f"{case}.nii.gz")
        (where / "labelsTr" / f"._{case}.nii.gz").write_bytes(b"\0\5\26\7 resource fork")
    (where / "imagesTr" / ".DS_Store").write_bytes(b"Bud1")
    description = {
        "name": task.partition("_")[2], "description": "miniature", "reference": "generated",
        "licence": "CC-BY-SA 4.0", "relase": "1.0 04/05/2018", "tensorImageSize": "4D" if len(channels) > 1 else "3D",
        "modality": {str(number): name for number, name in enumerate(channels)},
        "labels": {str(number): name for number, name in enumerate(("background", *names))},
        "numTraining": len(training), "numTest": len(tests),
        "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in training],
        "test": [f"./imagesTs/{case}.nii.gz" for case in tests],
    }  # fmt: skip
    (where / "dataset.json").write_text(json.dumps(description))
    return where


def write_lits(folder: Path, training: Sequence[int] = (0, 1, 28), tests: Sequence[int] = (0, 1),
               shape: Sequence[int] = SHAPE) -> Path:  # fmt: skip
    """LiTS below `folder`, in the folders of its archives; volumes 28 to 47 with an identity affine."""
    where = folder / "LiTS"
    for number in training:
        batch = where / f"Training_Batch{1 if number < 28 else 2}"
        lost = {"spacing": (1.0,) * 3, "origin": (0.0,) * 3, "direction": tuple(np.eye(3).ravel())}
        geometry = lost if 28 <= number <= 47 else {}
        write(voxels(f"volume{number}", shape=shape)[0], batch / f"volume-{number}.nii", **geometry)
        write(labels([1, 2], shape), batch / f"segmentation-{number}.nii", **geometry)
        (batch / f"._volume-{number}.nii").write_bytes(b"\0\5\26\7 resource fork")
    for number in tests:
        write(voxels(f"test{number}", shape=shape)[0], where / "LITS-Challenge-Test-Data" / f"test-volume-{number}.nii")
    return where


def write_brats21(folder: Path, training: Sequence[str] = ("BraTS2021_00000", "BraTS2021_00002"),
                  tests: Sequence[str] = ("BraTS2021_00001", "BraTS2021_00013"), shape: Sequence[int] = SHAPE) -> Path:  # fmt: skip
    """BraTS of 2017 to 2021 below `folder`: labels 1, 2, 4, and underscores in names."""
    parts = ("t1", "t1ce", "t2", "flair")
    return _write_brats(folder / "BraTS2021", "_", parts, (1, 2, 4), training, tests, "BraTS2021_{}_Data", shape)


def write_brats23(folder: Path, training: Sequence[str] = ("BraTS-GLI-00000-000", "BraTS-GLI-00002-000"),
                  tests: Sequence[str] = ("BraTS-GLI-00001-000", "BraTS-GLI-00001-001"),
                  values: Sequence[int] = (1, 2, 3), shape: Sequence[int] = SHAPE) -> Path:  # fmt: skip
    """BraTS from 2023 on below `folder`: consecutive labels (in 2024 up to 4), and hyphens in names."""
    parts = ("t1n", "t1c", "t2w", "t2f")
    name = "ASNR-MICCAI-BraTS2023-GLI-Challenge-{}Data"
    return _write_brats(folder / "BraTS2023", "-", parts, values, training, tests, name, shape)


def _write_brats(where: Path, hyphen: str, parts: Sequence[str], values: Sequence[int], training: Sequence[str],
                 tests: Sequence[str], name: str, shape: Sequence[int]) -> Path:  # fmt: skip
    """Cases in folders of their own; co-registered images in one space, as BraTS publishes them."""
    space = {"spacing": (1.0,) * 3, "origin": (0.0, -239.0, 0.0), "direction": DIRECTION}
    for kind, cases in (("Training", training), ("Validation", tests)):
        for case in cases:
            folder = where / name.format(kind) / case
            for part, array in zip(parts, voxels(case, len(parts), shape), strict=True):
                write(array, folder / f"{case}{hyphen}{part}.nii.gz", **space)
            if kind == "Training":
                write(labels(values, shape), folder / f"{case}{hyphen}seg.nii.gz", **space)
    return where
