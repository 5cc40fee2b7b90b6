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
    """How often and how strongly patches are corrupted; the defaults are those of the recipe "released".

    Probabilities hold per channel (flips: per axis). Sizes are shares of the patch edge, so that one recipe
    fits every patch size. From Models Genesis (Zhou et al., MICCAI 2019 and MedIA 2021); "paper" follows the
    text, "released" the published code. How ours differs: sizes give way where a patch is too thin for them,
    and the limit on the replaced share (`cutout_limit`) always holds.
    """

    flip_probability: float = _probability(0.5, "Probability, per axis, to mirror the patch and its target.")
    shuffle_probability: float = _probability(0.5, "Probability of local shuffling.")
    shuffle_windows: int = setting(10_000, "Number of windows whose voxels are shuffled.", at_least=1)
    shuffle_extent: float = setting(
        0.1, "Longest edge of a shuffled window, as share of the patch edge.", above=0, at_most=1
    )
    shuffle_cover: float = setting(
        2.5, "Most times that the shuffled windows cover the patch, on average; limits their number.", above=0
    )
    curve_probability: float = _probability(0.9, "Probability of a non-linear intensity curve.")
    curve_decreasing: float = _probability(0.5, "Share of curves that invert the contrast.")
    painting_probability: float = _probability(0.9, "Probability of a cutout.")
    outer_share: float = _probability(0.8, "Share of cutouts that replace what lies outside the windows.")
    cutout_windows: int = setting(5, "Most windows of a cutout.", at_least=1)
    further_window: float = _probability(0.95, "Probability of each window after the first.")
    outer_extent: tuple[float, float] = _share(
        (3 / 7, 4 / 7),
        "Shortest and longest edge of a kept window (outer cutout), as share of the patch edge.",
    )
    inner_extent: tuple[float, float] = _share(
        (1 / 6, 1 / 3),
        "Shortest and longest edge of a replaced window (inner cutout), as share of the patch edge.",
    )
    cutout_limit: float = _probability(1.0, "Largest share of the patch that a cutout may replace.")
    cutout_margin: int = setting(3, "Voxels between a cutout window and the patch border.", at_least=0)
    range_percentiles: tuple[float, float] = setting(
        (0.5, 99.5), "Percentiles of the channel that span curves and noise.", at_least=0, at_most=100
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
    "paper": Recipe(
        shuffle_windows=1_000,
        cutout_windows=10,
        outer_extent=(0.6, 0.95),
        inner_extent=(0.1, 0.4),
        cutout_limit=0.25,
        cutout_margin=0,
    ),
    "released": Recipe(),
}


def read_recipe(value: str | Mapping[str, Any], where: str) -> Recipe:
    """Find or make a recipe.

    Args:
        value: A name from RECIPES, or a block of settings. The block's key "name" (default "released") is the
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
    base = _named(value.get("name", "released"), where)
    given = {key: entry for key, entry in value.items() if key != "name"}
    return Recipe.read({**base.block(), **given}, where)


def _named(name: Any, where: str) -> Recipe:
    if not isinstance(name, str) or name not in RECIPES:
        raise SettingsError(f"Unknown recipe {name!r} in {where}: choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]
