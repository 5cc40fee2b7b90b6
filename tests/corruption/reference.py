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
from nnunet_genesis.corruption.shuffling import ShufflingParams

SPATIAL = [(24, 20, 16), (1, 32, 32), (7, 9, 40), (33, 31), (1, 1, 1), (1, 1), (64, 3), (14, 48, 48)]
DTYPES = [torch.float16, torch.float32]

shapes = st.lists(st.integers(1, 24), min_size=2, max_size=3).map(tuple)
seeds = st.integers(0, 2**32)
dtypes = st.sampled_from(DTYPES)


def on_cpu(channel: Tensor, params: Params, low: float, high: float) -> Tensor:
    """The channel after the compiled loops of the CPU path, in its own type."""
    wide = channel.to(torch.promote_types(channel.dtype, torch.float32), copy=True).contiguous()
    params.apply(wide, low, high)
    return wide.to(channel.dtype)


def in_batch(channel: Tensor, params: Params, low: float, high: float) -> Tensor:
    """The channel after the batched path of devices, run on the CPU."""
    wide = channel.to(torch.promote_types(channel.dtype, torch.float32), copy=True).contiguous()[None]
    params.apply_batch([params], wide, torch.tensor([low]).to(wide), torch.tensor([high]).to(wide))
    return wide[0].to(channel.dtype)


WAYS = [on_cpu, in_batch]


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
