"""A folder that `nnunet_genesis card` wrote → what its config.json says of the weights, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nnunet_genesis.checkpoints.case_files import read_record_file
from nnunet_genesis.errors import CheckpointError, DatasetError
from nnunet_genesis.files import read_json, sha256
from nnunet_genesis.networks.outputs import Outputs
from nnunet_genesis.networks.pretrained import AXES_OF_NNUNET, AXES_REVERSED

MARK = "nnunet_genesis_card"
"""Key of config.json that says who wrote it; its value is the version of the layout."""
VERSION = 1
WEIGHTS, CONFIG, CASES = "model.safetensors", "config.json", "cases.npz"
"""Files of such a folder; the last one is there on request only."""


def is_published(folder: Path) -> bool:
    """Whether a folder is one that `card` wrote."""
    return (folder / WEIGHTS).is_file() and config_beside(folder / WEIGHTS) is not None


def config_beside(weights: Path) -> dict[str, Any] | None:
    """What `card` wrote beside a file of weights; None if there is nothing, or somebody else's config.json.

    Raises:
        CheckpointError: It was written by another version.
    """
    path = weights.with_name(CONFIG)
    if weights.name != WEIGHTS or not path.is_file():
        return None
    try:
        content = read_json(path, "The file", "Download it again, or move it away.")
    except DatasetError as error:
        raise CheckpointError(str(error)) from None
    if MARK not in content:
        return None
    if content[MARK] != VERSION:
        raise CheckpointError(f"{path} has another layout. Read it with the version that wrote it.")
    return content


def content_of(weights: Path, tensors: Mapping[str, torch.Tensor], config: dict[str, Any]) -> dict[str, Any]:
    """Weights and what is beside them, as the content of one file.

    Raises:
        CheckpointError: The weights are not those that config.json describes, or the record of cases is damaged.
    """
    if config.get("weights_sha256") != sha256(weights):
        raise CheckpointError(f"{weights} is not the file that {CONFIG} beside it describes. Download both again.")
    record = weights.with_name(CASES)
    cases = read_record_file(record) if record.is_file() else None
    return {"state_dict": dict(tensors), MARK: config, "genesis": {"cases": cases}}


def facts_of(config: Mapping[str, Any]) -> tuple[Any, str, tuple[str, ...], dict[str, Any]]:
    """Architecture block, kind of checkpoint, notes, and the other facts of a `PretrainedNetwork`.

    Raises:
        CheckpointError: A value is not of its kind.
    """
    facts: dict[str, Any] = {}
    for key, kind in (("channels", str), ("patch_size", int), ("spacing", float), ("normalisation", str)):
        values = config.get(key)
        if values is not None and not _are(values, kind):
            raise CheckpointError(f'has a {CONFIG} beside it whose "{key}" is no list of {kind.__name__}.')
        facts[key] = values
    notes, turned, axes = config.get("notes", []), config.get("turned", False), config.get("axes", AXES_OF_NNUNET)
    if not _are(notes, str) or not isinstance(turned, bool) or axes not in (AXES_OF_NNUNET, AXES_REVERSED):
        raise CheckpointError(f'has a {CONFIG} beside it whose "notes", "turned" or "axes" are of another kind.')
    facts |= {"turned": turned, "axes": axes, "outputs": _outputs(config.get("outputs"))}
    return config.get("architecture"), str(config.get("kind")), tuple(notes), facts


def _outputs(block: Any) -> Outputs | None:
    if block is None:
        return None
    names, regions = (block.get("names"), block.get("regions")) if isinstance(block, dict) else (None, None)
    if not isinstance(names, list) or not _are(names, str) or not isinstance(regions, bool):
        raise CheckpointError(f'has a {CONFIG} beside it whose "outputs" are no names.')
    return Outputs(names, regions)


def _are(values: Any, kind: type) -> bool:
    kinds = (int, float) if kind is float else (kind,)
    return isinstance(values, list) and len(values) <= 1000 and all(type(value) in kinds for value in values)
