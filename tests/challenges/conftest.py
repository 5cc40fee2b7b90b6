"""What tests of challenges share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_genesis.challenges.download import Download
from nnunet_genesis.challenges.raw_dataset import DatasetReport, write_dataset


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
