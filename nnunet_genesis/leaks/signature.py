"""A volume → a digest of its voxels, and a signature that survives other spacings, formats, types and orientations."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

Array = np.ndarray[Any, Any]

GRID = 16
"""Cells of a signature along each axis of the volume."""
LENGTH = GRID**3
"""Bytes of a signature."""
DIGEST = 16
"""Bytes of a digest."""
BLUR = 0.5
"""Standard deviation of the window that a cell averages over, in cells."""
SURROUNDING = 1.0
"""Standard deviation of the neighbourhood that a cell is compared with, in cells: anatomy that all cases share varies
slowly, and is left out."""
SHIFTS = 5
"""Shifts along each axis, from minus to plus half a cell: resampling moves the borders of a volume a little."""
STEP = 31
"""Quantisation steps in one standard deviation; values beyond four of them are cut off."""

ORIENTATIONS = tuple(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
"""Orders of the axes, and directions along each: formats and converters store the same scan in any of them."""


def digest(channel: Array) -> bytes:
    """16 bytes that are equal if and only if shape and voxels, as float32, are; 0 and -0 are equal."""
    voxels = np.ascontiguousarray(channel, dtype=np.float32) + np.float32(0)
    return hashlib.blake2b(repr(voxels.shape).encode() + voxels.tobytes(), digest_size=DIGEST).digest()


def pooled(channel: Array) -> Array:
    """Weighted means of a volume of any size around 80 points along each axis, (80, 80, 80) float32.

    `GRID` cells with `SHIFTS` points in each; a point at the centre of a cell averages as the cell does. The grid spans
    the volume, whatever its spacing.

    Args:
        channel: (z, y, x); values that are not finite count as 0.
    """
    volume: Array = np.nan_to_num(np.asarray(channel, dtype=np.float32), posinf=0.0, neginf=0.0)
    inside = np.linspace(-0.5, 0.5, SHIFTS)
    points = ((np.arange(GRID) + 0.5)[:, None] + inside).ravel() / GRID
    for axis, length in enumerate(volume.shape):
        width = max(BLUR * length / GRID, 0.5)
        weights = np.exp(-0.5 * ((np.arange(length) + 0.5 - points[:, None] * length) / width) ** 2)
        weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
        volume = np.moveaxis(np.tensordot(weights, volume, (1, axis)), 0, axis)  # axis by axis: the window is separable
    return volume


def signature(points: Array) -> Array:
    """The signature of a volume: (4096,) int8.

    Each cell minus its surroundings, over their variation, so that neither intensity units nor slow changes matter;
    standardised, in steps of 1/31 standard deviation. A volume without any variation has zeros.

    Args:
        points: From `pooled`.
    """
    centres = points[(slice(SHIFTS // 2, None, SHIFTS),) * 3]
    (vector,) = _unit_vectors(centres[None])
    return np.asarray(np.clip(np.round(vector * (STEP * LENGTH**0.5)), -127, 127), dtype=np.int8)


def shifted(points: Array) -> Array:
    """Unit vectors of the volume's signatures after each of 125 shifts, (125, 4096) float32."""
    cells = points.reshape((GRID, SHIFTS) * 3).transpose(1, 3, 5, 0, 2, 4)
    return _unit_vectors(cells.reshape(-1, GRID, GRID, GRID))


def unit(signatures: Array) -> Array:
    """Signatures (n, 4096) as unit vectors, float32: their products are correlations. Zeros stay zeros."""
    vectors = signatures.astype(np.float32)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9))


def oriented(vectors: Array, number: int) -> Array:
    """Vectors (n, 4096) as those of the volumes in another orientation, one of 48; number 0 is their own."""
    order, directions = ORIENTATIONS[number]
    cells = vectors.reshape(-1, GRID, GRID, GRID).transpose(0, *(axis + 1 for axis in order))
    turned = (slice(None), *(slice(None, None, step) for step in directions))
    return np.asarray(cells[turned].reshape(-1, LENGTH))


def _unit_vectors(cells: Array) -> Array:
    """Grids (n, 16, 16, 16) → unit vectors of their local contrast, mean 0."""
    surrounding = (0.0, *(SURROUNDING,) * 3)
    detail = cells - gaussian_filter(cells, surrounding, mode="nearest")
    variation = np.sqrt(gaussian_filter(detail * detail, surrounding, mode="nearest"))
    scale = detail.std(axis=(1, 2, 3), keepdims=True)
    floor = 0.1 * scale  # where nothing is but air, noise must not count as much as anatomy
    flat = scale < 1e-6 * np.abs(cells).max(axis=(1, 2, 3), keepdims=True)  # rounding, not an image
    contrast = np.where(flat, 0.0, detail / (variation + floor + 1e-30)).reshape(len(cells), -1)
    centred = contrast - contrast.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9), dtype=np.float32)
