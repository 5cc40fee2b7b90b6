"""Plain, slow tellings of the corruptions, written from their description, to compare the library with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from nnunet_genesis.corruption.corruption import Params
from nnunet_genesis.corruption.cutout import CutoutParams
from nnunet_genesis.corruption.intensity import IntensityParams
from nnunet_genesis.corruption.masking import MaskingParams
from nnunet_genesis.corruption.pair import PairParams
from nnunet_genesis.corruption.shuffling import ShufflingParams

SPATIAL = [(24, 20, 16), (1, 32, 32), (7, 9, 40), (33, 31), (1, 1, 1), (1, 1), (64, 3), (14, 48, 48)]
DTYPES = [torch.float16, torch.float32]

shapes = st.lists(st.integers(1, 24), min_size=2, max_size=3).map(tuple)
seeds = st.integers(0, 2**32)
dtypes = st.sampled_from(DTYPES)


def applied(channel: Tensor, params: Params, low: float, high: float) -> Tensor:
    """A corrupted copy of the channel, in its own type."""
    wide = channel.to(torch.promote_types(channel.dtype, torch.float32), copy=True).contiguous()
    params.apply(wide, low, high)
    return wide.to(channel.dtype)


def noise(shape: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """A z-scored patch."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def bits(tensor: Tensor) -> bytes:
    """Everything that two equal tensors have in common, NaN included."""
    return str((tensor.dtype, tuple(tensor.shape))).encode() + tensor.contiguous().numpy().tobytes()


def ordered(tensor: Tensor) -> Tensor:
    """All values, sorted."""
    return tensor.flatten().sort().values


def bent_value(value: float, params: IntensityParams, low: float, high: float) -> float:
    """Solve x(t) = value by bisection, then return y(t)."""

    def point(axis: int, t: float) -> float:
        ends = (0.0, params.first[axis], params.second[axis], 1.0)
        while len(ends) > 1:  # de Casteljau: halve the polygon until a point is left
            ends = tuple((1 - t) * a + t * b for a, b in itertools.pairwise(ends))
        return ends[0]

    if not low <= value <= high:
        if not params.decreasing:
            return value
        return high + (low - value) if value < low else low - (value - high)
    expected, below, above = (value - low) / (high - low), 0.0, 1.0
    for _ in range(80):
        middle = (below + above) / 2
        below, above = (middle, above) if point(0, middle) < expected else (below, middle)
    share = point(1, (below + above) / 2)
    return low + (high - low) * (1 - share if params.decreasing else share)


def bent(values: np.ndarray, params: IntensityParams, low: float, high: float) -> np.ndarray:
    """The curve's table, interpolated by numpy; beyond its ends a slope of 1, or of -1."""
    if not low < high:
        return values
    clipped = np.clip(values.astype(np.float64), low, high)
    table = params.table()
    share = np.interp((clipped - low) / (high - low), np.linspace(0, 1, len(table)), table)
    with np.errstate(invalid="ignore"):
        beyond = np.where(np.isnan(values), np.nan, values - clipped)
    return low + (high - low) * share + (-1 if params.decreasing else 1) * beyond


def painted(values: np.ndarray, params: CutoutParams, low: float, high: float) -> np.ndarray:
    """CutoutParams voxel by voxel, with the random numbers written out."""
    out, state = values.copy(), _following(params.seed)
    for place in np.argwhere(inside(values.shape, params) != params.outer):
        state = _following(state)
        out[tuple(place)] = low + (high - low) / 2**24 * (state >> 40)
    return out


def ends(values: np.ndarray, percentiles: Sequence[float]) -> tuple[float, float]:
    """Value range of a small channel, all of whose voxels count."""
    finite = np.sort(values[np.isfinite(values)])
    low, high = (float(finite[round(share / 100 * (len(finite) - 1))]) for share in percentiles)
    return (low, high) if low < high else (float(finite[0]), float(finite[-1]))


def plain_pair(patch: np.ndarray, params: PairParams) -> tuple[np.ndarray, np.ndarray]:
    """Corrupted and target of a small float32 patch: mirrored, then one channel and one corruption after another."""
    target = np.flip(patch, [axis + 1 for axis in params.flips]).copy()
    corrupted = target.copy()
    for channel, clean, corruptions in zip(corrupted, target.copy(), params.channels, strict=True):
        low, high = ends(clean, params.percentiles)
        for one in corruptions:
            if isinstance(one, ShufflingParams):
                channel[:] = shuffled(channel, one)
            elif isinstance(one, IntensityParams):
                channel[:] = bent(channel, one, low, high)
            elif isinstance(one, CutoutParams):
                channel[:] = painted(channel, one, low, high)
            elif one is not None:
                channel[in_cells(channel.shape, one)] = 0
    for channel, corruptions in zip(target, params.channels, strict=True):
        for one in corruptions:
            if isinstance(one, MaskingParams):
                channel[~in_cells(channel.shape, one)] = np.nan
    return corrupted, target


def in_cells(shape: Sequence[int], params: MaskingParams) -> np.ndarray:
    """Whether each voxel lies in a masked cell: cells are numbered along the last axis first."""
    grid = [-(-voxels // edge) for voxels, edge in zip(shape, params.edges, strict=True)]
    cells = [index // edge for index, edge in zip(np.indices(shape), params.edges, strict=True)]
    return np.isin(np.ravel_multi_index(tuple(cells), grid), params.cells)


def shuffled(values: np.ndarray, params: ShufflingParams) -> np.ndarray:
    """ShufflingParams one window after another, voxel by voxel, with the random numbers written out."""
    out, state = values.copy(), _following(params.seed)
    for window in params.windows.tolist():
        places = list(itertools.product(*(range(low, high) for low, high in window)))
        held = []
        for place in places:
            state = _following(state)
            chosen = (state >> 32) * (len(held) + 1) >> 32
            held.append(None)
            held[-1], held[chosen] = held[chosen], out[place]
        for place, value in zip(places, held, strict=True):
            out[place] = value
    return out


def _following(state: int) -> int:
    return (state * 6364136223846793005 + 1442695040888963407) % 2**64


def inside(shape: Sequence[int], params: CutoutParams) -> np.ndarray:
    """Whether each voxel lies in a window, asked voxel by voxel."""
    mask = np.zeros(shape, dtype=bool)
    for place in itertools.product(*map(range, shape)):
        mask[place] = any(
            all(low <= x < high for x, (low, high) in zip(place, box, strict=True)) for box in params.boxes
        )
    return mask
