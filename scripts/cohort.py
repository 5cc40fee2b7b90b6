"""A small cohort to demonstrate with: many scans without labels, a few labeled ones, and some to test on.

`make_cohort` invents subjects from the MNI152 template that nilearn carries in its package (no download).
`split_decathlon` splits a task folder of the Medical Segmentation Decathlon.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter, map_coordinates, zoom

SHAPE = (40, 48, 40)
"""Voxels of a scan: a brain with some room. The files claim 1 mm, as the tiny plans expect: these heads are small."""

TEMPLATE_MM, VOXEL_MM = 4, 4.5
"""Sampling of the template and, on average, of a subject."""

SHARES = (150, 30, 20)
"""Unlabeled, labeled and test cases taken from a Decathlon task; scaled down where it has fewer."""


@dataclass(frozen=True)
class Cohort:
    """Where the parts of a cohort lie."""

    unlabeled: Path
    """Folder of scans without labels."""
    dataset: Path
    """nnU-Net raw dataset: imagesTr, labelsTr, dataset.json; imagesTs and labelsTs to test on."""
    channel: str
    labels: dict[str, int]
    """Foreground labels."""


def make_cohort(folder: Path, *, unlabeled: int = 60, labeled: int = 8, test: int = 12, seed: int = 0) -> Cohort:
    """Write synthetic T1-like brain scans with labels for grey and white matter.

    Every subject is the template, scaled, turned and smoothly deformed at random; its tissues get new
    intensities, its image a bias field and noise.

    Args:
        folder: Where to write `unlabeled` and `Dataset004_Brain`.
        unlabeled: Number of scans without labels.
        labeled: Number of labeled training cases.
        test: Number of labeled test cases.
        seed: Seed of everything random.
    """
    tissues = _template()
    rng = np.random.default_rng(seed)
    labels = {"grey_matter": 1, "white_matter": 2}
    cohort = Cohort(folder / "unlabeled", folder / "Dataset004_Brain", "T1", labels)
    _make_folders(cohort)
    for number in range(unlabeled):
        image, _ = _subject(tissues, rng)
        _write(image, cohort.unlabeled / f"scan_{number:03d}.nii.gz")
    for number in range(labeled + test):
        image, label = _subject(tissues, rng)
        part, case = ("Tr" if number < labeled else "Ts"), f"brain_{number:03d}"
        _write(image, cohort.dataset / f"images{part}" / f"{case}_0000.nii.gz")
        _write(label, cohort.dataset / f"labels{part}" / f"{case}.nii.gz")
    _describe(cohort, labeled)
    return cohort


def split_decathlon(task: Path, folder: Path, *, shares: Sequence[int] = SHARES, seed: int = 0) -> Cohort:
    """Split the labeled cases of a Decathlon task at random: most lose their labels.

    Args:
        task: Task folder with `dataset.json`, `imagesTr` and `labelsTr`, e.g. Task04_Hippocampus.
        folder: Where to write `unlabeled` and `Dataset004_<name>`.
        shares: Wanted numbers of unlabeled, labeled and test cases.
        seed: Seed of the split.

    Raises:
        ValueError: The folder is no task, has several channels per image or too few cases.
    """
    if not (task / "dataset.json").is_file():
        raise ValueError(f"{task} has no dataset.json: it is not a task folder of the Decathlon.")
    description = json.loads((task / "dataset.json").read_text())
    modality = description["modality"]
    if len(modality) != 1:
        raise ValueError(
            f"{task.name} has {len(modality)} channels ({', '.join(modality.values())}) in 4D images; "
            "this demo takes single-channel tasks such as Task04_Hippocampus."
        )
    # the tiny plans z-score every channel; the name CT alone would ask for nnU-Net's CT normalisation
    channel = next(iter(modality.values()))
    labels = {name: int(value) for value, name in description["labels"].items() if int(value) > 0}
    name = task.name.partition("_")[2] or "Decathlon"
    cohort = Cohort(
        folder / "unlabeled",
        folder / f"Dataset004_{name}",
        "CT_zscored" if channel.casefold() == "ct" else channel,
        labels,
    )
    pairs = [(task / case["image"], task / case["label"]) for case in description["training"]]
    pairs = sorted(pair for pair in pairs if pair[0].is_file() and pair[1].is_file())
    counts = _scaled(shares, len(pairs))
    if min(counts) < 1:
        raise ValueError(f"{task} holds {len(pairs)} labeled cases; the demo needs at least three.")
    order = [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]
    _make_folders(cohort)
    for number, (image, label) in enumerate(order[: sum(counts)]):
        case = image.name.removesuffix(".nii.gz")
        if number < counts[0]:
            shutil.copyfile(image, cohort.unlabeled / image.name)
            continue
        part = "Tr" if number < counts[0] + counts[1] else "Ts"
        shutil.copyfile(image, cohort.dataset / f"images{part}" / f"{case}_0000.nii.gz")
        shutil.copyfile(label, cohort.dataset / f"labels{part}" / f"{case}.nii.gz")
    _describe(cohort, counts[1])
    return cohort


def _scaled(shares: Sequence[int], available: int) -> list[int]:
    """The wanted numbers, or numbers in proportion that use up what is available, each at least one."""
    if available >= sum(shares):
        return list(shares)
    counts = [max(1, available * share // sum(shares)) for share in shares]
    counts[0] += available - sum(counts)
    return counts


def _make_folders(cohort: Cohort) -> None:
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (cohort.dataset / part).mkdir(parents=True)
    cohort.unlabeled.mkdir(parents=True)


def _describe(cohort: Cohort, labeled: int) -> None:
    content: dict[str, Any] = {
        "channel_names": {"0": cohort.channel},
        "labels": {"background": 0} | cohort.labels,
        "numTraining": labeled,
        "file_ending": ".nii.gz",
    }
    (cohort.dataset / "dataset.json").write_text(json.dumps(content, indent=4) + "\n")


def _template() -> np.ndarray:
    """T1 intensity, grey matter and white matter of the MNI152 template, each in [0, 1]: (3, x, y, z)."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    loaders = (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)
    return np.clip([np.asarray(load(resolution=TEMPLATE_MM).dataobj, dtype=np.float32) for load in loaders], 0, 1)


def _subject(tissues: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One subject: image (int16) and label (uint8)."""
    brain = np.argwhere(tissues[1:].max(axis=0) > 0.3)
    where = _deformation((brain.min(axis=0) + brain.max(axis=0)) / 2, rng)
    t1, grey, white = (map_coordinates(tissue, where, order=1) for tissue in tissues)
    label = np.where(white > grey, 2, 1) * (np.maximum(white, grey) > 0.4)
    image = _contrasted(t1, grey, white, rng)
    return image.astype(np.int16), label.astype(np.uint8)


def _deformation(centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sampling positions (3, *SHAPE) in template voxels: a random affine map plus smooth displacements."""
    scale = rng.uniform(0.9, 1.12, 3) * VOXEL_MM / TEMPLATE_MM
    matrix = _rotation(rng.normal(0, np.deg2rad(6), 3)) @ np.diag(scale)
    middle = (np.array(SHAPE) - 1) / 2 + rng.normal(0, 1, 3)
    affine = np.tensordot(matrix, np.indices(SHAPE) - middle.reshape(3, 1, 1, 1), axes=1)
    smooth = [_enlarged(coarse, SHAPE) for coarse in rng.normal(0, 1.6, (3, 7, 8, 7))]
    return affine + centre.reshape(3, 1, 1, 1) + np.stack(smooth)


def _rotation(angles: np.ndarray) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (i for i in range(3) if i != axis)
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def _contrasted(t1: np.ndarray, grey: np.ndarray, white: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """New intensities: a smoothly varying level for each tissue, then bias field and noise."""
    head = np.clip(t1 / 0.25, 0, 1)
    other = np.clip(1 - grey - white, 0, 1) * head
    level = np.cumsum([rng.uniform(0.1, 0.3), rng.uniform(0.12, 0.3), rng.uniform(0.08, 0.3)])
    detail = t1 - gaussian_filter(t1, 2)
    image = np.zeros_like(t1)
    for share, mean in zip((other, grey, white), level, strict=True):
        image += share * (mean + 0.06 * _smooth(t1.shape, rng) + rng.uniform(0.3, 0.9) * detail)
    image *= np.exp(0.2 * _smooth(t1.shape, rng))
    noise = rng.uniform(0.015, 0.05)
    real, imaginary = rng.normal(0, noise, (2, *t1.shape))
    return np.hypot(image + real, imaginary) * rng.uniform(500, 1500)


def _smooth(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A random field that varies over about a third of the image; unit variance on its coarse grid."""
    return _enlarged(rng.normal(size=(4, 4, 4)), shape)


def _enlarged(coarse: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Cubic interpolation to a finer grid, one axis after the other."""
    along = [
        zoom(np.eye(few), (1, many / few), order=3, mode="nearest")
        for few, many in zip(coarse.shape, shape, strict=True)
    ]
    return np.einsum("abc,ai,bj,ck->ijk", coarse, *along, optimize=True)


def _write(array: np.ndarray, path: Path) -> None:
    """Write an (x, y, z) array in RAS order as NIfTI with 1 mm voxels."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(path), useCompression=True)
