"""A convolution's weight → the weight of another kernel, stride or width, each exact in a stated sense.

Weights here are (out, in, z, y, x), those of transposed convolutions too; a 2D weight has z = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import lcm

import torch
from torch import nn


def resize_kernel(weight: torch.Tensor, kernel: Sequence[int]) -> torch.Tensor:
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
            weight = nn.functional.pad(weight, [0, 0] * (weight.ndim - 1 - axis) + [cut, cut])
        elif excess > 0:
            kept = weight.narrow(axis, cut, size).clone()
            kept.select(axis, 0).add_(weight.narrow(axis, 0, cut).sum(axis))
            kept.select(axis, -1).add_(weight.narrow(axis, cut + size, cut).sum(axis))
            weight = kept
    return weight


def resize_transposed_kernel(weight: torch.Tensor, kernel: Sequence[int]) -> torch.Tensor:
    """Other kernels of a transposed convolution whose kernel is its stride.

    More taps: each is repeated, so that the output is the source's, nearest neighbour along the axis. Fewer: the mean
    of neighbouring taps, so that the output is the source's averaged along the axis. In any case the mean over the
    taps of an axis stays, and 1 → n → 1 changes nothing.
    """
    for axis, size in enumerate(kernel, start=2):
        before = weight.shape[axis]
        if before != size:
            common = lcm(before, size)
            repeated = weight.repeat_interleave(common // before, axis)
            weight = repeated.unflatten(axis, (size, common // size)).mean(axis + 1)
    return weight


def resize_widths(
    weight: torch.Tensor, initial: torch.Tensor, source: Sequence[int], target: Sequence[int]
) -> torch.Tensor:
    """Other numbers of output and input channels, by the leading ones of each.

    Wider: outputs that the source has do not read the inputs that it lacks (zeros), so their response is the same;
    further outputs stay as in `initial`, since zeros on both sides would never learn. Narrower: the leading filters,
    without the inputs that are gone, which changes their response.

    Args:
        weight: Source.
        initial: The target's weight at initialisation, same kernel; not changed.
        source: Widths of what the source reads, in order: one, or two where up-sampled and skip are concatenated.
        target: The same of the target.
    """
    resized, outputs = initial.clone(), min(len(weight), len(initial))
    resized[:outputs] = 0
    starts = zip(accumulate(source, initial=0), accumulate(target, initial=0), strict=True)
    for (here, there), *widths in zip(starts, source, target, strict=False):
        width = min(widths)
        resized[:outputs, there : there + width] = weight[:outputs, here : here + width]
    return resized


def resize_vector(vector: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
    """Bias or norm (width,) for another width: the leading entries; further ones as in `initial`."""
    resized, width = initial.clone(), min(len(vector), len(initial))
    resized[:width] = vector[:width]
    return resized


def identity_kernel(initial: torch.Tensor) -> torch.Tensor:
    """A weight of the shape of `initial`, 2D or 3D, that gives out its last inputs unchanged.

    Of a decoder's concatenated inputs these are the skip, so that the convolution ignores what is up-sampled.
    """
    weight = torch.zeros_like(initial)
    nn.init.dirac_(weight[:, -len(weight) :])
    return weight


def single_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision → float32, exactly, so that adapting does not round; others stay as they are."""
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize < torch.float32.itemsize else tensor
