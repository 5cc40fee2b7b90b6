"""Pairs to learn from: a patch goes in, its corrupted copy and its clean copy come out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_genesis.corruption.curve import Curve, bend, draw_curve
from nnunet_genesis.corruption.painting import Painting, draw_painting, paint
from nnunet_genesis.corruption.recipe import Recipe
from nnunet_genesis.corruption.shuffle import Shuffle, draw_shuffle, shuffle
from nnunet_genesis.corruption.value_range import value_range
from nnunet_genesis.errors import DatasetError


@dataclass(frozen=True)
class DrawnChannel:
    """What was drawn for one channel; None stands for a corruption that does not take place."""

    shuffle: Shuffle | None
    curve: Curve | None
    painting: Painting | None


@dataclass(frozen=True)
class Drawn:
    """Everything that was drawn for one patch: plain numbers that rebuild the same pair, bit for bit.

    Attributes:
        shape: Shape (C, *spatial) of the patch.
        flips: Spatial axes (0 is the first one) to mirror.
        channels: One entry for each channel.
        percentiles: Percentiles of a channel that give its value range.
    """

    shape: tuple[int, ...]
    flips: tuple[int, ...]
    channels: tuple[DrawnChannel, ...]
    percentiles: tuple[float, float]

    def block(self) -> dict[str, Any]:
        """The same numbers as JSON types."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

    @classmethod
    def read(cls, block: Mapping[str, Any]) -> Drawn:
        """Rebuild from what `block` gave."""
        return cls(
            shape=_frozen(block["shape"]),
            flips=_frozen(block["flips"]),
            channels=tuple(
                DrawnChannel(
                    shuffle=_rebuilt(Shuffle, channel["shuffle"]),
                    curve=_rebuilt(Curve, channel["curve"]),
                    painting=_rebuilt(Painting, channel["painting"]),
                )
                for channel in block["channels"]
            ),
            percentiles=_frozen(block["percentiles"]),
        )


def draw(shape: Sequence[int], recipe: Recipe, rng: np.random.Generator) -> Drawn:
    """Draw flips for a patch and corruptions for each of its channels, independently as if it were alone.

    Args:
        shape: Shape (C, *spatial) of the patch; 2D or 3D, every axis at least 1.
        recipe: Rates and sizes.
        rng: Source of randomness; advanced.

    Raises:
        DatasetError: The shape has no spatial axis or an empty axis.
    """
    if len(shape) < 2 or min(shape) < 1:
        raise DatasetError(f"A patch needs channels and spatial axes, none empty, not shape {tuple(shape)}.")
    spatial = tuple(int(edge) for edge in shape[1:])
    flips = tuple(axis for axis in range(len(spatial)) if rng.random() < recipe.flip_probability)
    channels = tuple(_draw_channel(spatial, recipe, rng) for _ in range(shape[0]))
    return Drawn((int(shape[0]), *spatial), flips, channels, recipe.range_percentiles)


def flipped(patch: Tensor, drawn: Drawn) -> Tensor:
    """A mirrored copy of the patch (C, *spatial)."""
    return patch.flip([axis + 1 for axis in drawn.flips]).contiguous()


def corrupt(patch: Tensor, drawn: Drawn) -> Tensor:
    """Apply what was drawn, except the flips.

    Args:
        patch: Tensor (C, *spatial), floating, any intensity unit; not touched.
        drawn: What `draw` gave for this shape.

    Returns:
        New tensor of the same shape and type. Each channel is shuffled, then its intensities are bent, then
        it is painted; its value range is that of the clean channel.

    Raises:
        DatasetError: The patch has another shape than was drawn for, or holds whole numbers.

    Order and odds are those of Models Genesis (Zhou et al., MICCAI 2019 and MedIA 2021). How ours differs:
    every channel is corrupted by itself, with its own odds and its own intensities; flips are drawn once per
    axis.
    """
    if tuple(patch.shape) != drawn.shape or not patch.is_floating_point():
        raise DatasetError(
            f"Corruptions were drawn for a patch of floating numbers with shape {drawn.shape}, "
            f"not {patch.dtype} with shape {tuple(patch.shape)}: draw again for this patch."
        )
    pairs = zip(patch, drawn.channels, strict=True)
    return torch.stack([_corrupt_channel(clean, channel, drawn.percentiles) for clean, channel in pairs])


def replay(patch: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
    """The (corrupted, clean) pair of a patch, both mirrored alike; see `corrupt`."""
    clean = flipped(patch, drawn)
    return corrupt(clean, drawn), clean


def make_pair(patch: Tensor, recipe: Recipe, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw and apply: the (corrupted, clean) pair of a patch (C, *spatial), which is not touched."""
    return replay(patch, draw(patch.shape, recipe, rng))


def _draw_channel(spatial: tuple[int, ...], recipe: Recipe, rng: np.random.Generator) -> DrawnChannel:
    shuffling = curve = painting = None
    if rng.random() < recipe.shuffle_probability:
        shuffling = draw_shuffle(spatial, recipe.shuffle_windows, recipe.shuffle_extent, recipe.shuffle_cover, rng)
    if rng.random() < recipe.curve_probability:
        curve = draw_curve(recipe.curve_decreasing, rng)
    if rng.random() < recipe.painting_probability:
        outer = bool(rng.random() < recipe.outer_share)
        painting = draw_painting(
            spatial,
            outer,
            recipe.outer_extent if outer else recipe.inner_extent,
            recipe.cutout_windows,
            recipe.further_window,
            recipe.cutout_margin,
            recipe.cutout_limit,
            rng,
        )
    return DrawnChannel(shuffling, curve, painting)


def _corrupt_channel(clean: Tensor, drawn: DrawnChannel, percentiles: tuple[float, float]) -> Tensor:
    corrupted = clean
    if drawn.shuffle is not None:
        corrupted = shuffle(corrupted, drawn.shuffle)
    if drawn.curve is None and drawn.painting is None:
        return corrupted
    low, high = value_range(clean, percentiles)
    if drawn.curve is not None:
        corrupted = bend(corrupted, drawn.curve, low, high)
    if drawn.painting is not None:
        corrupted = paint(corrupted, drawn.painting, low, high)
    return corrupted


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(entry) for entry in value) if isinstance(value, list | tuple) else value


def _rebuilt(kind: type, block: Mapping[str, Any] | None) -> Any:
    return None if block is None else kind(**{key: _frozen(entry) for key, entry in block.items()})
