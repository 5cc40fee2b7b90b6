"""A segmentation and its test image → what is wrong with it, or the file that a challenge takes."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_genesis.errors import printable
from nnunet_genesis.importing.read import Geometry, UnusableScanError, check_nifti, is_gzip

BESIDES = 1 << 20
"""Bytes that a file may have besides its voxels."""
WIDEST = 8
"""Bytes of a voxel, at most."""


def values_in(labels: np.ndarray[Any, Any]) -> set[float]:
    """All values of a segmentation (z, y, x), looked for plane by plane to spare memory."""
    return set().union(*(np.unique(plane).tolist() for plane in labels))


def grid_of(file: Path) -> Geometry:
    """Where the voxels of a test image lie: the first three dimensions, also of a file with several channels.

    Raises:
        UnusableScanError: It is no image of three or four dimensions.
    """
    reader = information(file)
    axes = reader.GetDimension()
    if axes not in (3, 4):
        raise UnusableScanError(f"has {axes} dimensions")
    direction = np.reshape(reader.GetDirection(), (axes, axes))[:3, :3]
    first = (reader.GetSize()[:3], reader.GetSpacing()[:3], reader.GetOrigin()[:3])
    return Geometry(*first, tuple(direction.ravel().tolist()))


def information(file: Path) -> sitk.ImageFileReader:
    """A reader that has read the header.

    Raises:
        UnusableScanError: It could not.
    """
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise UnusableScanError("cannot be read") from None
    return reader


def faults(file: Path, image: Path, values: Collection[int], final: bool) -> list[str]:
    """What is wrong with a segmentation, all of it.

    Args:
        file: The segmentation.
        image: Its test image.
        values: Labels that may occur.
        final: Whether it is a file of an archive, which must be 8 bits wide.
    """
    try:
        expected = grid_of(image)
    except UnusableScanError as error:
        return [f"its test image {image.name} {error}"]
    try:
        _bounded(file, math.prod(expected.size) * (1 if final else WIDEST) + BESIDES)
        check_nifti(file)
        reader = information(file)
        if reader.GetDimension() != 3 or reader.GetSize() != expected.size:
            shown = " x ".join(map(str, reader.GetSize()))
            return [f"its size is {shown}, that of the test image {' x '.join(map(str, expected.size))}"]
        labels = reader.Execute()
    except UnusableScanError as error:
        return [str(error)]
    except (OSError, RuntimeError) as error:
        return [printable(f"cannot be read ({error})", 200)]
    return _geometry_faults(Geometry.of(labels), expected) + _voxel_faults(labels, values, final)


def _geometry_faults(found: Geometry, expected: Geometry) -> list[str]:
    lines = []
    for name in ("spacing", "origin", "direction"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        if expected.difference(replace(expected, **{name: ours})):
            lines.append(f"its {name} is {_shown(ours)}, that of the test image {_shown(theirs)}")
    return lines


def _voxel_faults(labels: sitk.Image, values: Collection[int], final: bool) -> list[str]:
    wrong = []
    if final and labels.GetPixelID() != sitk.sitkUInt8:
        wrong.append(f"its voxels are {labels.GetPixelIDTypeAsString()}, not 8-bit unsigned integers")
    if strangers := sorted(values_in(sitk.GetArrayViewFromImage(labels)) - set(values)):
        shown = ", ".join(f"{value:g}" for value in strangers[:5]) + (", …" if len(strangers) > 5 else "")
        wrong.append(f"it holds the label {shown}; there are {', '.join(map(str, sorted(values)))}")
    return wrong


def _shown(numbers: Collection[float]) -> str:
    return ", ".join(f"{number:.6g}" for number in numbers)


def _bounded(file: Path, most: int) -> None:
    """Refuse a file that unpacks to more than its voxels take, before anything reads all of it."""
    length = 0
    try:
        with gzip.open(file) if is_gzip(file) else file.open("rb") as stream:
            while block := stream.read(1 << 20):
                length += len(block)
                if length > most:
                    raise UnusableScanError("holds more data than an image of this size has")
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UnusableScanError("is damaged or incomplete (compressed data end early or fail the check)") from None


def write_final(file: Path, image: Path, values: Mapping[int, int], target: Path) -> None:
    """Write a segmentation without faults as the challenge takes it: its labels, 8 bits, the test image's geometry.

    Args:
        file: The segmentation.
        image: Its test image.
        values: Label in the segmentation → label of the challenge.
        target: The file to write; its name tells whether it is compressed.
    """
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).astype(np.uint8)
    table = np.zeros(256, np.uint8)
    table[list(values)] = list(values.values())
    final = sitk.GetImageFromArray(table[labels])
    grid_of(image).give_to(final)
    sitk.WriteImage(final, str(target), useCompression=target.name.endswith(".gz"))
