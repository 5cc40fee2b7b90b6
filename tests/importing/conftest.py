"""Scans to import, written for one test, and ways to look at what became of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from nnunet_genesis.importing.into_dataset import ImportReport, import_scans
from nnunet_genesis.importing.journal import REPORT
from nnunet_genesis.importing.read import Geometry

REAL_DATA = Path(__file__).parents[3] / "shared" / "data" / "unlabeled"
OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
LEFT_HANDED = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def voxels(seed: int = 0, shape: tuple[int, ...] = (5, 6, 7)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def make(
    path: Path,
    array: np.ndarray | None = None,
    *,
    spacing: tuple[float, ...] = (0.7, 0.8, 2.5),
    origin: tuple[float, ...] = (-12.5, 33.25, 101.0),
    direction: tuple[float, ...] = OBLIQUE,
    compress: bool = True,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels() if array is None else array, isVector=False)
    if image.GetDimension() == 3:
        Geometry(image.GetSize(), spacing, origin, direction).give_to(image)
    sitk.WriteImage(image, str(path), compress)
    return path


def make_series(folder: Path, array: np.ndarray, uid: str, gap: float = 2.0, modality: str = "CT") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, plane in enumerate(array):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{uid.replace('.', '')}_{number}.dcm"
        slice_ = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.Modality = "1.2.3", uid, modality
        slice_.Rows, slice_.Columns, slice_.InstanceNumber = *plane.shape, number + 1
        slice_.PixelSpacing, slice_.SliceThickness = [0.8, 0.7], gap
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        slice_.ImagePositionPatient = [-10, 20, 5 + gap * number]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation, slice_.PixelRepresentation = 1, "MONOCHROME2", 1
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        slice_.PixelData = plane.astype("<i2").tobytes()
        pydicom.dcmwrite(path, slice_, enforce_file_format=True)
        paths.append(path)
    return paths


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "scans").mkdir()
    return tmp_path / "scans"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "raw"


def run(raw: Path, *sources: Path, channels: tuple[str, ...] = ("CT",), **options: object) -> ImportReport:
    return import_scans(sources, raw, 501, "Chest", channels, progress=False, **options)  # type: ignore[arg-type]


def images(raw: Path) -> list[str]:
    return sorted(path.name for path in (raw / "Dataset501_Chest" / "imagesTr").iterdir())


def image_file(raw: Path, case: str, channel: int = 0) -> Path:
    return raw / "Dataset501_Chest" / "imagesTr" / f"{case}_{channel:04d}.nii.gz"


def saved_report(raw: Path) -> dict:
    return json.loads((raw / "Dataset501_Chest" / REPORT).read_text())


def the_reason(report: ImportReport) -> str:
    assert len(report.rejected) == 1, report
    return next(iter(report.rejected.values()))


def cut(path: Path, keep: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def with_value(value: float) -> np.ndarray:
    array = voxels().astype(np.float32)
    array[2, 3, 4] = value
    return array


def snapshot(raw: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in image_file(raw, "x").parent.iterdir()}
