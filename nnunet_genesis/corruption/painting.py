"""Cutouts: a channel goes in, the channel with noise in part of it comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nnunet_genesis.corruption.boxes import Box, draw_box, grown, shrunk, union, union_share

_SEEDS = 2**63


@dataclass(frozen=True)
class Painting:
    """What was drawn: windows, on which side of them noise is painted, and the seed of the noise.

    Attributes:
        outer: Whether the outside of the windows is replaced (outer cutout) or the inside (inner cutout).
        boxes: The windows, in voxels.
        seed: Seed of the noise.
    """

    outer: bool
    boxes: tuple[Box, ...]
    seed: int


def draw_painting(
    shape: Sequence[int],
    outer: bool,
    extent: tuple[float, float],
    windows: int,
    further: float,
    margin: int,
    limit: float,
    rng: np.random.Generator,
) -> Painting:
    """Draw a cutout that replaces at most `limit` of the patch.

    Windows of different sizes are superimposed into one shape. If it would replace too much, the windows of
    an outer cutout grow voxel by voxel on all sides (beyond the margin if need be), and those of an inner
    cutout shrink; windows that can shrink no more vanish one by one. On tiny patches nothing may be left.

    Args:
        shape: Spatial shape of the patch, any axis at least 1 voxel.
        outer: Whether to replace the outside or the inside of the windows.
        extent: Shortest and longest window edge as shares of the patch edge.
        windows: Most windows.
        further: Probability, 0..1, of each window after the first.
        margin: Voxels between the windows and the patch border; fewer on thin patches.
        limit: Largest share of the patch to replace, 0..1.
        rng: Source of randomness.
    """
    boxes = [draw_box(shape, extent, margin, outer, rng)]
    while len(boxes) < windows and rng.random() < further:
        boxes.append(draw_box(shape, extent, margin, outer, rng))
    limited = _grown_until(boxes, shape, limit) if outer else _shrunk_until(boxes, shape, limit)
    return Painting(outer, tuple(limited), int(rng.integers(_SEEDS)))


def replaced(shape: Sequence[int], drawn: Painting) -> npt.NDArray[np.bool_]:
    """Boolean mask of spatial shape: True where the painting replaces voxels."""
    inside = union(drawn.boxes, shape)
    return ~inside if drawn.outer else inside


def paint(channel: Tensor, drawn: Painting, low: float, high: float) -> Tensor:
    """Replace voxels with noise that is uniform over the channel's value range.

    Args:
        channel: Tensor (*spatial), floating, any intensity unit; not touched.
        drawn: What `draw_painting` gave for this spatial shape.
        low: Lower end of the value range.
        high: Upper end of the value range.

    Returns:
        New tensor of the same shape and type; voxels that are not replaced keep their bits.

    From Models Genesis (Zhou et al., MICCAI 2019 and MedIA 2021, on out-painting and in-painting; renamed
    outer and inner cutout). How ours differs: noise spans the patch's own intensities, not [0, 1]; it is used
    for both cutouts (MICCAI 2019 has a constant inside); the limit on the replaced share always holds.
    """
    mask = replaced(channel.shape, drawn)
    share = np.random.default_rng(drawn.seed).random(int(mask.sum()), dtype=np.float32)
    noise = torch.from_numpy(low * (1 - share) + high * share).clamp_(low, high)
    painted = channel.clone(memory_format=torch.contiguous_format)
    painted[torch.from_numpy(mask).to(channel.device)] = noise.to(channel)
    return painted


def _grown_until(boxes: list[Box], shape: Sequence[int], limit: float) -> list[Box]:
    while 1 - union_share(boxes, shape) > limit:
        boxes = [grown(box, shape) for box in boxes]
    return boxes


def _shrunk_until(boxes: list[Box], shape: Sequence[int], limit: float) -> list[Box]:
    while union_share(boxes, shape) > limit:
        smaller = [shrunk(box) for box in boxes]
        boxes = smaller if smaller != boxes else boxes[:-1]
    return boxes
