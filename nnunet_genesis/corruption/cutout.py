"""Cutouts: a channel goes in, the channel with noise in part of it comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nnunet_genesis.corruption.boxes import Box, draw_box, grown, shrunk, union, union_share
from nnunet_genesis.corruption.compiled import fill_with_noise
from nnunet_genesis.corruption.corruption import Corruption, Drawing
from nnunet_genesis.settings_base import setting

_SEEDS = 2**63


@dataclass(frozen=True)
class Painting(Drawing):
    """What was drawn: windows, on which side of them noise is painted, and the seed of the noise.

    From Models Genesis (Zhou et al., MICCAI 2019 and MedIA 2021, on out-painting and in-painting; renamed outer and
    inner cutout). How ours differs: noise spans the patch's own intensities, not [0, 1]; it is used for both cutouts
    (MICCAI 2019 has a constant inside); the limit on the replaced share always holds.

    Attributes:
        outer: Whether the outside of the windows is replaced (outer cutout) or the inside (inner cutout).
        boxes: The windows, in voxels.
        seed: Seed of the noise.
    """

    outer: bool
    boxes: tuple[Box, ...]
    seed: int

    def replaced(self, shape: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Boolean mask of spatial shape: True where voxels are replaced."""
        inside = union(self.boxes, shape)
        return ~inside if self.outer else inside

    def apply(self, channel: Tensor, low: float, high: float) -> None:
        """Replace voxels with noise that is uniform over the value range; the others keep their bits."""
        mask = self.replaced(channel.shape).reshape(-1)
        fill_with_noise(channel.numpy().reshape(-1), mask, low, high, np.uint64(self.seed))

    @classmethod
    def apply_batch(cls, drawn: Sequence[Painting], channels: Tensor, low: Tensor, high: Tensor) -> None:
        """The same for all channels at once. The noise is the device's own: other numbers, evenly spread as well."""
        device, ends = channels.device, (-1, *(1 for _ in channels.shape[1:]))
        inside = torch.zeros_like(channels, dtype=torch.bool)
        for boxes in _padded(drawn, channels.ndim - 1):
            faces = torch.from_numpy(boxes).to(device)
            inside |= _all_axes([_between(faces[:, axis], edge) for axis, edge in enumerate(channels.shape[1:])])
        outer = torch.tensor([drawing.outer for drawing in drawn], device=device).view(ends)
        noise = torch.stack([_uniform(drawing.seed, channels[0]) for drawing in drawn])
        low, high = low.view(ends), high.view(ends)
        channels.copy_(torch.where(inside ^ outer, (low + (high - low) * noise).clamp(low, high), channels))


@dataclass(frozen=True)
class Cutout(Corruption):
    """Settings of both cutouts, which exclude each other; extents are shares of the patch edge."""

    probability: float = setting(0.9, "probability, per channel, of a cutout", at_least=0, at_most=1)
    outer_share: float = setting(
        0.8, "share of cutouts that replace what lies outside their windows", at_least=0, at_most=1
    )
    windows: int = setting(10, "most windows of a cutout", at_least=1)
    further_window: float = setting(0.95, "probability of each window after the first", at_least=0, at_most=1)
    outer_extent: tuple[float, float] = setting(
        (0.6, 0.95), "shortest and longest edge of a kept window (outer cutout)", at_least=0, at_most=1
    )
    inner_extent: tuple[float, float] = setting(
        (0.1, 0.4), "shortest and longest edge of a replaced window (inner cutout)", at_least=0, at_most=1
    )
    limit: float = setting(0.25, "largest share of the patch that a cutout may replace", at_least=0, at_most=1)
    margin: int = setting(0, "voxels between a window and the patch border; fewer on thin patches", at_least=0)

    def draw(self, shape: Sequence[int], rng: np.random.Generator) -> Painting:
        """Windows of different sizes, superimposed into one shape, that replace at most `limit` of the patch.

        If they would replace too much, the windows of an outer cutout grow voxel by voxel on all sides (beyond the
        margin if need be), and those of an inner cutout shrink; windows that can shrink no more vanish one by one.
        On tiny patches nothing may be left.
        """
        outer = bool(rng.random() < self.outer_share)
        extent = self.outer_extent if outer else self.inner_extent
        boxes = [draw_box(shape, extent, self.margin, outer, rng)]
        while len(boxes) < self.windows and rng.random() < self.further_window:
            boxes.append(draw_box(shape, extent, self.margin, outer, rng))
        limited = _grown_until if outer else _shrunk_until
        return Painting(outer, tuple(limited(boxes, shape, self.limit)), int(rng.integers(_SEEDS)))

    def alone(self, name: str) -> dict[str, Corruption]:
        """Outer and inner cutout, each by itself."""
        return {
            f"outer_{name}": replace(self, probability=1.0, outer_share=1.0),
            f"inner_{name}": replace(self, probability=1.0, outer_share=0.0),
        }


def _grown_until(boxes: list[Box], shape: Sequence[int], limit: float) -> list[Box]:
    while 1 - union_share(boxes, shape) > limit:
        boxes = [grown(box, shape) for box in boxes]
    return boxes


def _shrunk_until(boxes: list[Box], shape: Sequence[int], limit: float) -> list[Box]:
    while union_share(boxes, shape) > limit:
        smaller = [shrunk(box) for box in boxes]
        boxes = smaller if smaller != boxes else boxes[:-1]
    return boxes


def _padded(drawn: Sequence[Painting], axes: int) -> npt.NDArray[np.int64]:
    """All windows, (most windows, N, axes, 2); those that a drawing does not have are empty."""
    boxes = np.zeros((max(len(drawing.boxes) for drawing in drawn), len(drawn), axes, 2), dtype=np.int64)
    for n, drawing in enumerate(drawn):
        if drawing.boxes:
            boxes[: len(drawing.boxes), n] = drawing.boxes
    return boxes


def _between(faces: Tensor, edge: int) -> Tensor:
    """Which of `edge` voxels lie between faces (N, 2): bool (N, edge)."""
    voxel = torch.arange(edge, device=faces.device)
    return (voxel >= faces[:, :1]) & (voxel < faces[:, 1:])


def _all_axes(inside: Sequence[Tensor]) -> Tensor:
    """Conjunction of (N, edge) over the axes: bool (N, *spatial)."""
    axes = len(inside)
    product = torch.ones((), dtype=torch.bool, device=inside[0].device)
    for axis, line in enumerate(inside):
        product = product & line.view(len(line), *(-1 if a == axis else 1 for a in range(axes)))
    return product


def _uniform(seed: int, channel: Tensor) -> Tensor:
    generator = torch.Generator(channel.device).manual_seed(seed)
    return torch.rand(channel.shape, generator=generator, dtype=channel.dtype, device=channel.device)
