"""Cutouts (out-painting and in-painting): a channel goes in, the channel with noise in part of it comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from nnunet_genesis.corruption.boxes import Box, Region, grown, random_box, region, shrunk, union_share
from nnunet_genesis.corruption.compiled import fill_with_noise
from nnunet_genesis.corruption.corruption import Corruption, Params, for_loops
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

    def apply(self, channel: Tensor, low: float, high: float) -> None:
        """Replace voxels with noise that is uniform over the value range; the others keep their bits."""
        fill_with_noise(*for_loops(channel, self.kept(channel.shape)), low, high, np.uint64(self.seed))

    def kept(self, shape: Sequence[int]) -> Region:
        """What noise does not replace."""
        inside = region(self.boxes, shape)
        return inside if self.outer else inside._replace(cells=~inside.cells)


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
