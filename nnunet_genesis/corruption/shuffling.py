"""Local shuffling: a channel goes in, the same voxels in locally disturbed order come out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from nnunet_genesis.corruption.boxes import voxels_of
from nnunet_genesis.corruption.compiled import shuffle_windows
from nnunet_genesis.corruption.corruption import Corruption, Params
from nnunet_genesis.settings_base import setting

_SEEDS = 2**63


@dataclass(frozen=True, eq=False)
class ShufflingParams(Params):
    """The windows, and the seed of the permutations inside them.

    From Models Genesis (Zhou et al., MICCAI 2019 and MedIA 2021, on local pixel shuffling). How ours differs: like
    the paper and unlike the released code, windows are shuffled in place, so that no value is lost or duplicated
    where they overlap; windows have at least one voxel on thin patches, and their number is limited by how often
    they cover the patch.

    Attributes:
        windows: First voxel and voxel after the last one: int32 (windows, axes, 2), in order of application.
        seed: Seed of the permutations.
    """

    windows: npt.NDArray[np.int32]
    seed: int

    def apply(self, channel: Tensor, low: float, high: float) -> None:
        """Permute the voxels inside each window, one window after another; the value range does not matter."""
        windows, volume = self.windows, channel.numpy()
        if channel.ndim == 2:
            windows = np.pad(windows, ((0, 0), (1, 0), (0, 0)))
            windows[:, 0, 1] = 1
            volume = volume[None]
        largest = np.prod((windows[..., 1] - windows[..., 0]).max(axis=0), dtype=np.int64)
        shuffle_windows(volume, windows, largest, np.uint64(self.seed))


@dataclass(frozen=True)
class Shuffling(Corruption):
    """Settings of local shuffling."""

    probability: float = setting(0.5, "probability, per channel, of local shuffling", at_least=0, at_most=1)
    windows: int = setting(1_000, "number of windows whose voxels are shuffled", at_least=1)
    max_window_size: float = setting(
        0.1, "longest edge of a window, as share of the patch edge", above=0, at_most=1, formerly="extent"
    )
    max_coverage: float = setting(
        2.5, "most times that the windows cover the patch, on average; limits their number", above=0, formerly="cover"
    )

    def sample(self, shape: Sequence[int], rng: np.random.Generator) -> ShufflingParams:
        """Windows with independent, uniform edges (at least 1 voxel) at uniform positions.

        There are fewer of them where they are large compared with the patch, as in 2D.
        """
        longest = [voxels_of(self.max_window_size, edge) for edge in shape]
        average = math.prod((edge + 1) / 2 for edge in longest)
        count = min(self.windows, max(1, int(self.max_coverage * math.prod(shape) / average)))
        windows = np.empty((count, len(shape), 2), dtype=np.int32)
        for axis, (edge, most) in enumerate(zip(shape, longest, strict=True)):
            lengths = rng.integers(1, most, count, endpoint=True, dtype=np.int32)
            # scaled and cut off: several times faster than integers with a bound for each window
            windows[:, axis, 0] = rng.random(count) * (edge + 1 - lengths)
            windows[:, axis, 1] = windows[:, axis, 0] + lengths
        return ShufflingParams(windows, int(rng.integers(_SEEDS)))
