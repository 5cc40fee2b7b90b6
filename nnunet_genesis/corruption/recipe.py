"""Rates and sizes of all corruptions, as one checked block of settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunet_genesis.errors import SettingsError
from nnunet_genesis.validated import Settings, setting

CORRUPTIONS = ("intensity", "shuffling", "outer_cutout", "inner_cutout")


def _probability(default: float, text: str) -> Any:
    return setting(default, text, at_least=0, at_most=1)


def _share(default: tuple[float, float], text: str) -> Any:
    return setting(default, text, at_least=0, at_most=1)


@dataclass(frozen=True)
class Recipe(Settings):
    """How often and how strongly patches are corrupted; the defaults are the recipe "paper".

    Probabilities hold per channel (flips: per axis). Sizes are shares of the patch edge, so that one recipe
    fits every patch size. From Models Genesis (Zhou et al., MICCAI 2019 and MedIA 2021); "paper" follows the
    text, "released" the published code. "paper" does not flip: the orientation of the anatomy helps to tell
    inverted from plain contrast, and flipped patches are learned much more slowly. How ours differs: sizes give
    way where a patch is too thin for them, and the limit on the replaced share (`cutout_limit`) always holds.
    """

    flip_probability: float = _probability(0.0, "probability, per axis, to mirror the patch and its target")
    shuffle_probability: float = _probability(0.5, "probability of local shuffling")
    shuffle_windows: int = setting(1_000, "number of windows whose voxels are shuffled", at_least=1)
    shuffle_extent: float = setting(
        0.1, "longest edge of a shuffled window, as share of the patch edge", above=0, at_most=1
    )
    shuffle_cover: float = setting(
        2.5, "most times that the shuffled windows cover the patch, on average; limits their number", above=0
    )
    curve_probability: float = _probability(0.9, "probability of a non-linear intensity curve")
    curve_decreasing: float = _probability(0.5, "share of curves that invert the contrast")
    painting_probability: float = _probability(0.9, "probability of a cutout")
    outer_share: float = _probability(0.8, "share of cutouts that replace what lies outside their windows")
    cutout_windows: int = setting(10, "most windows of a cutout", at_least=1)
    further_window: float = _probability(0.95, "probability of each window after the first")
    outer_extent: tuple[float, float] = _share(
        (0.6, 0.95), "shortest and longest edge of a kept window (outer cutout), as share of the patch edge"
    )
    inner_extent: tuple[float, float] = _share(
        (0.1, 0.4), "shortest and longest edge of a replaced window (inner cutout), as share of the patch edge"
    )
    cutout_limit: float = _probability(0.25, "largest share of the patch that a cutout may replace")
    cutout_margin: int = setting(0, "voxels between a cutout window and the patch border", at_least=0)
    range_percentiles: tuple[float, float] = setting(
        (0.5, 99.5), "percentiles of the channel that span curves and noise", at_least=0, at_most=100
    )

    def only(self, name: str) -> Recipe:
        """This recipe with a single corruption, always applied, and without flips.

        Args:
            name: One of CORRUPTIONS.

        Raises:
            SettingsError: Unknown name.
        """
        if name not in CORRUPTIONS:
            raise SettingsError(f'Unknown corruption "{name}": choose one of {", ".join(CORRUPTIONS)}.')
        return dataclasses.replace(
            self,
            flip_probability=0.0,
            shuffle_probability=float(name == "shuffling"),
            curve_probability=float(name == "intensity"),
            painting_probability=float(name.endswith("cutout")),
            outer_share=float(name == "outer_cutout"),
        )


RECIPES: dict[str, Recipe] = {
    "paper": Recipe(),
    "released": Recipe(
        flip_probability=0.2,  # as many flips, on average, as the code's loop gives
        shuffle_windows=10_000,
        cutout_windows=5,
        outer_extent=(3 / 7, 4 / 7),
        inner_extent=(1 / 6, 1 / 3),
        cutout_limit=1.0,
        cutout_margin=3,
    ),
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
    given = {key: entry for key, entry in value.items() if key != "name"}
    return Recipe.read({**base.block(), **given}, where)


def _named(name: Any, where: str) -> Recipe:
    if not isinstance(name, str) or name not in RECIPES:
        raise SettingsError(f"Unknown recipe {name!r} in {where}: choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]
