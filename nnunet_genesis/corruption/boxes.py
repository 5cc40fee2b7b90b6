"""Boxes that fit any patch: sampling, growing and shrinking them, their union and its share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Box = tuple[tuple[int, int], ...]
"""First voxel and voxel after the last one, for each spatial axis."""


class Region(NamedTuple):
    """Part of a patch: some of the cells that a coarse grid cuts it into, few however many voxels there are.

    Attributes:
        cells: Whether each cell belongs to it, bool (cells along each spatial axis).
        cuts: For each spatial axis the first voxel of each cell, and the voxel after the last one, int64 (cells + 1).
    """

    cells: npt.NDArray[np.bool_]
    cuts: tuple[npt.NDArray[np.int64], ...]


def voxels_of(share: float, edge: int, up: bool = False) -> int:
    """A share of a patch edge in whole voxels, rounded down (or up), at least 1."""
    return max(1, math.ceil(share * edge - 1e-9) if up else math.floor(share * edge + 1e-9))


def random_box(shape: Sequence[int], size: tuple[float, float], margin: int, up: bool, rng: np.random.Generator) -> Box:
    """Sample one box with independent, uniform edges and a uniform position.

    Args:
        shape: Spatial shape of the patch, any axis at least 1 voxel.
        size: Shortest and longest edge as shares of the patch edge.
        margin: Voxels kept free at the patch border; where the box is too long for it, as many as fit.
        up: Whether edges are rounded up to whole voxels, not down.
        rng: Source of randomness.
    """
    box = []
    for edge in shape:
        shortest, longest = (voxels_of(share, edge, up) for share in size)
        length = int(rng.integers(shortest, longest, endpoint=True))
        free = min(margin, (edge - length) // 2)
        start = int(rng.integers(free, edge - length - free, endpoint=True))
        box.append((start, start + length))
    return tuple(box)


def grown(box: Box, shape: Sequence[int]) -> Box:
    """The box with one voxel more on every side, clipped at the patch."""
    return tuple((max(0, low - 1), min(edge, high + 1)) for (low, high), edge in zip(box, shape, strict=True))


def shrunk(box: Box) -> Box:
    """The box with one voxel less on both sides of each axis that is longer than 2 voxels."""
    return tuple((low + 1, high - 1) if high - low > 2 else (low, high) for low, high in box)


def union(boxes: Sequence[Box], shape: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Boolean mask of spatial shape: True inside any box."""
    mask = np.zeros(tuple(shape), dtype=bool)
    for box in boxes:
        mask[tuple(slice(low, high) for low, high in box)] = True
    return mask


def whole(shape: Sequence[int]) -> Region:
    """All of a patch, as one cell."""
    return region([tuple((0, edge) for edge in shape)], shape)


def region(boxes: Sequence[Box], shape: Sequence[int]) -> Region:
    """The inside of any box, on the grid that the faces of the boxes cut a patch into."""
    cuts = [sorted({0, edge} | {face for box in boxes for face in box[axis]}) for axis, edge in enumerate(shape)]
    cells = [
        tuple((cut.index(low), cut.index(high)) for cut, (low, high) in zip(cuts, box, strict=True)) for box in boxes
    ]
    return Region(union(cells, [len(cut) - 1 for cut in cuts]), tuple(np.array(cut, np.int64) for cut in cuts))


def union_share(boxes: Sequence[Box], shape: Sequence[int]) -> float:
    """Share of the patch inside any box, 0..1."""
    cells, cuts = region(boxes, shape)
    covered = cells.astype(np.int64)
    for cut in reversed(cuts):
        covered = covered @ np.diff(cut)
    return int(covered) / math.prod(shape)
