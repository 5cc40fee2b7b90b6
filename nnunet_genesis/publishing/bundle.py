"""Checkpoint → a folder to publish: weights as safetensors, config.json, model card; nothing of people or machines."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from nnunet_genesis.checkpoints.case_files import whole_record, write_record
from nnunet_genesis.checkpoints.formats.published import CASES, CONFIG, MARK, VERSION, WEIGHTS
from nnunet_genesis.checkpoints.plain_types import plain
from nnunet_genesis.checkpoints.reading import read_content, read_pretrained
from nnunet_genesis.checkpoints.saving import versions
from nnunet_genesis.errors import HubError, printable
from nnunet_genesis.files import sha256, write_json
from nnunet_genesis.hub.addresses import HUB
from nnunet_genesis.hub.locating import located, origin
from nnunet_genesis.networks.pretrained import PretrainedNetwork
from nnunet_genesis.publishing.model_card import README, model_card
from nnunet_genesis.settings import PretrainingSettings

PRETRAINER = "nnUNetTrainerGenesisPretrain"
PERSONAL = ("exclude", "datasets", "dataset_weights")
"""Settings of a pre-training that name cases or datasets."""
INTENSITIES = ("mean", "median", "min", "max", "std", "percentile_00_5", "percentile_99_5")
"""What nnU-Net's plans know of a channel, and CT normalisation needs."""


@dataclass(frozen=True)
class About:
    """What only its makers can say of a model.

    Attributes:
        licence: Identifier of the hub, e.g. cc-by-4.0.
        data: What the model was trained on, in words.
        title: Of the model card; "" for the architecture.
        citation: BibTeX of the makers' own paper; "" for none.
        cases: Whether the record of the cases is published, with which others find leaks: their names, and small
            blurred images of them.
    """

    licence: str
    data: str
    title: str = ""
    citation: str = ""
    cases: bool = False

    def __post_init__(self) -> None:
        """Check it.

        Raises:
            HubError: The licence is no identifier, or nothing is said of the data.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,60}", self.licence):
            raise HubError(f"{printable(self.licence, 60)} is no identifier of a licence. Write one as cc-by-4.0.")
        if not self.data.strip():
            raise HubError("A model card says what the model was trained on. Name it with --data.")


def write_bundle(checkpoint: str | Path, folder: Path, about: About) -> dict[str, Any]:
    """Write what is to be published into a new folder, which `transfer` and `inspect` read as a checkpoint.

    The weights are those that a transfer would start from, under the names of nnU-Net's network, bit for bit.

    Returns:
        The content of config.json.

    Raises:
        HubError: The folder is not empty, or cases are to be published and the checkpoint has no record of them.
        CheckpointError: The checkpoint cannot be read.
        SettingsError: Its settings are of another version.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HubError(f"{folder} exists and is not empty. Name a new folder.")
    path = located(checkpoint)
    source = read_pretrained(path)
    if about.cases and not isinstance(source.cases, Mapping):
        raise HubError(f"{path} has no record of its cases to publish. Leave --cases out.")
    folder = folder.absolute()  # "." has no name
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".incomplete_{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        config = _fill(temporary, path, source, about)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return config


def _fill(folder: Path, checkpoint: Path, source: PretrainedNetwork, about: About) -> dict[str, Any]:
    # tensors of one file may share memory
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in source.weights.items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    if about.cases:
        write_record(whole_record(source.cases, checkpoint), folder / CASES, compressed=True)
    config = describe(source, read_content(checkpoint)) | {
        "weights_sha256": sha256(folder / WEIGHTS),
        "source_sha256": sha256(checkpoint),
        "source": _public(origin(checkpoint)),
        "cases_published": about.cases,
        "licence": about.licence,
        "data": printable(about.data),
    }
    write_json(config, folder / CONFIG)
    (folder / README).write_text(model_card(config, source.facts(), about.title, about.citation), encoding="utf-8")
    return config


def describe(source: PretrainedNetwork, content: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself, without names of people, cases, datasets, files and machines."""
    return {
        MARK: VERSION,
        "kind": source.format,
        "architecture": plain(dict(source.architecture), as_json=True),
        "input_channels": source.input_channels,
        "channels": source.channels and list(source.channels),
        "patch_size": source.patch_size,
        "spacing": source.spacing,
        "normalisation": source.normalisation,
        "intensities": _intensities(content),
        "turned": source.turned,
        "axes": source.axes,
        "outputs": source.outputs and {"names": list(source.outputs.names), "regions": source.outputs.regions},
        "notes": list(source.notes),
        "parameters": source.parameters,
        "pretraining": _pretraining(content),
        "trained_with": _versions(content),
        "written_with": versions(),
    }


def _public(address: str | None) -> str | None:
    """An address that others may know: of the hub. Servers may be those of a hospital."""
    return address if address is not None and address.startswith(HUB) else None


def _facts(content: Mapping[str, Any]) -> Mapping[str, Any]:
    before, own = content.get(MARK), content.get("genesis")
    if isinstance(before, Mapping):
        return {"settings": before.get("pretraining"), "versions": before.get("trained_with")}
    return own if isinstance(own, Mapping) else {}


def _pretraining(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings of our pre-training; None for other checkpoints."""
    settings = _facts(content).get("settings")
    if not isinstance(settings, Mapping) or not (MARK in content or content.get("trainer_name") == PRETRAINER):
        return None
    block = PretrainingSettings.of_plans({"genesis": {"pretraining": dict(settings)}}).block()
    return {name: value for name, value in block.items() if name not in PERSONAL}


def _versions(content: Mapping[str, Any]) -> dict[str, str]:
    found = _facts(content).get("versions")
    found = found if isinstance(found, Mapping) else {}
    return {name: printable(found[name], 40) for name in versions() if isinstance(found.get(name), str)}


def _intensities(content: Mapping[str, Any]) -> list[dict[str, float]] | None:
    """Per channel, what the plans say of its intensities."""
    if isinstance(before := content.get(MARK), Mapping):
        known = before.get("intensities")
        found: Any = dict(enumerate(known)) if isinstance(known, list) else None
    else:
        given = content.get("init_args")
        plans = given.get("plans") if isinstance(given, Mapping) else None
        found = plans.get("foreground_intensity_properties_per_channel") if isinstance(plans, Mapping) else None
    if not isinstance(found, Mapping) or not all(isinstance(channel, Mapping) for channel in found.values()):
        return None
    numbers = [{name: plain(channel.get(name)) for name in INTENSITIES} for channel in found.values()]
    return [{name: float(value) for name, value in channel.items() if _is_number(value)}
            for channel in numbers] or None  # fmt: skip


def _is_number(value: Any) -> bool:
    """Whether it is a finite number that a float can hold."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
