"""A labeled dataset → the validation cases of its folds, as nnU-Net splits it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from nnunet_genesis.errors import DatasetError, reason
from nnunet_genesis.nnunet_dataset import preprocessed_folder
from nnunet_genesis.plans_checks import is_plain_name
from nnunet_genesis.preflight import volumes_folder

SPLITS = "splits_final.json"


def preprocessed_cases(plans: dict[str, Any], configuration: str) -> list[str]:
    """Names of the preprocessed cases, sorted.

    Raises:
        DatasetError: There are none.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    folder = str(volumes_folder(plans, configuration))
    return sorted(infer_dataset_class(folder).get_identifiers(folder))


def validation_cases(plans: dict[str, Any], fold: int) -> list[str]:
    """Validation cases of a fold: those in `splits_final.json`, or else those of nnU-Net's default split.

    Args:
        plans: Of the labeled dataset; one of its configurations is preprocessed, unless there is a file of splits.
        fold: Number of the fold.

    Raises:
        DatasetError: There is no such fold, the file is none of splits, or the dataset is not preprocessed.
    """
    path = preprocessed_folder(plans["dataset_name"]) / SPLITS
    if path.is_file():
        try:
            splits = [split["val"] for split in json.loads(path.read_text(encoding="utf-8"))]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DatasetError(
                f"{path} holds no splits of nnU-Net ({reason(error, 80)}). Remove or correct it."
            ) from None
    else:
        splits = _default_splits(plans)
    if not 0 <= fold < len(splits):
        raise DatasetError(
            f"{plans['dataset_name']} has {len(splits)} folds, 0 to {len(splits) - 1}, and no fold {fold}."
        )
    if not isinstance(splits[fold], list) or not all(map(is_plain_name, splits[fold])):
        raise DatasetError(f"{path}: the validation cases of fold {fold} must be a list of names. Correct it.")
    return [str(case) for case in splits[fold]]


def _default_splits(plans: dict[str, Any]) -> list[list[str]]:
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    cases = _first_preprocessed(plans)
    if len(cases) < 5:
        raise DatasetError(f"{len(cases)} volumes are too few for nnU-Net's five folds. Write {SPLITS}.")
    return [split["val"] for split in generate_crossval_split(cases, seed=12345, n_splits=5)]


def _first_preprocessed(plans: dict[str, Any]) -> list[str]:
    """The cases of the first configuration that is preprocessed: all have the same ones."""
    *others, last = plans["configurations"]
    for configuration in others:
        with suppress(DatasetError):
            return preprocessed_cases(plans, configuration)
    return preprocessed_cases(plans, last)
