"""All corruptions with their settings, in order of application, as one checked block of the plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from nnunet_genesis.corruption.corruption import Corruption
from nnunet_genesis.corruption.cutout import Cutout
from nnunet_genesis.corruption.intensity import Intensity
from nnunet_genesis.corruption.masking import Masking
from nnunet_genesis.corruption.shuffling import Shuffling
from nnunet_genesis.errors import SettingsError
from nnunet_genesis.settings_base import Settings, setting


@dataclass(frozen=True)
class Recipe(Settings):
    """How often and how strongly patches are corrupted; the defaults are the recipe "paper".

    Corruptions are applied to each channel in the order in which they stand here. Sizes are shares of the patch edge,
    so that one recipe fits every patch size. From Models Genesis (Zhou et al., MICCAI 2019 and MedIA 2021); "paper"
    follows the text, "released" the published code. "paper" does not flip: the orientation of the anatomy helps to
    tell inverted from plain contrast, and flipped patches are learned much more slowly. How ours differs: sizes give
    way where a patch is too thin for them, and the limit on the replaced share (cutout's `max_replaced`) always holds.
    """

    flip_probability: float = setting(
        0.0, "probability, per axis, to mirror the patch and its target", at_least=0, at_most=1
    )
    range_percentiles: tuple[float, float] = setting(
        (0.5, 99.5), "percentiles of the channel that span curves and noise", at_least=0, at_most=100
    )
    shuffling: Shuffling = field(default=Shuffling())
    intensity: Intensity = field(default=Intensity())
    cutout: Cutout = field(default=Cutout())
    masking: Masking = field(default=Masking())

    @property
    def corruptions(self) -> dict[str, Corruption]:
        """Names and settings of all corruptions, in order of application."""
        blocks = {declared.name: getattr(self, declared.name) for declared in fields(self)}
        return {name: block for name, block in blocks.items() if isinstance(block, Corruption)}

    def fitted(self, stride: Sequence[int]) -> Recipe:
        """This recipe for a network whose encoder has a total stride, one number per axis of its patches.

        Raises:
            SettingsError: Masking has cells of another number of axes.
        """
        return replace(self, masking=self.masking.fitted(stride))

    def alone(self) -> dict[str, Recipe]:
        """For each corruption that this recipe uses: a recipe with that one only, always applied, without flips."""
        used = {name: block for name, block in self.corruptions.items() if block.probability > 0}
        return {
            single: self.without()._with({name: settings})
            for name, block in used.items()
            for single, settings in block.alone(name).items()
        }

    def without(self) -> Recipe:
        """This recipe with all probabilities 0: it changes nothing."""
        never = {name: replace(block, probability=0.0) for name, block in self.corruptions.items()}
        return replace(self._with(never), flip_probability=0.0)

    def _with(self, blocks: dict[str, Any]) -> Recipe:
        return replace(self, **blocks)


_PAPER = Recipe()
RECIPES: dict[str, Recipe] = {
    "paper": _PAPER,
    "released": Recipe(
        flip_probability=0.2,  # as many flips, on average, as the code's loop gives
        shuffling=Shuffling(windows=10_000),
        cutout=Cutout(
            windows=5, outer_window_size=(3 / 7, 4 / 7), inner_window_size=(1 / 6, 1 / 3), max_replaced=1.0, margin=3
        ),
    ),
    "masking": replace(_PAPER.without(), masking=Masking(probability=1.0)),
    "mae": replace(_PAPER.without(), masking=Masking(probability=1.0, cell_size=0, masked_as="absent")),
}


def read_recipe(value: str | Mapping[str, Any], where: str) -> Recipe:
    """Find or make a recipe.

    Args:
        value: A name from RECIPES, or a block of settings. The block's key "name" (default "paper") is the
            recipe that gives all values the block does not.
        where: Where the value stands, for error messages.

    Raises:
        SettingsError: Unknown name, unknown key, wrong type or value out of range; names the culprit.
    """
    if isinstance(value, str):
        return _named(value, where)
    if not isinstance(value, Mapping):
        known = " or ".join(f'"{name}"' for name in RECIPES)
        raise SettingsError(f"{where} must be {known} or a block of settings in braces, not {value!r}.")
    base = _named(value.get("name", "paper"), where)
    return base.updated({key: entry for key, entry in value.items() if key != "name"}, where)


def _named(name: Any, where: str) -> Recipe:
    if not isinstance(name, str) or name not in RECIPES:
        raise SettingsError(f"Unknown recipe {name!r} in {where}: choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]
