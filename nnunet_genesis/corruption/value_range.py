"""The intensities that a channel lives in: a robust low and high end."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from torch import Tensor

_ENOUGH = 16_384


def value_range(channel: Tensor, percentiles: tuple[float, float]) -> tuple[float, float]:
    """Find the intensity range of a channel; both ends are values that occur in it.

    Args:
        channel: Tensor (*spatial), any floating type. NaN and infinite voxels are ignored.
        percentiles: Low and high percentile, 0..100. They are taken on a regular subset of at most 16,384
            voxels that spans the whole patch.

    Returns:
        Low and high end. Where the percentiles coincide (for example 99 % air) the minimum and maximum of all
        voxels; equal ends where the channel is constant; (0, 0) where no voxel is finite.

    The released Models Genesis code scales all data to [0, 1] and takes that as the range. Ours measures it,
    so that z-scored data work as well.
    """
    low, high = _order_statistics(_subset(channel), percentiles)
    if low < high:
        return low, high
    return _order_statistics(channel, (0.0, 100.0))


def _subset(channel: Tensor) -> Tensor:
    """Every n-th voxel, the n of each axis chosen so that the longest axes are thinned out most."""
    steps = [1] * channel.ndim
    counts = list(channel.shape)
    while math.prod(counts) > _ENOUGH:
        longest = counts.index(max(counts))
        steps[longest] += 1
        counts[longest] = -(-channel.shape[longest] // steps[longest])
    return channel[tuple(slice(None, None, step) for step in steps)]


def _order_statistics(voxels: Tensor, percentiles: tuple[float, float]) -> tuple[float, float]:
    values = _finite(voxels)
    if not values.size:
        return 0.0, 0.0
    ranks = [round(percentile / 100 * (values.size - 1)) for percentile in percentiles]
    ordered = np.partition(values, ranks)
    return float(ordered[ranks[0]]), float(ordered[ranks[1]])


def _finite(voxels: Tensor) -> npt.NDArray[np.floating]:
    values = voxels.detach().cpu()
    array = (values if values.itemsize > 4 else values.float()).numpy().ravel()
    finite = np.isfinite(array)
    return array if finite.all() else array[finite]
