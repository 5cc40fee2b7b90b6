"""Pairs to learn from: a patch goes in, its corrupted copy and what is to be restored come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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


def apply_params(patch: Tensor, params: PairParams, ignored: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Make the (corrupted, target) pair of a patch on the CPU, both mirrored alike.

    Args:
        patch: Tensor (C, *spatial) on the CPU, floating, any intensity unit; not touched.
        params: What `sample_params` gave for this shape.
        ignored: Voxels that are not to be restored, bool (*spatial); corrupted like the others.

    Returns:
        Two new tensors of the same shape and type. The corrupted one is computed in float32 or wider. The value range
        of each channel is that of the clean channel. NaN stays in its place, but for shuffling, which moves it like
        any value. The target is the clean patch, with NaN in what is ignored and where a corruption wants no
        restoration.

    Raises:
        DatasetError: The patch has another shape than was sampled for, or holds whole numbers.

    Order and odds are those of Models Genesis (Zhou et al., MICCAI 2019 and MedIA 2021). How ours differs:
    every channel is corrupted by itself, with its own odds and its own intensities; flips are sampled once per
    axis.
    """
    _check(patch, params)
    target = _flipped(patch, params)
    # numpy copies into huge pages: at 160³ a third less time for shuffling than in torch's memory
    corrupted = torch.from_numpy(np.array(_wide(target).numpy(), order="C"))
    for clean, channel, corruptions in zip(target, corrupted, params.channels, strict=True):
        if any(corruptions):
            low, high = value_range(clean, params.percentiles)
            for one in filter(None, corruptions):
                one.apply(channel, low, high)
    _apply_loss_masks(target, params, ignored)
    return corrupted.to(patch.dtype), target


def make_pair(patch: Tensor, recipe: Recipe, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Sample and apply: the (corrupted, target) pair of a patch (C, *spatial), which is not touched."""
    return apply_params(patch, sample_params(patch.shape, recipe, rng))


def compile_loops() -> None:
    """Compile the loops over voxels (or read it from disk), so that processes forked afterwards need not."""
    for recipe in RECIPES["paper"].alone().values():
        make_pair(torch.arange(64.0).view(1, 4, 4, 4), recipe, np.random.default_rng(0))


def _check(patch: Tensor, params: PairParams) -> None:
    if tuple(patch.shape) != params.shape or not patch.is_floating_point():
        raise DatasetError(
            f"Corruptions were sampled for a patch of floating numbers with shape {params.shape}, "
            f"not {patch.dtype} with shape {tuple(patch.shape)}: sample again for this patch."
        )


def _flipped(patch: Tensor, params: PairParams) -> Tensor:
    """A mirrored copy (C, *spatial); the only place where patches are mirrored.

    In numpy's memory, like the corrupted one: where torch's and numpy's take turns, a process keeps up to eight copies.
    """
    bits = patch.view(_BITS[patch.itemsize]).numpy()  # numpy does not know bfloat16
    mirrored = np.array(np.flip(bits, tuple(axis + 1 for axis in params.flips)), order="C")
    return torch.from_numpy(mirrored).view(patch.dtype)


def _apply_loss_masks(target: Tensor, params: PairParams, ignored: Tensor | None) -> None:
    """Put NaN, in place, where nothing is to be restored."""
    if ignored is not None:
        target.masked_fill_(ignored.flip(params.flips), torch.nan)
    for channel, corruptions in zip(target, params.channels, strict=True):
        for one in filter(None, corruptions):
            if (mask := one.loss_mask(channel.shape)) is not None:
                channel.masked_fill_(~mask, torch.nan)


def _wide(patch: Tensor) -> Tensor:
    """As float32, or float64 if it is: the same tensor where nothing is to be done."""
    return patch.to(torch.promote_types(patch.dtype, torch.float32))
