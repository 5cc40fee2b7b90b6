"""What every corruption is: settings that sample params for a patch, and params that are applied to its channels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from nnunet_genesis.corruption.boxes import Region
from nnunet_genesis.settings_base import Settings, setting


class Params(ABC):
    """What was sampled for one channel: everything that is needed to apply it, again and again, bit for bit."""

    @abstractmethod
    def apply(self, channel: Tensor, low: float, high: float) -> None:
        """Corrupt a channel in place, on the CPU.

        Args:
            channel: Contiguous tensor (*spatial), float32 or float64, of the shape that was sampled for.
            low: Lower end of the clean channel's value range.
            high: Upper end; equal to `low` where the channel is constant.
        """

    def apply_where_kept(self, channel: Tensor, low: float, high: float, region: Region) -> None:
        """As `apply`, but outside of a region anything may be left: a later corruption overwrites it."""
        self.apply(channel, low, high)

    def kept(self, shape: Sequence[int]) -> Region | None:
        """Where a channel (*spatial) is not overwritten, whatever it was there; None: it nowhere is."""
        return None

    def loss_mask(self, shape: Sequence[int]) -> Tensor | None:
        """Boolean mask (*spatial) of the voxels whose restoration counts; None: all of them."""
        return None

    def leave_out(self, target: Tensor) -> None:
        """Put NaN, in place, into the voxels of a clean channel (*spatial) whose restoration does not count."""
        if (mask := self.loss_mask(target.shape)) is not None:
            target.masked_fill_(~mask, math.nan)


def for_loops(channel: Tensor, region: Region) -> tuple[npt.NDArray[np.floating], tuple[Any, Any]]:
    """A channel and a region of it as compiled loops take them: (z, y, x), with one z in 2D."""
    before = (1,) * (3 - channel.ndim)
    cuts = (*[np.array([0, 1])] * len(before), *region.cuts)
    return channel.numpy().reshape(before + channel.shape), (region.cells.reshape(before + region.cells.shape), cuts)


@dataclass(frozen=True)
class Corruption(Settings, ABC):
    """Settings of one corruption: a block of the recipe."""

    probability: float = setting(0.0, "probability, per channel", at_least=0, at_most=1)

    @abstractmethod
    def sample(self, shape: Sequence[int], rng: np.random.Generator) -> Params:
        """Sample for one channel of spatial shape `shape` (2 or 3 axes of at least 1 voxel)."""

    def sample_channels(
        self, channels: int, shape: Sequence[int], rng: np.random.Generator
    ) -> tuple[Params | None, ...]:
        """Sample for all channels of a patch, each by itself; None where it does not take place."""
        return tuple(self.sample(shape, rng) if rng.random() < self.probability else None for _ in range(channels))

    def alone(self, name: str) -> dict[str, Corruption]:
        """Names and settings under which it always takes place, e.g. to measure it by itself."""
        return {name: replace(self, probability=1.0)}
