"""Recipes that shuffle exactly half of the patches, so that chance does not decide what a sample costs."""

from __future__ import annotations

from dataclasses import replace

from nnunet_genesis.corruption import Recipe


def strata(recipe: Recipe) -> tuple[Recipe, Recipe]:
    """A recipe that shuffles half of the patches → one that shuffles none and one that shuffles all of them."""
    if recipe.shuffling.probability != 0.5:
        raise ValueError("half of the pairs stand for shuffled patches")
    never, always = (replace(recipe, shuffling=replace(recipe.shuffling, probability=p)) for p in (0.0, 1.0))
    return never, always
