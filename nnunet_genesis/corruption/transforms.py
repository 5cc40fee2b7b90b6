"""The face to batchgeneratorsv2: corruptions and pairs as transforms of a data dictionary."""

from __future__ import annotations

from typing import Any

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from nnunet_genesis.corruption.pair import corrupt, draw, replay
from nnunet_genesis.corruption.recipe import Recipe


class CorruptionTransform(BasicTransform):
    """Corrupts "image" (C, *spatial) and nothing else; the flips of the recipe are left out.

    `CorruptionTransform(recipe.alone()["intensity"], rng)` is a single corruption.

    Args:
        recipe: Rates and sizes.
        rng: Source of randomness, owned by this transform. A forked or pickled copy draws the same values:
            give each process its own.
    """

    def __init__(self, recipe: Recipe, rng: np.random.Generator) -> None:
        """Keep recipe and generator."""
        super().__init__()
        self.recipe = recipe
        self.rng = rng

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Draw for the shape of "image"."""
        return {"drawn": draw(data_dict["image"].shape, self.recipe, self.rng)}

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Put the corrupted patch into the dictionary; the tensor that was there is not touched."""
        data_dict["image"] = corrupt(data_dict["image"], params["drawn"])
        return data_dict


class RestorationPairTransform(CorruptionTransform):
    """Makes a restoration task of "image" (C, *spatial): what to restore, and what from.

    "image" becomes the corrupted patch, "segmentation" the clean one (floating; nnU-Net's data loader
    delivers it as the target), "regression_target" too where the key is present. All are mirrored alike.
    """

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Put the pair into the dictionary; the tensors that were there are not touched."""
        data_dict["image"], target = replay(data_dict["image"], params["drawn"])
        data_dict["segmentation"] = target
        if "regression_target" in data_dict:
            data_dict["regression_target"] = target.clone()
        return data_dict
