"""Recipes and params that shuffle exactly half of the patches, so that chance does not decide what a sample costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nnunet_genesis.corruption import PairParams, Recipe, sample_params

BATCH = 2
"""Patches per batch of the batched path."""


def strata(recipe: Recipe) -> tuple[Recipe, Recipe]:
    """A recipe that shuffles half of the patches → one that shuffles none and one that shuffles all of them."""
    if recipe.shuffling.probability != 0.5:
        raise ValueError("half of the pairs stand for shuffled patches")
    never, always = (replace(recipe, shuffling=replace(recipe.shuffling, probability=p)) for p in (0.0, 1.0))
    return never, always


def batches_of(recipe: Recipe, shape: Sequence[int], count: int) -> list[list[PairParams]]:
    """Params for `count` batches: equally many with none, the first, the second or both patches shuffled."""
    halves, rng = strata(recipe), np.random.default_rng(0)
    return [[sample_params(shape, halves[k >> place & 1], rng) for place in range(BATCH)] for k in range(count)]
