"""The face to batchgeneratorsv2: corruptions and pairs as transforms of a data dictionary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from nnunet_genesis.corruption.pair import apply_params, sample_params
from nnunet_genesis.corruption.recipe import Recipe


class RestorationPairTransform(BasicTransform):
    """Makes a restoration task of "image" (C, *spatial): what to restore, and what from.

    "image" becomes the corrupted patch, "segmentation" the clean one (floating; nnU-Net's data loader
    delivers it as the target), "regression_target" too where the key is present. All are mirrored alike.

    Args:
        recipe: Rates and sizes.
        rng: Source of randomness. By default every patch has one of its own, seeded by the system: copies of a given
            one, as forked processes have them, all give the same corruptions.
    """

    def __init__(self, recipe: Recipe, rng: np.random.Generator | None = None) -> None:
        """Keep recipe and generator."""
        super().__init__()
        self.recipe = recipe
        self.rng = rng

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Sample for the shape of "image"."""
        rng = np.random.default_rng() if self.rng is None else self.rng
        return {"params": sample_params(data_dict["image"].shape, self.recipe, rng)}

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Put the pair into the dictionary; the tensors that were there are not touched."""
        data_dict["image"], target = apply_params(data_dict["image"], params["params"])
        data_dict["segmentation"] = target
        if "regression_target" in data_dict:
            data_dict["regression_target"] = target.clone()
        return data_dict


class CorruptionTransform(RestorationPairTransform):
    """Corrupts "image" (C, *spatial) and nothing else, as an augmentation; the flips of the recipe are left out.

    `CorruptionTransform(recipe.alone()["intensity"])` is a single corruption.

    Args:
        recipe: Rates and sizes.
        rng: As in `RestorationPairTransform`.
    """

    def __init__(self, recipe: Recipe, rng: np.random.Generator | None = None) -> None:
        """Keep the recipe, without flips: what else is in the dictionary would not be mirrored."""
        super().__init__(replace(recipe, flip_probability=0.0), rng)

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Put the corrupted patch into the dictionary; the tensor that was there is not touched."""
        data_dict["image"], _ = apply_params(data_dict["image"], params["params"])
        return data_dict
