"""Content of a file → its kind, told by what is in it, and a `Source`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nnunet_genesis.checkpoints.architectures import ORIGINAL, derive
from nnunet_genesis.checkpoints.formats import models_genesis, nnssl, nnunet_v1, nnunet_v2
from nnunet_genesis.checkpoints.names import canonical, without_wrappers
from nnunet_genesis.checkpoints.validate import fit
from nnunet_genesis.errors import CheckpointError
from nnunet_genesis.networks.pretrained import PretrainedNetwork

CONTAINERS = ("network_weights", "state_dict", "model_state_dict", "model")
"""Keys below which trainings keep the state dict."""

LUNA16_STRIDES = [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 2, 2]]
"""Of genesis_nnunet_luna16_006.model, which comes without plans."""


def detect(content: Mapping[str, Any], sidecar: Mapping[str, Any] | None = None) -> PretrainedNetwork:
    """Bring a checkpoint of any known kind into one form.

    Args:
        content: What was in the file: tensors and plain values.
        sidecar: What was in the file of plans beside a checkpoint of nnU-Net nnunet_v1.

    Raises:
        CheckpointError: It is none of the known kinds; the message, without the file's name, says what was found.
    """
    weights = state_dict(content)
    if any(name.startswith(nnunet_v1.MARK) for name in weights):
        return _from_v1(weights, content, sidecar)
    if any(name.startswith(models_genesis.MARK) for name in weights):
        return _from_original(weights)
    if nnssl.MARK in content:
        return _from_nnssl(weights, content)
    tensors = canonical(weights)
    if isinstance(content.get("init_args"), Mapping) and "plans" in content["init_args"]:
        return _from_v2(tensors, content)
    return _derived(tensors, "state dict of an nnU-Net v2 network", {})


def state_dict(content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors in a file, without the prefixes of wrappers.

    Raises:
        CheckpointError: There are none where they are known to be; the message lists what the file holds.
    """
    for candidate in (content, *(content.get(key) for key in CONTAINERS)):
        if isinstance(candidate, Mapping) and candidate and _only_tensors(candidate):
            return {without_wrappers(name): tensor for name, tensor in candidate.items()}
    keys = ", ".join(str(key)[:60] for key in list(content)[:6])
    raise CheckpointError(f"holds no weights that are known ({keys or 'it is empty'}).")


def _only_tensors(candidate: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in candidate.items())


def _from_v1(
    weights: dict[str, torch.Tensor], content: Mapping[str, Any], sidecar: Mapping[str, Any] | None
) -> PretrainedNetwork:
    tensors = nnunet_v1.to_v2(weights)
    architecture, assumed = derive(tensors)
    complete, block, channels, remarks = fit(tensors, architecture)
    facts = nnunet_v1.facts_of_plans(sidecar, channels) if sidecar is not None else {}
    if "lr_scheduler_state_dict" not in content and architecture["arch_kwargs"]["strides"] == LUNA16_STRIDES:
        assumed += (
            "looks like genesis_nnunet_luna16_006.model; that one was trained on CT, (HU + 775.8457) / 251.9326, "
            "patches of 64x64x32 with axes x, y, z",
        )
    return PretrainedNetwork(
        complete, block, channels, format="nnU-Net v1 (Generic_UNet)", notes=assumed + remarks, **facts
    )


def _from_original(weights: dict[str, torch.Tensor]) -> PretrainedNetwork:
    tensors = models_genesis.to_unet3d(weights)
    architecture, assumed = derive(tensors)
    if architecture["network_class_name"] != ORIGINAL:
        raise CheckpointError("has the names of the original Models Genesis 3D U-Net, but not its widths.")
    complete, block, channels, remarks = fit(tensors, architecture)
    known = ("the published weights were trained on CT, HU -1000 to 1000 scaled to 0 to 1, patches of 64x64x32 with "
             "axes x, y, z",)  # fmt: skip
    kind = "Models Genesis (original 3D U-Net)"
    return PretrainedNetwork(complete, block, channels, format=kind, notes=assumed + known + remarks)


def _from_nnssl(weights: dict[str, torch.Tensor], content: Mapping[str, Any]) -> PretrainedNetwork:
    architecture, facts, encoder = nnssl.plan_of(content)
    tensors = canonical(nnssl.to_nnunet(weights, encoder))
    notes: tuple[str, ...] = ()
    try:
        complete, block, channels, remarks = fit(tensors, architecture)
    except CheckpointError as error:
        # some of its methods have decoders of their own, e.g. without skips
        encoder_only = {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.")}
        complete, block, channels, remarks = fit(encoder_only, architecture)
        notes = (f"its decoder is not a U-Net's and is left out: the file {error}",)
    trainer = str(content.get("trainer_name") or "unknown trainer")
    return PretrainedNetwork(complete, block, channels, format=f"nnssl ({trainer})", notes=notes + remarks, **facts)


def _from_v2(tensors: dict[str, torch.Tensor], content: Mapping[str, Any]) -> PretrainedNetwork:
    architecture, facts, notes = nnunet_v2.plans_of(content)
    kind = f"nnU-Net v2 ({content.get('trainer_name') or 'unknown trainer'})"
    try:
        complete, block, channels, remarks = fit(tensors, architecture)
    except CheckpointError as error:
        # trainers may build another network than the plans say, e.g. with batch normalisation
        note = f"its plans describe another network, which is not used: it {error}"
        return _derived(tensors, kind, facts, note, *notes)
    return PretrainedNetwork(
        complete, block, channels, format=kind, notes=notes + remarks, **_agreeing(facts, channels)
    )


def _derived(tensors: dict[str, torch.Tensor], kind: str, facts: dict[str, Any], *notes: str) -> PretrainedNetwork:
    architecture, assumed = derive(tensors)
    complete, block, channels, remarks = fit(tensors, architecture)
    how = "architecture derived from the tensors' shapes; LeakyReLU is assumed"
    return PretrainedNetwork(complete, block, channels, format=kind, notes=(*notes, how, *assumed, *remarks),
                  **_agreeing(facts, channels))  # fmt: skip


def _agreeing(facts: dict[str, Any], channels: int) -> dict[str, Any]:
    """Facts without channel names where the network has another number of channels."""
    return facts | {"channels": None} if len(facts.get("channels") or ()) != channels else facts
