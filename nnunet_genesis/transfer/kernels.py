"""A convolution's weight → the weight of another kernel, stride or width, each exact in a stated sense.

Weights here are (out, in, z, y, x), those of transposed convolutions too; a 2D weight has z = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import lcm

import torch


def fit_kernel(weight: torch.Tensor, kernel: Sequence[int]) -> torch.Tensor:
    """Other odd edge lengths of the kernel.

    A longer axis: the taps stay in the centre, zeros around them; with zero padding of half a kernel the response is
    the same everywhere. A shorter axis: each tap that is cut off is added to the outermost tap kept on its side. The
    response to features that are constant along that axis is the same, away from the axis's ends; for an axis of
    length 1 this is the sum over the axis. Shrinking undoes growing.

    Raises:
        ValueError: An edge changes between odd and even.
    """
    for axis, size in enumerate(kernel, start=2):
        excess = weight.shape[axis] - size
        if excess % 2:
            raise ValueError(f"kernels of {weight.shape[axis]} and {size} have no common centre")
        cut = abs(excess) // 2
        if excess < 0:
            shape = list(weight.shape)
            shape[axis] = size
            grown = weight.new_zeros(shape)
            grown.narrow(axis, cut, weight.shape[axis]).copy_(weight)
            weight = grown
        elif excess > 0:
            kept = weight.narrow(axis, cut, size).clone()
            kept.select(axis, 0).add_(weight.narrow(axis, 0, cut).sum(axis))
            kept.select(axis, -1).add_(weight.narrow(axis, cut + size, cut).sum(axis))
            weight = kept
    return weight


def fit_taps(weight: torch.Tensor, taps: Sequence[int]) -> torch.Tensor:
    """Other kernels of a transposed convolution whose kernel is its stride.

    More taps: each is repeated, so that the output is the source's, nearest neighbour along the axis. Fewer: the mean
    of neighbouring taps, so that the output is the source's averaged along the axis. In any case the mean over the
    taps of an axis stays, and 1 → n → 1 changes nothing.
    """
    for axis, size in enumerate(taps, start=2):
        have = weight.shape[axis]
        if have != size:
            common = lcm(have, size)
            repeated = weight.repeat_interleave(common // have, axis)
            weight = repeated.unflatten(axis, (size, common // size)).mean(axis + 1)
    return weight


def fit_widths(weight: torch.Tensor, fresh: torch.Tensor, given: Sequence[int], wanted: Sequence[int]) -> torch.Tensor:
    """Other numbers of output and input channels, by the leading ones of each.

    Wider: outputs that the source has do not read the inputs that it lacks (zeros), so their response is the same;
    further outputs stay as in `fresh`, since zeros on both sides would never learn. Narrower: the leading filters,
    without the inputs that are gone, which changes their response.

    Args:
        weight: Source.
        fresh: The target's weight at initialisation, same kernel; not changed.
        given: Widths of what the source reads, in order: one, or two where up-sampled and skip are concatenated.
        wanted: The same of the target.
    """
    fitted, outputs = fresh.clone(), min(weight.shape[0], fresh.shape[0])
    fitted[:outputs] = 0
    starts = zip(accumulate(given, initial=0), accumulate(wanted, initial=0), strict=True)
    for (here, there), have, want in zip(starts, given, wanted, strict=False):
        width = min(have, want)
        fitted[:outputs, there : there + width] = weight[:outputs, here : here + width]
    return fitted


def fit_vector(vector: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
    """Bias or norm (width,) for another width: the leading entries; further ones as in `fresh`."""
    fitted, width = fresh.clone(), min(len(vector), len(fresh))
    fitted[:width] = vector[:width]
    return fitted


def passing_on(fresh: torch.Tensor) -> torch.Tensor:
    """A weight of the shape of `fresh` that gives out its last inputs unchanged.

    Of a decoder's concatenated inputs these are the skip, so that the convolution ignores what is up-sampled.
    """
    weight, (width, inputs) = torch.zeros_like(fresh), fresh.shape[:2]
    centre = tuple((edge - 1) // 2 for edge in fresh.shape[2:])
    for output in range(width):
        weight[output, inputs - width + output][centre] = 1
    return weight
