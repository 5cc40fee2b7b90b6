"""Pairs to learn from: a patch goes in, its corrupted copy and what is to be restored come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nnunet_genesis.corruption.corruption import Drawing
from nnunet_genesis.corruption.recipe import RECIPES, Recipe
from nnunet_genesis.corruption.value_range import value_range, value_ranges
from nnunet_genesis.errors import DatasetError


@dataclass(frozen=True)
class Drawn:
    """Everything that was drawn for one patch; applied again, it gives the same pair, bit for bit.

    Attributes:
        shape: Shape (C, *spatial) of the patch.
        flips: Spatial axes (0 is the first one) to mirror.
        channels: For each channel what was drawn of each corruption, in order; None: it does not take place.
        percentiles: Percentiles of a channel that give its value range.
    """

    shape: tuple[int, ...]
    flips: tuple[int, ...]
    channels: tuple[tuple[Drawing | None, ...], ...]
    percentiles: tuple[float, float]


def draw(shape: Sequence[int], recipe: Recipe, rng: np.random.Generator) -> Drawn:
    """Draw flips for a patch and corruptions for its channels.

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
    drawn = [corruption.draw_channels(count, spatial, rng) for corruption in recipe.corruptions.values()]
    return Drawn((count, *spatial), flips, tuple(zip(*drawn, strict=True)), recipe.range_percentiles)


def flipped(patch: Tensor, drawn: Drawn) -> Tensor:
    """A mirrored copy of the patch (C, *spatial)."""
    return patch.flip([axis + 1 for axis in drawn.flips]).contiguous()


def corrupt(patch: Tensor, drawn: Drawn) -> Tensor:
    """Apply what was drawn, except the flips, on the CPU.

    Args:
        patch: Tensor (C, *spatial) on the CPU, floating, any intensity unit; not touched.
        drawn: What `draw` gave for this shape.

    Returns:
        New tensor of the same shape and type, computed in float32 or wider. The value range of each channel is that
        of the clean channel. NaN stays in its place, but for shuffling, which moves it like any value.

    Raises:
        DatasetError: The patch has another shape than was drawn for, or holds whole numbers.

    Order and odds are those of Models Genesis (Zhou et al., MICCAI 2019 and MedIA 2021). How ours differs:
    every channel is corrupted by itself, with its own odds and its own intensities; flips are drawn once per
    axis.
    """
    _check(patch.shape, patch, [drawn])
    # numpy copies into huge pages: at 160³ a third less time for shuffling than in torch's memory
    corrupted = torch.from_numpy(np.array(_wide(patch).numpy(), order="C"))
    for clean, channel, drawings in zip(patch, corrupted, drawn.channels, strict=True):
        if any(drawings):
            low, high = value_range(clean, drawn.percentiles)
            for drawing in filter(None, drawings):
                drawing.apply(channel, low, high)
    return corrupted.to(patch.dtype)


def corrupt_batch(patches: Tensor, drawn: Sequence[Drawn]) -> Tensor:
    """Apply what was drawn, except the flips, to a batch on any device.

    Like `corrupt` for each patch, with other permutations and other noise from the same distributions: they follow
    from the drawn seeds and the kind of device.

    Args:
        patches: Tensor (B, C, *spatial), floating; not touched.
        drawn: What `draw` gave, one for each patch, all by recipes with the same percentiles.

    Raises:
        DatasetError: A patch has another shape than was drawn for, or the patches hold whole numbers.
    """
    _check(patches.shape[1:], patches, drawn)
    channels = _wide(patches).flatten(0, 1).clone(memory_format=torch.contiguous_format)
    low, high = value_ranges(channels, drawn[0].percentiles)
    drawings = [drawing for patch in drawn for drawing in patch.channels]
    for corruption in zip(*drawings, strict=True):
        made = {n: drawing for n, drawing in enumerate(corruption) if drawing is not None}
        if made:
            places = torch.tensor(list(made), device=channels.device)
            part = channels[places]
            kind = type(next(iter(made.values())))
            kind.apply_batch(list(made.values()), part, low[places], high[places])
            channels[places] = part
    return channels.view(patches.shape).to(patches.dtype)


def to_restore(clean: Tensor, drawn: Drawn) -> Tensor:
    """The target: the clean patch (C, *spatial), or a copy with NaN where a corruption wants no restoration."""
    target = clean
    for n, drawings in enumerate(drawn.channels):
        masks = [drawing.scored(clean.shape[1:]) for drawing in drawings if drawing is not None]
        for scored in (mask for mask in masks if mask is not None):
            target = target.clone() if target is clean else target
            target[n].masked_fill_(~scored.to(clean.device), torch.nan)
    return target


def replay(patch: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
    """The (corrupted, target) pair of a patch, both mirrored alike; see `corrupt` and `to_restore`."""
    clean = flipped(patch, drawn)
    return corrupt(clean, drawn), to_restore(clean, drawn)


def make_pair(patch: Tensor, recipe: Recipe, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw and apply: the (corrupted, target) pair of a patch (C, *spatial), which is not touched."""
    return replay(patch, draw(patch.shape, recipe, rng))


def compile_loops() -> None:
    """Compile what the CPU path needs (or read it from disk), so that processes forked afterwards need not."""
    for recipe in RECIPES["paper"].alone().values():
        make_pair(torch.arange(64.0).view(1, 4, 4, 4), recipe, np.random.default_rng(0))


def _check(shape: Sequence[int], patches: Tensor, drawn: Sequence[Drawn]) -> None:
    for one in drawn:
        if tuple(shape) != one.shape or not patches.is_floating_point():
            raise DatasetError(
                f"Corruptions were drawn for a patch of floating numbers with shape {one.shape}, "
                f"not {patches.dtype} with shape {tuple(shape)}: draw again for this patch."
            )


def _wide(patches: Tensor) -> Tensor:
    """As float32, or float64 if they are: the same tensor where nothing is to be done."""
    return patches.to(torch.promote_types(patches.dtype, torch.float32))
