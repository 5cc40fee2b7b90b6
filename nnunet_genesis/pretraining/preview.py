"""A preprocessed dataset with plans → a picture of its patches under every corruption alone and under the recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_genesis.corruption import RECIPES, Recipe, make_pair
from nnunet_genesis.errors import DatasetError, GenesisError
from nnunet_genesis.nnunet_dataset import channel_names, configuration_of, read_dataset_json, read_plans, refuse_cascade
from nnunet_genesis.pretraining.figures import corruption_sheet
from nnunet_genesis.pretraining.patches import VALIDATION, PatchBatches, fitted
from nnunet_genesis.pretraining.volumes import JoinedVolumes, volumes_folders
from nnunet_genesis.settings import PretrainingSettings

MIXTURES = 3
"""Columns that show what the recipe makes of a patch, each with params of its own."""

MOST_ROWS = 50

HEADINGS = {"outer_cutout": "outer cutout\n(out-painting)", "inner_cutout": "inner cutout\n(in-painting)"}
"""What columns are called where the name of a corruption is not enough: as in Models Genesis, too."""


@dataclass(frozen=True)
class Preview:
    """What `preview` drew: the cases, and whether the plans had no settings for pre-training, so that defaults hold."""

    cases: list[str]
    defaults: bool


def preview(
    dataset: str,
    plans_name: str,
    configuration: str,
    picture: Path,
    *,
    recipe: str | None = None,
    channel: str | None = None,
    rows: int = 3,
) -> Preview:
    """Draw patches of different cases, cut as in pre-training: original, each corruption alone, mixtures without flips.

    Seed, recipe and patch size are those of the plans: the same plans and volumes give the same picture.

    Args:
        dataset: Name of a dataset whose volumes are preprocessed, with or without labels.
        plans_name: Name of its plans.
        configuration: A configuration of these plans.
        picture: PNG file to write.
        recipe: A name from RECIPES in place of the plans' recipe.
        channel: Name of the channel to draw; by default the first.
        rows: Most patches to draw, each of another case.

    Raises:
        SettingsError: The plans' genesis block has an unknown key or a value out of range.
        DatasetError: The plans, the configuration, the channel or the preprocessed volumes are missing.
        GenesisError: The picture is no PNG file in an existing folder, or the number of rows is out of range.
    """
    if picture.suffix.lower() != ".png" or not picture.parent.is_dir():
        raise GenesisError(f"The picture must be a .png file in a folder that exists, not {picture}.")
    if not 1 <= rows <= MOST_ROWS:
        raise GenesisError(f"The number of patches must be 1 to {MOST_ROWS}, not {rows}.")
    plans = read_plans(dataset, plans_name)
    refuse_cascade(plans, configuration)
    settings = PretrainingSettings.of_plans(plans)
    names = channel_names(read_dataset_json(dataset))
    if channel is not None and channel not in names:
        raise DatasetError(f"{dataset} has no channel {channel}; it has {', '.join(names)}.")
    chosen = fitted(settings.recipe if recipe is None else RECIPES[recipe], plans, configuration)
    batches = _batches(plans, configuration, settings)
    groups, patches, cases = examples(batches, chosen, min(rows, len(batches.volumes.identifiers)))
    shown = 0 if channel is None else names.index(channel)
    images = [[patch.numpy() for patch in row] for row in patches]
    title = f"Patches of {dataset}, {configuration}, {names[shown]}"
    corruption_sheet(images, groups, cases, title, picture, shown)
    return Preview(cases, defaults="pretraining" not in plans.get("genesis", {}))


def examples(
    batches: PatchBatches, recipe: Recipe, rows: int
) -> tuple[dict[str, list[str]], list[list[Tensor]], list[str]]:
    """Cut patches and corrupt them.

    Args:
        batches: Volumes, patch size and seed.
        recipe: The recipe to show.
        rows: Number of patches, each of another case while there are any.

    Returns:
        Headings of the columns in groups; for each row the clean crop, NaN where it is ignored, and its corrupted
        versions, float32 (C, *at most the patch), none of them mirrored; the case of each row.
    """
    alone = recipe.alone()
    recipes = [*alone.values(), *[replace(recipe, flip_probability=0.0)] * MIXTURES]
    patches, cases = [], []
    for k in range(rows):
        clean, _, case, ignored = batches.crop(k)
        generators = [np.random.default_rng([batches.seed, k, column]) for column in range(len(recipes))]
        pairs = [make_pair(clean, one, rng) for one, rng in zip(recipes, generators, strict=True)]
        known = clean if ignored is None else clean.masked_fill(ignored, torch.nan)
        patches.append([known, *(corrupted for corrupted, _ in pairs)])
        cases.append(case)
    groups = {
        "": ["original"],
        "each corruption alone": [HEADINGS.get(name, name.replace("_", " ")) for name in alone],
        "mixtures of the recipe": [f"mixture {number}" for number in range(1, MIXTURES + 1)],
    }
    return {heading: columns for heading, columns in groups.items() if columns}, patches, cases


def _batches(plans: dict[str, Any], configuration: str, settings: PretrainingSettings) -> PatchBatches:
    """Clean patches of all volumes, of all datasets, in the order in which validation would walk through them."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    folders = volumes_folders(plans, configuration, settings)
    return PatchBatches(
        volumes=JoinedVolumes(
            {dataset: infer_dataset_class(str(folder))(str(folder)) for dataset, folder in folders.items()}
        ),
        patch_size=tuple(configuration_of(plans, configuration).patch_size),
        batch_size=1,
        global_batch_size=1,
        first=0,
        recipe=settings.recipe.without(),
        seed=settings.seed,
        stream=VALIDATION,
        minimum_contrast=settings.minimum_contrast,
    )
