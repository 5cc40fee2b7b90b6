"""Local shuffling: a channel goes in, the same voxels in locally disturbed order come out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nnunet_genesis.corruption.boxes import voxels_of

_SEEDS = 2**63


@dataclass(frozen=True)
class Shuffle:
    """What was drawn: how many windows, how long, and the seed of their places and permutations.

    Attributes:
        windows: Number of windows.
        longest: Longest window edge for each spatial axis, in voxels.
        seed: Seed of everything else.
    """

    windows: int
    longest: tuple[int, ...]
    seed: int


def draw_shuffle(shape: Sequence[int], windows: int, extent: float, cover: float, rng: np.random.Generator) -> Shuffle:
    """Draw a shuffling of a channel.

    Args:
        shape: Spatial shape of the patch, any axis at least 1 voxel.
        windows: Number of windows.
        extent: Longest window edge as share of the patch edge; at least 1 voxel is taken.
        cover: How often the windows may cover the patch, on average; there are fewer of them where they are
            large compared with the patch, as in 2D.
        rng: Source of randomness.
    """
    longest = tuple(voxels_of(extent, edge) for edge in shape)
    average = math.prod((edge + 1) / 2 for edge in longest)
    most = max(1, int(cover * math.prod(shape) / average))
    return Shuffle(min(windows, most), longest, int(rng.integers(_SEEDS)))


def shuffle_windows(shape: Sequence[int], drawn: Shuffle) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First voxel and voxel after the last one of each window: two arrays (windows, axes)."""
    return _windows(shape, drawn, np.random.default_rng(drawn.seed))


def shuffle_sources(shape: Sequence[int], drawn: Shuffle) -> npt.NDArray[np.signedinteger[Any]]:
    """Where each voxel comes from: an array of spatial shape, holding each flat voxel index exactly once."""
    rng = np.random.default_rng(drawn.seed)
    starts, stops = _windows(shape, drawn, rng)
    small = math.prod(shape) < 2**31
    kind: type[np.signedinteger[Any]] = np.int32 if small else np.int64
    sources = np.arange(math.prod(shape), dtype=kind).reshape(tuple(shape))
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        window = sources[tuple(map(slice, start, stop))]
        voxels = window.flatten()
        rng.shuffle(voxels)
        window[...] = voxels.reshape(window.shape)
    return sources


def shuffle(channel: Tensor, drawn: Shuffle) -> Tensor:
    """Permute the voxels inside each window, one window after another.

    Args:
        channel: Tensor (*spatial), any type; not touched.
        drawn: What `draw_shuffle` gave for this spatial shape.

    Returns:
        New tensor of the same shape and type: an exact permutation of the channel.

    From Models Genesis (Zhou et al., MICCAI 2019 and MedIA 2021, on local pixel shuffling). How ours differs:
    like the paper and unlike the released code, windows are shuffled in place, so that no value is lost or
    duplicated where they overlap; windows have at least one voxel on thin patches, and their number is limited
    by how often they cover the patch.
    """
    sources = torch.from_numpy(shuffle_sources(channel.shape, drawn)).to(channel.device)
    return channel.reshape(-1)[sources.long()]


def _windows(
    shape: Sequence[int], drawn: Shuffle, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    lengths = rng.integers(1, drawn.longest, size=(drawn.windows, len(shape)), endpoint=True)
    starts = rng.integers(0, np.asarray(shape) - lengths, endpoint=True)
    return starts, starts + lengths
