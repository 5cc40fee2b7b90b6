"""The cells of a patch that a transformer makes tokens of: voxels in and out, hidden ones, statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

VARIANCE_EPS = 1e-6
"""Added to the variance of a cell, in squared units of the normalised intensities, as in SelfMedMAE's LayerNorm."""

_CELLS = "b c (x i) (y j) (z k) -> b (x y z) (c i j k)"


def into_cells(patches: Tensor, cell: Sequence[int]) -> Tensor:
    """Patches (B, C, *patch), each edge a multiple of the cell's → (B, cells, C · voxels of a cell), row-major."""
    i, j, k = cell
    return rearrange(patches, _CELLS, i=i, j=j, k=k)


def from_cells(cells: Tensor, cell: Sequence[int], patch: Sequence[int]) -> Tensor:
    """What `into_cells` undoes: (B, cells, C · voxels of a cell) → (B, C, *patch)."""
    (i, j, k), (x, y, z) = cell, grid_of(patch, cell)
    back = " -> ".join(reversed(_CELLS.split(" -> ")))
    return rearrange(cells, back, i=i, j=j, k=k, x=x, y=y, z=z)


def grid_of(patch: Sequence[int], cell: Sequence[int]) -> tuple[int, ...]:
    """Number of cells along each axis."""
    return tuple(voxels // edge for voxels, edge in zip(patch, cell, strict=True))


def visible_cells(patches: Tensor, cell: Sequence[int]) -> Tensor:
    """Which cells of patches (B, C, *patch) hold no NaN in any channel; bool (B, cells)."""
    return ~into_cells(patches, cell).isnan().any(2)


def voxels_of(cells: Tensor, cell: Sequence[int], patch: Sequence[int]) -> Tensor:
    """A value for each cell (B, cells) → the same for each of its voxels, (B, 1, *patch)."""
    voxels = cells.view(len(cells), 1, *grid_of(patch, cell))
    for axis, edge in enumerate(cell, start=2):
        voxels = voxels.repeat_interleave(edge, axis)
    return voxels


def normalised(values: Tensor, target: Tensor, cell: Sequence[int]) -> Tensor:
    """Values of each cell less their mean, in units of the target's standard deviation in that cell.

    With the target itself as values: the targets of SelfMedMAE (Zhou et al., ISBI 2023) and He et al. (CVPR 2022),
    a LayerNorm without weights over all voxels and channels of a cell. Other values are brought into the same
    unit by it, with the cell's mean given to them as it is given to a network that is trained on such targets.

    Args:
        values: (B, C, *patch).
        target: Alike. Voxels that are not finite are left out of the statistics of both, and are NaN afterwards.
        cell: Edges of a cell in voxels.
    """
    original = into_cells(target.float(), cell)
    known = original.isfinite()
    _, spread = _statistics(original, known)
    voxels = into_cells(values.float(), cell)
    mean, _ = _statistics(voxels, known)
    return from_cells(((voxels - mean) / spread).masked_fill(~known, torch.nan), cell, target.shape[2:])


def in_intensities(restored: Tensor, target: Tensor, cell: Sequence[int]) -> Tensor:
    """What a network restored in the unit of `normalised`, with each cell's true mean and spread put in, to look at."""
    original = into_cells(target.float(), cell)
    mean, spread = _statistics(original, original.isfinite())
    return from_cells(into_cells(restored.float(), cell) * spread + mean, cell, target.shape[2:])


def _statistics(cells: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the known voxels of each cell, (B, cells, 1) each."""
    count = known.sum(2, keepdim=True).clamp(min=1)
    mean = cells.where(known, 0.0).sum(2, keepdim=True) / count
    variance = (cells - mean).where(known, 0.0).square().sum(2, keepdim=True) / count
    return mean, (variance + VARIANCE_EPS).sqrt()
