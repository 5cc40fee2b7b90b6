"""Local shuffling: a channel goes in, the same voxels in locally disturbed order come out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nnunet_genesis.corruption.boxes import voxels_of
from nnunet_genesis.corruption.compiled import shuffle_windows
from nnunet_genesis.corruption.corruption import Corruption, Params
from nnunet_genesis.settings_base import setting

_SEEDS = 2**63
_KEY_BITS = 31

COVER_PER_TURN = 0.125
"""How often the windows that are shuffled at the same time, in a batch, cover the patch: few of them overlap."""


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

    @classmethod
    def apply_batch(cls, params: Sequence[ShufflingParams], channels: Tensor, low: Tensor, high: Tensor) -> None:
        """Permute the voxels inside the windows of all channels at once, a few windows of each channel at a time.

        Where windows of one turn overlap, the last one takes the common voxels. So every channel stays an exact
        permutation of itself; voxels travel as far as they do when windows come one after another, but for the few
        in such overlaps. The permutations are other ones than those of `apply`, equally distributed.
        """
        nowhere = channels.numel()  # one voxel more than there are: where entries end that another window overruled
        values = torch.cat([channels.reshape(-1), channels.new_zeros(1)])
        owner = torch.empty(nowhere, dtype=torch.int64, device=channels.device)
        for window, voxel, key in _turns(params, channels):
            owner.fill_(-1).scatter_reduce_(0, voxel, window, "amax")
            live = owner[voxel] == window
            place = torch.where(live, voxel, nowhere)
            # the voxels of each window in order, and in the order of their random keys; overruled ones come last
            to = place[torch.argsort((~live).byte(), stable=True)]
            of = place[torch.argsort(torch.where(live, (window << _KEY_BITS) + key, 2**62), stable=True)]
            values[to] = values[of]
        channels.copy_(values[:-1].view_as(channels))


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


def _voxels_in(windows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Number of voxels of each window of (windows, axes, 2)."""
    voxels: npt.NDArray[Any] = np.prod(windows[..., 1] - windows[..., 0], axis=1, dtype=np.int64)
    return voxels


def _turns(params: Sequence[ShufflingParams], channels: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The windows of all channels as lists of entries, a turn after the other.

    Yields:
        Three int64 tensors with an entry for every voxel of every window of the turn, window by window: number of
        the window, flat index of the voxel in `channels`, random key below 2³¹. A channel's turns and keys do not
        depend on the other channels.
    """
    shape, voxels, device = channels.shape[1:], channels[0].numel(), channels.device
    sizes = [_voxels_in(one.windows) for one in params]
    generators = [torch.Generator(device).manual_seed(one.seed) for one in params]
    turns = [max(1, math.ceil(size.sum() / voxels / COVER_PER_TURN)) for size in sizes]
    cuts = [np.linspace(0, len(size), count + 1).astype(int) for size, count in zip(sizes, turns, strict=True)]
    for turn in range(max(turns)):
        members = [n for n, count in enumerate(turns) if turn < count]
        parts = {n: slice(*cuts[n][turn : turn + 2]) for n in members}
        windows = np.concatenate([params[n].windows[parts[n]] for n in members]).astype(np.int64)
        counts = [int(sizes[n][parts[n]].sum()) for n in members]
        begin = np.repeat([n * voxels for n in members], [len(params[n].windows[parts[n]]) for n in members])
        size = torch.from_numpy(_voxels_in(windows)).to(device)
        lows, lengths, begins = (
            torch.from_numpy(table).to(device) for table in (windows[..., 0], windows[..., 1] - windows[..., 0], begin)
        )
        window = torch.repeat_interleave(torch.arange(len(windows), device=device), size, output_size=sum(counts))
        place = torch.arange(sum(counts), device=device) - (size.cumsum(0) - size)[window]
        voxel, stride = begins[window], 1
        for axis in reversed(range(len(shape))):
            length = lengths[:, axis][window]
            voxel += (lows[:, axis][window] + place % length) * stride
            place, stride = place // length, stride * shape[axis]
        keys = [
            torch.randint(2**_KEY_BITS, (count,), generator=generators[n], device=device)
            for n, count in zip(members, counts, strict=True)
        ]
        yield window, voxel, torch.cat(keys)
