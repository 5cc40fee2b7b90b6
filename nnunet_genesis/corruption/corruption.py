"""What every corruption is: settings that sample params for a patch, and params that are applied to its channels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

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

    def loss_mask(self, shape: Sequence[int]) -> Tensor | None:
        """Boolean mask (*spatial) of the voxels whose restoration counts; None: all of them."""
        return None


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
