"""The loops over voxels that corruptions spend their time in, compiled by Numba.

All of them stand in this file: a compiled loop that is kept on disk does not notice that a function which it uses from
another file has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

_MULTIPLIER, _INCREMENT = np.uint64(6364136223846793005), np.uint64(1442695040888963407)
_ONE, _HALF, _HIGH_24 = np.uint64(1), np.uint64(32), np.uint64(40)

Volume = npt.NDArray[np.floating]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first use and keep the result on disk, so that no other process compiles again.

    Where neither this package's folder nor the user's cache folder can be written (and NUMBA_CACHE_DIR names no
    other), each process compiles for itself.
    """
    try:
        return numba.njit(cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # Numba found no folder
        return numba.njit(function)  # type: ignore[no-any-return]


@compiled
def _next(state):  # type: ignore[no-untyped-def]
    """Knuth's 64-bit linear congruential generator (MMIX); its upper bits are used. uint64 → uint64."""
    return state * _MULTIPLIER + _INCREMENT


@compiled
def _touch(voxels, windows, w, rows, columns):  # type: ignore[no-untyped-def]
    """Ask for the rows of a window ahead of its turn, so that memory brings them in time; their sum is of no use."""
    touched = voxels[0] * 0
    for z in range(windows[w, 0, 0], windows[w, 0, 1]):
        for y in range(windows[w, 1, 0], windows[w, 1, 1]):
            row = (z * rows + y) * columns
            touched += voxels[np.uint64(row + windows[w, 2, 0])] + voxels[np.uint64(row + windows[w, 2, 1] - 1)]
    return touched


@compiled
def shuffle_windows(volume: Volume, windows: npt.NDArray[np.int32], longest: int, seed: np.uint64) -> float:
    """ShufflingParams the voxels of each window, one window after another, in place.

    Args:
        volume: Contiguous (z, y, x).
        windows: (windows, 3, 2), first voxel and voxel after the last one.
        longest: Voxels of the largest window.
        seed: Seed of the permutations, each equally likely but for rounding (window size / 2³²).

    Returns:
        Nothing of use.
    """
    voxels = volume.reshape(-1)
    held = np.empty(longest, volume.dtype)
    state = _next(seed)
    rows, columns = volume.shape[1:]
    touched = voxels[0] * 0
    for w in range(len(windows)):
        if w + 1 < len(windows):
            touched += _touch(voxels, windows, w + 1, rows, columns)
        count = np.uint64(0)
        for z in range(windows[w, 0, 0], windows[w, 0, 1]):
            for y in range(windows[w, 1, 0], windows[w, 1, 1]):
                row = (z * rows + y) * columns
                for x in range(row + windows[w, 2, 0], row + windows[w, 2, 1]):
                    # Fisher-Yates, inside out: the newcomer takes a random place, who was there goes to the end
                    state = _next(state)
                    place = ((state >> _HALF) * (count + _ONE)) >> _HALF
                    held[count] = held[place]
                    held[place] = voxels[np.uint64(x)]
                    count += _ONE
        count = np.uint64(0)
        for z in range(windows[w, 0, 0], windows[w, 0, 1]):
            for y in range(windows[w, 1, 0], windows[w, 1, 1]):
                row = (z * rows + y) * columns
                for x in range(row + windows[w, 2, 0], row + windows[w, 2, 1]):
                    voxels[np.uint64(x)] = held[count]
                    count += _ONE
    return touched  # type: ignore[no-any-return]


@compiled
def map_piecewise(voxels: Volume, base: Volume, rise: Volume, low: float, high: float, slope: float) -> None:
    """Send values in [low, high] through a line for each of equally long pieces, in place; NaN stays.

    Args:
        voxels: Contiguous, one axis, float32 or float64.
        base: What each piece's line gives at `low`, float64.
        rise: Slope of each piece's line, float64.
        low: Lower end.
        high: Upper end, above `low`.
        slope: 1 or -1: what is added for each unit that a value lies beyond an end.
    """
    last = len(base) - 1
    pieces = len(base) / (high - low)
    for i in range(voxels.size):
        value = np.float64(voxels[i])
        if value != value:
            continue
        inside = min(max(value, low), high)
        piece = np.uint64(min(int((inside - low) * pieces), last))
        voxels[i] = base[piece] + rise[piece] * (inside - low) + slope * (value - inside)


@compiled
def fill_with_noise(voxels: Volume, mask: npt.NDArray[np.bool_], low: float, high: float, seed: np.uint64) -> None:
    """Replace the voxels under a mask by uniform noise in [low, high), of 24 bits before it is rounded, in place.

    Args:
        voxels: Contiguous, one axis.
        mask: As many voxels.
        low: Lower end.
        high: Upper end.
        seed: Seed of the noise.
    """
    state = _next(seed)
    step = (high - low) / 2**24
    for i in range(voxels.size):
        if mask[i]:
            state = _next(state)
            voxels[i] = low + step * np.int64(state >> _HIGH_24)
