"""Where the trainers' doorsteps and the plans templates lie: in a checkout or in an installed wheel."""

from __future__ import annotations

from pathlib import Path

from nnunet_genesis.errors import GenesisError


def trainers_folder() -> Path:
    """The folder for the environment variable `nnUNet_extTrainer`: one file per trainer class, nothing else.

    Raises:
        GenesisError: The folder is missing.
    """
    return _folder("trainers")


def plans_folder() -> Path:
    """The folder of the plans templates, `<template>.json`.

    Raises:
        GenesisError: The folder is missing.
    """
    return _folder("plans")


def _folder(name: str) -> Path:
    """A wheel holds the folder inside the package, as `_<name>`; in a checkout it lies beside the package."""
    package = Path(__file__).resolve().parent
    for folder in (package / f"_{name}", package.parent / name):
        if folder.is_dir():
            return folder
    raise GenesisError(
        f"The folder {name} of nnunet-genesis is missing beside {package}. Install nnunet-genesis again."
    )
