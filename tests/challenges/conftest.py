"""What tests of challenges share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_genesis.challenges.archive import write_archive
from nnunet_genesis.challenges.download import Download
from nnunet_genesis.challenges.raw_dataset import DatasetReport, write_dataset
from tests.challenges.layouts import MSD, labels, write, write_msd


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "nnUNet_raw"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "download"


def make(download: Download, raw: Path, number: int = 3) -> DatasetReport:
    return write_dataset(download, raw, number, progress=False)


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def description(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "dataset.json").read_text())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def predict_msd(folder: Path, task: str = "Task03_Liver") -> Path:
    """What nnUNetv2_predict leaves for a task: all test cases, and files of its own."""
    _, named, _, tests = MSD[task]
    for case in tests:
        write(labels(range(1, len(named) + 1)), folder / task / f"{case}.nii.gz")
    for name in (
        "dataset.json",
        "plans.json",
        "predict_from_raw_data_args.json",
        "liver_132.npz",
        "liver_132.pkl",
        "._x",
    ):
        (folder / task / name).write_text("{}")
    return folder


def attempt(plan, predictions, images, archive, partial=True):
    return write_archive(plan(predictions, images, partial), predictions, archive, progress=False)


@pytest.fixture
def liver(tmp_path):
    """Download, predictions and archive of one task."""
    return write_msd(tmp_path / "MSD"), predict_msd(tmp_path / "predictions"), tmp_path / "submission.zip"
