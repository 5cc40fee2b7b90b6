"""Weights that make tokens of an image, and their learned positions → those of other cells and other grids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate


def resize_cells(weight: torch.Tensor, cell: Sequence[int]) -> torch.Tensor:
    """The projection of cells of other edges: that of the checkpoint, read from each cell after resampling it.

    A cell is resampled linearly along each axis, over all voxels that one of the checkpoint's stands for. The
    projection of a resampled image is a projection of the image: the transposed resampling of its weights (as in
    FlexiViT, Beyer et al., CVPR 2023). An image that is constant in a cell keeps its token.

    Args:
        weight: (width, channels, z, y, x), cells of the checkpoint.
        cell: Edges of the new cells, in voxels.

    Returns:
        (width, channels, *cell), float32 or double.
    """
    resampled = weight.double()
    for axis, edge in enumerate(cell, start=2):
        if weight.shape[axis] != edge:
            matrix = _resampling(edge, weight.shape[axis])
            resampled = torch.tensordot(resampled, matrix, ([axis], [0])).movedim(-1, axis)
    return resampled.to(torch.promote_types(weight.dtype, torch.float32))


def _resampling(before: int, after: int) -> torch.Tensor:
    """A line of voxels → a line of others, as a matrix (after, before) whose rows add up to 1."""
    ones = torch.eye(before, dtype=torch.double)[None, None]
    matrix = interpolate(ones, (after, before), mode="bilinear", antialias=True)[0, 0]
    return matrix / matrix.sum(1, keepdim=True)


def resize_positions(
    positions: torch.Tensor, registers: int, source: Sequence[int], target: Sequence[int]
) -> torch.Tensor:
    """Learned positions of another grid of tokens: trilinear, corners aligned by the outer faces of the patch.

    Args:
        positions: (1, registers + tokens, width); those of registers come first and stay.
        registers: Number of tokens that stand for no place.
        source: Tokens along each axis.
        target: The same of the target.

    Returns:
        (1, registers + tokens of the target, width).
    """
    aside, placed = positions[:, :registers], positions[:, registers:]
    grid = placed.transpose(1, 2).unflatten(2, tuple(source))
    resized = interpolate(grid, tuple(target), mode="trilinear", align_corners=False)
    return torch.cat([aside, resized.flatten(2).transpose(1, 2)], 1)
