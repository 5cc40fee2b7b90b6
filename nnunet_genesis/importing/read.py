"""An image file or DICOM series → a checked 3D image, or one line that says why it cannot be used."""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_genesis.errors import DatasetError, printable

TOLERANCE = 1e-3
"""Largest difference of size, spacing (relative), origin (mm) and direction that counts as equal."""
UNEVEN = 0.1
"""Largest deviation of a distance between DICOM slices from their median distance, as a part of it."""
NOT_SCANS = ("SEG", "RTDOSE", "RTSTRUCT", "SR", "PR", "KO")
"""DICOM modalities that hold no scan."""
RADIOGRAPHS = ("CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA")
"""DICOM modalities of X-ray images that are no stacks of slices."""
NOT_FINITE = "holds voxels that are NaN or infinite"
META_HEADER = 1 << 16
"""Bytes in which the header of a MetaImage ends; those of LUNA16 have some hundreds."""
NIFTI_HEADER = 348
"""Bytes of a NIfTI-1 header."""
NIFTI_FLOATS = {16: "f4", 64: "f8"}
"""NIfTI's number of a floating-point type → numpy's name."""
REASONS = {
    "Unable to determine ImageIO": "is damaged, or another kind of file than its name says",
    "No orthonormal definition": "its axes are not perpendicular (sheared orientation matrix)",
    "spacing is not supported": "its voxel spacing is not positive",
    "unsupported image dimension": "has more than three dimensions",
    "trouble reading": "is damaged or incomplete",
    "File cannot be read": "is damaged or incomplete, or its data file is cut short",
}
"""Part of SimpleITK's message → what it means."""


class UnusableScanError(DatasetError):
    """A scan cannot be imported; the text is the reason in one short line."""


@dataclass(frozen=True)
class Geometry:
    """Where voxels lie: size in voxels, spacing and origin in mm, direction cosines; order x, y, z."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> Geometry:
        """Geometry of a SimpleITK image, or of a reader that has read the image information."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    def give_to(self, image: sitk.Image) -> None:
        """Set spacing, origin and direction of `image`."""
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)

    def difference(self, other: Geometry) -> str:
        """Name of the first property that differs by more than the tolerance; empty if none does."""
        if self.size != other.size:
            return "size"
        if not np.allclose(self.spacing, other.spacing, rtol=TOLERANCE, atol=0):
            return "spacing"
        if not np.allclose(self.origin, other.origin, rtol=1e-6, atol=TOLERANCE):
            return "origin"
        return "" if np.allclose(self.direction, other.direction, rtol=0, atol=TOLERANCE) else "direction"


def read_image(files: Sequence[Path]) -> sitk.Image:
    """Read one image file or the ordered slices of a DICOM series; check geometry, not voxel values.

    Raises:
        UnusableScanError: Damaged, not three-dimensional, more than one value per voxel, NaN or infinite values in
            NIfTI, spacing not positive, DICOM slices not evenly spaced.
    """
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        if not all(file.stat().st_size for file in files):
            raise UnusableScanError("is empty (0 bytes)")
        return _read_slices(files) if len(files) > 1 else _read_file(files[0])
    except OSError as error:
        raise UnusableScanError(f"cannot be opened ({error.strerror or error})") from None
    except RuntimeError as error:
        raise UnusableScanError(in_words(str(error))) from None


def read_scan(files: Sequence[Path]) -> sitk.Image:
    """Read one image file or the ordered slices of a DICOM series; check geometry and voxel values.

    Raises:
        UnusableScanError: What `read_image` refuses; NaN, infinite or constant values.
    """
    image = read_image(files)
    values = sitk.GetArrayViewFromImage(image)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UnusableScanError(NOT_FINITE)
    if low == high:
        raise UnusableScanError(f"all voxels have the same value ({low:g})")
    return image


def read_channels(channels: Sequence[Sequence[Path]]) -> Iterator[sitk.Image]:
    """Read the files of each channel of a case, one after another.

    Raises:
        UnusableScanError: One cannot be used, or lies elsewhere than the first; says which, if there are several.
    """
    first: Geometry | None = None
    for number, files in enumerate(channels):
        try:
            image = read_scan(files)
            first = first or Geometry.of(image)
            if difference := first.difference(Geometry.of(image)):
                raise UnusableScanError(f"differs in {difference} from channel 0000")
        except UnusableScanError as error:
            where = f"channel {number:04d}: " if len(channels) > 1 else ""
            raise UnusableScanError(f"{where}{error}") from None
        yield image


def check_nifti(path: Path) -> None:
    """Check header, length, checksum and numbers of a NIfTI file.

    SimpleITK does not: it reads files cut short without complaint and replaces NaN and infinite values by 0.

    Raises:
        UnusableScanError: It is no NIfTI file, is cut short or damaged, holds NaN or infinite values, or its
            spacing is not positive.
        OSError: It cannot be opened.
    """
    finite = True
    try:
        with gzip.open(path) if is_gzip(path) else path.open("rb") as stream:
            header = stream.read(NIFTI_HEADER)
            start, needed, number = _nifti_data(header)
            length = len(header) + len(stream.read(start - len(header)))
            while block := stream.read(1 << 20):
                if number is not None and length < needed:
                    values = np.frombuffer(block, number, min(len(block), needed - length) // number.itemsize)
                    finite = finite and bool(np.isfinite(values).all())
                length += len(block)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UnusableScanError("is damaged or incomplete (compressed data end early or fail the check)") from None
    if length < needed:
        raise UnusableScanError(f"is incomplete: {length} bytes of image data instead of {needed}")
    if not finite:
        raise UnusableScanError(NOT_FINITE)


def is_gzip(path: Path) -> bool:
    """Whether the file starts like a gzip file."""
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _nifti_data(header: bytes) -> tuple[int, int, np.dtype[Any] | None]:
    """Where the voxels of a NIfTI-1 file start and end, in bytes, and their type if they are floating point."""
    if header[:4] in (struct.pack("<i", 540), struct.pack(">i", 540)):
        raise UnusableScanError("is a NIfTI-2 file, which SimpleITK cannot read: convert it to NIfTI-1")
    order = next((order for order in "<>" if header[:4] == struct.pack(f"{order}i", 348)), "")
    if not order or len(header) < NIFTI_HEADER:
        raise UnusableScanError("is no NIfTI file, although its name says so")
    axes, *sizes = struct.unpack_from(f"{order}8h", header, 40)
    kind, bits = struct.unpack_from(f"{order}2h", header, 70)
    spacing = struct.unpack_from(f"{order}3f", header, 80)
    (start,) = struct.unpack_from(f"{order}f", header, 108)
    if not 1 <= axes <= 7 or min(sizes[:axes]) < 1 or not 0 <= start < 2**31:
        raise UnusableScanError("its NIfTI header is damaged")
    if axes > 2 and not all(0 < step < math.inf for step in spacing):
        raise UnusableScanError(f"its voxel spacing is not positive: {_numbers(spacing)}")
    number = np.dtype(f"{order}{NIFTI_FLOATS[kind]}") if kind in NIFTI_FLOATS else None
    voxels: int = math.prod(sizes[:axes])
    begin = max(int(start), NIFTI_HEADER)
    return begin, begin + voxels * int(bits) // 8, number


def _read_file(file: Path) -> sitk.Image:
    if file.name.lower().endswith((".nii", ".nii.gz")):
        check_nifti(file)
    elif file.name.lower().endswith((".mha", ".mhd")):
        _check_meta_header(file)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    _check_modality(reader)
    _check_shape(reader)
    return reader.Execute()


def _read_slices(files: Sequence[Path]) -> sitk.Image:
    """Read a DICOM series; refuse uneven slices, for which SimpleITK would make up an even spacing."""
    positions = []
    for file in files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        reader.ReadImageInformation()
        if file == files[0]:
            _check_modality(reader)
            first = Geometry.of(reader)
            normal = np.reshape(first.direction, (3, 3))[:, 2] if len(first.direction) == 9 else None
        if reader.GetSize() != (*first.size[:2], 1) or normal is None:
            raise UnusableScanError("its slices differ in size, or several have many frames")
        positions.append(float(np.dot(normal, reader.GetOrigin())))
    gaps = np.abs(np.diff(positions))
    typical = float(np.median(gaps))
    if not typical or np.max(np.abs(gaps - typical)) > UNEVEN * typical:
        raise UnusableScanError(
            f"its slices are not evenly spaced ({_numbers([gaps.min(), gaps.max()])} mm apart): "
            "slices are missing or damaged, or the series holds several stacks"
        )
    series = sitk.ImageSeriesReader()
    series.SetFileNames([str(file) for file in files])
    image = series.Execute()
    _check_shape(image)
    return image


def modality_of(reader: sitk.ImageFileReader) -> str:
    """The DICOM modality that a reader with image information tells, or nothing."""
    return printable(reader.GetMetaData("0008|0060"), 16) if reader.HasMetaDataKey("0008|0060") else ""


def _check_modality(reader: sitk.ImageFileReader) -> None:
    modality = modality_of(reader)
    if modality in NOT_SCANS:
        raise UnusableScanError(f"is no scan (DICOM modality {modality})")
    if modality in RADIOGRAPHS:
        raise UnusableScanError(f"is a radiograph, not a volume (DICOM modality {modality}): import X-rays with --2d")


def _check_shape(image: sitk.Image) -> None:
    """Refuse all but one number per voxel of a 3D grid; takes an image or a reader with image information."""
    geometry, pixel = Geometry.of(image), sitk.GetPixelIDValueAsString(image.GetPixelID())
    axes = len(geometry.size)
    shown = " x ".join(map(str, geometry.size))
    if axes > 3:
        raise UnusableScanError(f"has {axes} dimensions ({shown}): split it into three-dimensional scans")
    if axes < 3 or min(geometry.size) == 1:
        raise UnusableScanError(f"is a single slice ({shown}), not a volume")
    if pixel.startswith(("vector", "complex")):
        raise UnusableScanError(f"has more than one value per voxel, such as colours ({pixel})")
    if not all(0 < step < math.inf for step in geometry.spacing):
        raise UnusableScanError(f"its voxel spacing is not positive: {_numbers(geometry.spacing)}")


def _check_meta_header(file: Path) -> None:
    """Refuse spacings that SimpleITK would silently make positive, and data files that are missing or lie elsewhere."""
    with file.open("rb") as stream:
        header = stream.read(META_HEADER)
    spacing, data = (re.search(rb"^[ \t]*%b[ \t]*[=:][ \t]*(\S.*?)[ \t]*\r?$" % key, header, flags=re.MULTILINE)
                     for key in (b"ElementSpacing", b"ElementDataFile"))  # fmt: skip
    if spacing and any(step.startswith(b"-") for step in spacing[1].split()):
        raise UnusableScanError(f"its voxel spacing is not positive: {printable(spacing[1].decode(errors='replace'))}")
    if not data:
        raise UnusableScanError("its header names no data file (ElementDataFile)")
    name = os.fsdecode(data[1])
    if name.upper() == "LOCAL":  # in the same file
        return
    if Path(name).name != name or "\\" in name or "\0" in name:
        raise UnusableScanError(
            f"its data file {printable(name, 60)} lies outside its folder: move it beside the header"
        )
    if not (file.parent / name).is_file():
        raise UnusableScanError(f"its data file {printable(name, 60)} is missing")


def in_words(message: str) -> str:
    """SimpleITK's exception of many lines → one short line without paths and addresses."""
    for part, reason in REASONS.items():
        if part in message:
            return reason
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["unknown reason"]
    kept = next((line for line in lines if "ERROR" in line), lines[-1])
    kept = re.sub(r"^.*?ERROR:\s*(\w+\(0x[0-9a-f]+\):\s*)?", "", kept)
    return "cannot be read: " + re.sub(r"\S*/(\S+)", r"\1", kept)[:150]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
