"""Cutouts (out-painting and in-painting): a channel goes in, the channel with noise in part of it comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nnunet_genesis.corruption.boxes import Box, grown, random_box, shrunk, union, union_share
from nnunet_genesis.corruption.compiled import fill_with_noise
from nnunet_genesis.corruption.corruption import Corruption, Params
from nnunet_genesis.settings_base import setting

_SEEDS = 2**63


@dataclass(frozen=True)
class CutoutParams(Params):
    """The windows, on which side of them noise is painted, and the seed of the noise.

    From Models Genesis (Zhou et al., MICCAI 2019 and MedIA 2021), where outer cutout is called out-painting and inner
    cutout in-painting. How ours differs: noise spans the patch's own intensities, not [0, 1]; it is used for both
    cutouts (MICCAI 2019 has a constant inside); the limit on the replaced share always holds.

    Attributes:
        outer: Whether the outside of the windows is replaced (outer cutout, out-painting) or the inside
            (inner cutout, in-painting).
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
    def apply_batch(cls, params: Sequence[CutoutParams], channels: Tensor, low: Tensor, high: Tensor) -> None:
        """The same for all channels at once. The noise is the device's own: other numbers, evenly spread as well."""
        device, ends = channels.device, (-1, *(1 for _ in channels.shape[1:]))
        inside = torch.zeros_like(channels, dtype=torch.bool)
        for boxes in _padded(params, channels.ndim - 1):
            faces = torch.from_numpy(boxes).to(device)
            inside |= _all_axes([_between(faces[:, axis], edge) for axis, edge in enumerate(channels.shape[1:])])
        outer = torch.tensor([one.outer for one in params], device=device).view(ends)
        noise = torch.stack([_uniform(one.seed, channels[0]) for one in params])
        low, high = low.view(ends), high.view(ends)
        channels.copy_(torch.where(inside ^ outer, (low + (high - low) * noise).clamp(low, high), channels))


@dataclass(frozen=True)
class Cutout(Corruption):
    """Settings of both cutouts, out-painting and in-painting, which exclude each other."""

    probability: float = setting(
        0.9, "probability, per channel, of a cutout (out-painting or in-painting)", at_least=0, at_most=1
    )
    outer_share: float = setting(
        0.8,
        "share of cutouts that are outer ones (out-painting): they replace the outside of their windows",
        at_least=0,
        at_most=1,
    )
    windows: int = setting(10, "most windows of a cutout", at_least=1)
    next_window_probability: float = setting(
        0.95, "probability of each window after the first", at_least=0, at_most=1, formerly="further_window"
    )
    outer_window_size: tuple[float, float] = setting(
        (0.6, 0.95),
        "shortest and longest edge of a window kept by an outer cutout (out-painting), as share of the patch edge",
        at_least=0,
        at_most=1,
        formerly="outer_extent",
    )
    inner_window_size: tuple[float, float] = setting(
        (0.1, 0.4),
        "shortest and longest edge of a window replaced by an inner cutout (in-painting), as share of the patch edge",
        at_least=0,
        at_most=1,
        formerly="inner_extent",
    )
    max_replaced: float = setting(
        0.25, "largest share of the patch that a cutout may replace", at_least=0, at_most=1, formerly="limit"
    )
    margin: int = setting(0, "voxels between a window and the patch border; fewer on thin patches", at_least=0)

    def sample(self, shape: Sequence[int], rng: np.random.Generator) -> CutoutParams:
        """Windows of different sizes, superimposed into one shape, that replace at most `max_replaced` of the patch.

        If they would replace too much, the windows of an outer cutout grow voxel by voxel on all sides (beyond the
        margin if need be), and those of an inner cutout shrink; windows that can shrink no more vanish one by one.
        On tiny patches nothing may be left.
        """
        outer = bool(rng.random() < self.outer_share)
        size = self.outer_window_size if outer else self.inner_window_size
        boxes = [random_box(shape, size, self.margin, outer, rng)]
        while len(boxes) < self.windows and rng.random() < self.next_window_probability:
            boxes.append(random_box(shape, size, self.margin, outer, rng))
        limited = _grown_until if outer else _shrunk_until
        return CutoutParams(outer, tuple(limited(boxes, shape, self.max_replaced)), int(rng.integers(_SEEDS)))

    def alone(self, name: str) -> dict[str, Corruption]:
        """Outer cutout (out-painting) and inner cutout (in-painting), each by itself."""
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


def _padded(params: Sequence[CutoutParams], axes: int) -> npt.NDArray[np.int64]:
    """All windows, (most windows, N, axes, 2); where there are fewer, the others are empty."""
    boxes = np.zeros((max(len(one.boxes) for one in params), len(params), axes, 2), dtype=np.int64)
    for n, one in enumerate(params):
        if one.boxes:
            boxes[: len(one.boxes), n] = one.boxes
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
