"""Pairs to learn from: a patch goes in, its corrupted copy and what is to be restored come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from nnunet_genesis.corruption.boxes import whole
from nnunet_genesis.corruption.compiled import mirror
from nnunet_genesis.corruption.corruption import Params
from nnunet_genesis.corruption.recipe import RECIPES, Recipe
from nnunet_genesis.corruption.value_range import value_range
from nnunet_genesis.errors import DatasetError

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number → whole numbers as wide."""


@dataclass(frozen=True)
class PairParams:
    """Everything that was sampled for one patch; applied again, it gives the same pair, bit for bit.

    Attributes:
        shape: Shape (C, *spatial) of the patch.
        flips: Spatial axes (0 is the first one) to mirror.
        channels: For each channel the params of each corruption, in order; None: it does not take place.
        percentiles: Percentiles of a channel that give its value range.
    """

    shape: tuple[int, ...]
    flips: tuple[int, ...]
    channels: tuple[tuple[Params | None, ...], ...]
    percentiles: tuple[float, float]


def sample_params(shape: Sequence[int], recipe: Recipe, rng: np.random.Generator) -> PairParams:
    """Sample flips for a patch and corruptions for its channels.

    Args:
        shape: Shape (C, *spatial) of the patch; 2D or 3D, every axis at least 1.
        recipe: Rates and sizes.
        rng: Source of randomness; advanced.

    Raises:
        DatasetError: The shape has not two or three spatial axes, or an empty one.
    """
    if not 3 <= len(shape) <= 4 or min(shape) < 1:
        raise DatasetError(f"A patch needs channels and two or three spatial axes, none empty, not {tuple(shape)}.")
    count, *spatial = (int(edge) for edge in shape)
    flips = tuple(axis for axis in range(len(spatial)) if rng.random() < recipe.flip_probability)
    params = [corruption.sample_channels(count, spatial, rng) for corruption in recipe.corruptions.values()]
    return PairParams((count, *spatial), flips, tuple(zip(*params, strict=True)), recipe.range_percentiles)


def apply_params(
    patch: Tensor, params: PairParams, ignored: Tensor | None = None, room: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Make the (corrupted, target) pair of a patch on the CPU, both mirrored alike.

    Args:
        patch: Tensor (C, *spatial) on the CPU, floating, any intensity unit; not touched.
        params: What `sample_params` gave for this shape.
        ignored: Voxels that are not to be restored, bool (*spatial); corrupted like the others.
        room: What `room_for` gave for this shape and type, to write to; memory that was used before takes less time.

    Returns:
        Two tensors of the same shape and type: those in `room`, or new ones. The corrupted one is computed in float32
        or wider. The value range of each channel is that of the clean channel. NaN stays in its place, but for
        shuffling, which moves it like any value. The target is the clean patch, with NaN in what is ignored and where
        a corruption wants no restoration.

    Raises:
        DatasetError: The patch has another shape than was sampled for, or holds whole numbers; the room is for others.

    Order and odds are those of Models Genesis (Zhou et al., MICCAI 2019 and MedIA 2021). How ours differs:
    every channel is corrupted by itself, with its own odds and its own intensities; flips are sampled once per
    axis.
    """
    _check(patch, params)
    corrupted, target = room or room_for(patch)
    if not (_kind(patch) == _kind(corrupted) == _kind(target)):
        raise DatasetError(
            f"The room for a pair is for {_kind(corrupted)} and {_kind(target)}, not for a patch of {_kind(patch)}: "
            "take what room_for gives for this patch."
        )
    _mirror(patch, target, params)
    wide = corrupted if corrupted.itemsize > 2 else room_for(patch.float())[0]
    wide.copy_(target)
    for clean, channel, corruptions in zip(target, wide, params.channels, strict=True):
        if any(corruptions):
            low, high = value_range(clean, params.percentiles)
            _corrupt(channel, [*filter(None, corruptions)], low, high)
    _apply_loss_masks(target, params, ignored)
    return corrupted if corrupted is wide else corrupted.copy_(wide), target


def room_for(patch: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the pair of a patch (C, *spatial), and for those of others of its shape and type after it.

    Numpy's, which has huge pages: at 160³ a third less time for shuffling than in torch's.
    """
    bits = patch.view(_BITS[patch.itemsize]).numpy()  # numpy does not know bfloat16
    corrupted, target = (torch.from_numpy(np.empty(bits.shape, bits.dtype)).view(patch.dtype) for _ in range(2))
    return corrupted, target


def make_pair(patch: Tensor, recipe: Recipe, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Sample and apply: the (corrupted, target) pair of a patch (C, *spatial), which is not touched."""
    return apply_params(patch, sample_params(patch.shape, recipe, rng))


def compile_loops() -> None:
    """Compile the loops over voxels (or read it from disk), so that processes forked afterwards need not."""
    for recipe in (*RECIPES["paper"].alone().values(), RECIPES["masking"]):
        make_pair(torch.arange(64.0).view(1, 4, 4, 4), recipe, np.random.default_rng(0))


def _check(patch: Tensor, params: PairParams) -> None:
    if tuple(patch.shape) != params.shape or not patch.is_floating_point():
        raise DatasetError(
            f"Corruptions were sampled for a patch of floating numbers with shape {params.shape}, "
            f"not {patch.dtype} with shape {tuple(patch.shape)}: sample again for this patch."
        )


def _kind(patch: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return patch.dtype, tuple(patch.shape)


def _corrupt(channel: Tensor, corruptions: Sequence[Params], low: float, high: float) -> None:
    """Apply one after another, in place, and not where the next one overwrites all."""
    for one, following in zip_longest(corruptions, corruptions[1:]):
        kept = following.kept(channel.shape) if following else None
        one.apply_where_kept(channel, low, high, kept or whole(channel.shape))


def _mirror(patch: Tensor, mirrored: Tensor, params: PairParams) -> None:
    """Copy a patch, mirrored, to another place; where patches are mirrored, but for what is ignored."""
    flips = tuple(axis in params.flips for axis in range(patch.ndim - 1))
    bits = _BITS[patch.itemsize]
    for source, goal in zip(patch.contiguous().view(bits).numpy(), mirrored.view(bits).numpy(), strict=True):
        if patch.ndim == 3:
            mirror(source[None], goal[None], (False, *flips))
        else:
            mirror(source, goal, flips)


def _apply_loss_masks(target: Tensor, params: PairParams, ignored: Tensor | None) -> None:
    """Put NaN, in place, where nothing is to be restored."""
    if ignored is not None:
        target.masked_fill_(ignored.flip(params.flips), torch.nan)
    for channel, corruptions in zip(target, params.channels, strict=True):
        for one in filter(None, corruptions):
            one.leave_out(channel)
