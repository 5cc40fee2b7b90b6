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

_MULTIPLIER, _INCREMENT = 6364136223846793005, 1442695040888963407
"""Knuth's 64-bit linear congruential generator (MMIX); its upper bits are used."""
_ONE, _HALF, _HIGH_24 = np.uint64(1), np.uint64(32), np.uint64(40)
_BLOCK = 512
"""Voxels that are worked on in one go: what is computed in between stays in the fastest cache."""
_VECTOR = 32
"""Voxels that compiled code takes in one turn of a loop."""


def _leaps(count: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Multiplier and increment from a state of the generator to each of those after it, not one after the other."""
    leaps = [(_MULTIPLIER, _INCREMENT)]
    for _ in range(count - 1):
        leaps.append((leaps[-1][0] * _MULTIPLIER % 2**64, (leaps[-1][1] * _MULTIPLIER + _INCREMENT) % 2**64))
    return np.array([one for one, _ in leaps], np.uint64), np.array([one for _, one in leaps], np.uint64)


_FACTORS, _SUMMANDS = _leaps(_BLOCK)

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
def _touch(voxels, window, rows, columns):  # type: ignore[no-untyped-def]
    """Ask for the rows of a window ahead of its turn, so that memory brings them in time; their sum is of no use."""
    touched = voxels[0] * 0
    for z in range(window[0, 0], window[0, 1]):
        for y in range(window[1, 0], window[1, 1]):
            row = (z * rows + y) * columns
            touched += voxels[np.uint64(row + window[2, 0])] + voxels[np.uint64(row + window[2, 1] - 1)]
    return touched


@compiled
def _draw_places(places, state):  # type: ignore[no-untyped-def]
    """For each voxel the place of itself or of one before it, each equally likely; the next state."""
    for start in range(0, places.size, _BLOCK):
        block = places[start : start + _BLOCK]
        for k in range(block.size):
            random = (state * _FACTORS[k] + _SUMMANDS[k]) >> _HALF
            block[k] = (random * (np.uint64(start + k) + _ONE)) >> _HALF
        state = state * _FACTORS[block.size - 1] + _SUMMANDS[block.size - 1]
    return state


@compiled
def shuffle_windows(volume: Volume, windows: npt.NDArray[np.int32], longest: int, seed: np.uint64) -> float:
    """Shuffle the voxels of each window, one window after another, in place (Fisher-Yates).

    Args:
        volume: Contiguous (z, y, x), fewer than 2³² voxels.
        windows: (windows, 3, 2), first voxel and voxel after the last one.
        longest: Voxels of the largest window.
        seed: Seed of the permutations, each equally likely but for rounding (window size / 2³²).

    Returns:
        Nothing of use.
    """
    voxels = volume.reshape(-1)
    places, addresses = np.empty(longest, np.uint32), np.empty(longest, np.uint32)
    state = seed * _FACTORS[0] + _SUMMANDS[0]
    rows, columns = volume.shape[1:]
    touched = voxels[0] * 0
    for w in range(len(windows)):
        width = windows[w, 2, 1] - windows[w, 2, 0]
        area = (windows[w, 0, 1] - windows[w, 0, 0]) * (windows[w, 1, 1] - windows[w, 1, 0])
        state = _draw_places(places[: area * width], state)
        if w + 1 < len(windows):
            touched += _touch(voxels, windows[w + 1], rows, columns)
        count = 0
        for z in range(windows[w, 0, 0], windows[w, 0, 1]):
            for y in range(windows[w, 1, 0], windows[w, 1, 1]):
                row = (z * rows + y) * columns + windows[w, 2, 0]
                for x in range(width):
                    here, k = np.uint64(row + x), np.uint64(count + x)
                    addresses[k] = here
                    place = np.uint64(addresses[np.uint64(places[k])])
                    newcomer = voxels[here]
                    voxels[here] = voxels[place]
                    voxels[place] = newcomer
                count += width
    return touched  # type: ignore[no-any-return]


@compiled
def _map_row(row, base, rise, low, high, slope, places, lines):  # type: ignore[no-untyped-def]
    """`map_piecewise` for voxels that lie next to each other; `places` and `lines` are room for a block."""
    last = np.float64(len(base) - 1)
    pieces = len(base) / (high - low)
    for start in range(0, row.size, _BLOCK):  # three loops, of which the first and the last become vector code
        block = row[start : start + _BLOCK]
        for k in range(block.size):
            value = np.float64(block[k])
            lines[k] = min(max(value, low), high) - low
            places[k] = np.int32(min(lines[k] * pieces, last) if value == value else 0.0)
        for k in range(block.size):
            piece = np.uint32(places[k])
            lines[k] = base[piece] + rise[piece] * lines[k]
        for k in range(block.size):
            value = np.float64(block[k])
            mapped = lines[k] + slope * (value - min(max(value, low), high))
            block[k] = mapped if value == value else block[k]


@compiled
def map_piecewise(
    volume: Volume, region: Any, base: Volume, rise: Volume, low: float, high: float, slope: float
) -> None:
    """Send values in [low, high] through a line for each of equally long pieces, in place; NaN stays.

    Args:
        volume: Contiguous (z, y, x), float32 or float64.
        region: Cells and cuts (`Region`, three axes) in which all are mapped; some that lie beside it are, too.
        base: What each piece's line gives at `low`, float64.
        rise: Slope of each piece's line, float64.
        low: Lower end.
        high: Upper end, above `low`.
        slope: 1 or -1: what is added for each unit that a value lies beyond an end.
    """
    cells, cuts = region
    places, lines = np.empty(_BLOCK, np.int32), np.empty(_BLOCK)
    for i in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            used = np.flatnonzero(cells[i, j])
            if used.size:  # rounded to whole vectors
                first = cuts[2][used[0]] // _VECTOR * _VECTOR
                end = min(-(-cuts[2][used[-1] + 1] // _VECTOR) * _VECTOR, volume.shape[2])
                for z in range(cuts[0][i], cuts[0][i + 1]):
                    for y in range(cuts[1][j], cuts[1][j + 1]):
                        _map_row(volume[z, y, first:end], base, rise, low, high, slope, places, lines)


@compiled
def _fill_row(row, low, step, state):  # type: ignore[no-untyped-def]
    """Replace a row of voxels by noise; the next state."""
    for start in range(0, row.size, _BLOCK):
        block = row[start : start + _BLOCK]
        for k in range(block.size):
            block[k] = low + step * np.int64((state * _FACTORS[k] + _SUMMANDS[k]) >> _HIGH_24)
        state = state * _FACTORS[block.size - 1] + _SUMMANDS[block.size - 1]
    return state


@compiled
def fill_with_noise(volume: Volume, region: Any, low: float, high: float, seed: np.uint64) -> None:
    """Replace the voxels outside of a region by uniform noise in [low, high), of 24 bits before it is rounded.

    Args:
        volume: Contiguous (z, y, x); changed in place, voxel after voxel.
        region: Cells and cuts (`Region`, three axes) of what stays.
        low: Lower end.
        high: Upper end.
        seed: Seed of the noise.
    """
    cells, cuts = region
    state = seed * _FACTORS[0] + _SUMMANDS[0]
    step = (high - low) / 2**24
    for i in range(cells.shape[0]):
        for z in range(cuts[0][i], cuts[0][i + 1]):
            for j in range(cells.shape[1]):
                for y in range(cuts[1][j], cuts[1][j + 1]):
                    end = 0  # of the last cell that stays
                    for k in range(cells.shape[2]):
                        if cells[i, j, k]:
                            if end < cuts[2][k]:
                                state = _fill_row(volume[z, y, end : cuts[2][k]], low, step, state)
                            end = cuts[2][k + 1]
                    if end < volume.shape[2]:
                        state = _fill_row(volume[z, y, end:], low, step, state)


@compiled
def fill(volume: Volume, region: Any, value: float) -> None:
    """Set the voxels outside of a region (cells and cuts, three axes) of a contiguous volume (z, y, x) to a value."""
    cells, cuts = region
    for i in range(cells.shape[0]):
        for z in range(cuts[0][i], cuts[0][i + 1]):
            for j in range(cells.shape[1]):
                for y in range(cuts[1][j], cuts[1][j + 1]):
                    for k in range(cells.shape[2]):
                        if not cells[i, j, k]:
                            for x in range(cuts[2][k], cuts[2][k + 1]):
                                volume[z, y, x] = value


@compiled
def mirror(source: Any, mirrored: Any, flips: tuple[bool, bool, bool]) -> None:
    """Copy a volume (z, y, x), mirrored along some of its axes, into another one."""
    depth, rows, columns = source.shape
    for z in range(depth):
        for y in range(rows):
            row = source[depth - 1 - z if flips[0] else z, rows - 1 - y if flips[1] else y]
            if flips[2]:
                for x in range(columns):
                    mirrored[z, y, x] = row[np.uint64(columns - 1 - x)]
            else:
                for x in range(columns):
                    mirrored[z, y, x] = row[x]
