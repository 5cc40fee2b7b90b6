"""Content of a file → its kind, told by what is in it, and a `PretrainedNetwork`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nnunet_genesis.checkpoints import transformers
from nnunet_genesis.checkpoints.architectures import ORIGINAL, assumed_operations, derive
from nnunet_genesis.checkpoints.bounds import refuse_strange_tensors
from nnunet_genesis.checkpoints.foreign import READABLE
from nnunet_genesis.checkpoints.formats import (
    models_genesis,
    models_genesis_keras,
    nnssl,
    nnunet_v1,
    nnunet_v2,
    published,
)
from nnunet_genesis.checkpoints.names import canonical, without_wrappers
from nnunet_genesis.checkpoints.trainers import PRIMUS
from nnunet_genesis.checkpoints.validate import HEADS, Validated, validate
from nnunet_genesis.errors import CheckpointError, printable
from nnunet_genesis.networks.pretrained import AXES_REVERSED, PretrainedNetwork

CONTAINERS = ("network_weights", "state_dict", "model_state_dict", "model", models_genesis.CONTAINER)
"""Keys below which trainings keep the state dict."""

LUNA16_STRIDES = [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 2, 2]]
"""Of genesis_nnunet_luna16_006.model, which comes without plans."""


def detect(content: Mapping[str, Any], sidecar: Mapping[str, Any] | None = None) -> PretrainedNetwork:
    """Bring a checkpoint of any known kind into one form.

    Args:
        content: What was in the file: tensors and plain values.
        sidecar: What was in the file of plans beside a checkpoint of nnU-Net v1.

    Raises:
        CheckpointError: It is none of the known kinds; the message, without the file's name, says what was found.
    """
    weights = state_dict(content)
    if published.MARK in content:
        return _from_card(weights, content[published.MARK])
    if nnunet_v1.is_generic_unet(weights):
        return _from_v1(weights, content, sidecar)
    if models_genesis.is_original(weights):
        return _from_original(weights, content)
    if models_genesis_keras.is_keras(weights):
        return _from_keras(weights)
    if transformers.holds_primus(weights):
        return _from_primus(weights, content)
    if nnssl.MARK in content:
        return _from_nnssl(weights, content)
    tensors = canonical(weights)
    if isinstance(content.get("init_args"), Mapping) and "plans" in content["init_args"]:
        return _from_v2(tensors, content)
    return _derived(tensors, "state dict of an nnU-Net v2 network", {})


def state_dict(content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors in a file, without the prefixes of wrappers.

    Raises:
        CheckpointError: There are none where they are known to be, and the message lists what the file holds; or they
            are of kinds that are not read.
    """
    for candidate in (content, *(content.get(key) for key in CONTAINERS)):
        if isinstance(candidate, Mapping) and candidate and _only_tensors(candidate):
            weights = {without_wrappers(name): tensor for name, tensor in candidate.items()}
            refuse_strange_tensors(weights)
            return weights
    keys = ", ".join(printable(key, 60) for key in list(content)[:6])
    raise CheckpointError(f"holds no weights that are known ({keys or 'it is empty'}). {READABLE}")


def _only_tensors(candidate: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in candidate.items())


def _network(validated: Validated, kind: str, *notes: str, **facts: Any) -> PretrainedNetwork:
    """What was read, without channel names where the network has another number of channels."""
    if len(facts.get("channels") or ()) != validated.input_channels:
        facts["channels"] = None
    outputs, rows = facts.get("outputs"), [len(t) for name, t in validated.weights.items() if HEADS in name]
    if outputs is not None and any(count != len(outputs.names) for count in rows):
        facts["outputs"] = None
        outs = f"its heads have {rows[0]} outputs, its dataset.json names {len(outputs.names)}"
        notes += (f"{outs}: labels are not matched by name",)
    return PretrainedNetwork(
        validated.weights,
        validated.architecture,
        validated.input_channels,
        format=kind,
        notes=(*notes, *validated.remarks),
        **facts,
    )


def _from_v1(
    weights: dict[str, torch.Tensor], content: Mapping[str, Any], sidecar: Mapping[str, Any] | None
) -> PretrainedNetwork:
    tensors = nnunet_v1.to_v2(weights)
    architecture, assumed = derive(tensors)
    operations, remarks = nnunet_v1.operations(sidecar, assumed_operations(architecture))
    architecture["arch_kwargs"] |= operations
    validated = validate(tensors, architecture)
    facts = nnunet_v1.facts_of_plans(sidecar, validated.input_channels) if sidecar is not None else {}
    if "lr_scheduler_state_dict" not in content and architecture["arch_kwargs"]["strides"] == LUNA16_STRIDES:
        remarks += (
            "looks like genesis_nnunet_luna16_006.model; that one was trained on CT, (HU + 775.8457) / 251.9326, "
            "patches of 64x64x32 with axes x, y, z",
        )
        facts["axes"] = AXES_REVERSED
    return _network(validated, nnunet_v1.kind(sidecar), *assumed, *remarks, **facts)


def _from_original(weights: dict[str, torch.Tensor], content: Mapping[str, Any]) -> PretrainedNetwork:
    kind, trained_on = models_genesis.origin(weights, content)
    own = models_genesis.without_heads_of_suprem(weights)
    notes: tuple[str, ...] = (trained_on,)
    if len(own) < len(weights):
        notes += (f"{len(weights) - len(own)} tensors belong to SuPreM's organ-wise head and are not used",)
    return _of_original(own, kind, *notes)


def _from_keras(weights: dict[str, torch.Tensor]) -> PretrainedNetwork:
    own, notes = models_genesis_keras.to_original(weights)
    trained_on = models_genesis.TRAINED_ON[models_genesis.GENESIS]
    return _of_original(own, models_genesis_keras.KIND, trained_on, *notes)


def _of_original(weights: dict[str, torch.Tensor], kind: str, *notes: str) -> PretrainedNetwork:
    tensors = models_genesis.to_unet3d(weights)
    architecture, assumed = derive(tensors)
    if architecture["network_class_name"] != ORIGINAL:
        raise CheckpointError("has the names of the original Models Genesis 3D U-Net, but not its widths.")
    return _network(validate(tensors, architecture), kind, *assumed, *notes, axes=AXES_REVERSED)


def _from_nnssl(weights: dict[str, torch.Tensor], content: Mapping[str, Any]) -> PretrainedNetwork:
    architecture, facts, encoder = nnssl.plan_of(content)
    tensors = canonical(nnssl.to_nnunet(weights, encoder))
    notes: tuple[str, ...] = ()
    try:
        validated = validate(tensors, architecture)
    except CheckpointError as error:
        # some of its methods have decoders of their own, e.g. without skips
        validated = validate({n: tensor for n, tensor in tensors.items() if n.startswith("encoder.")}, architecture)
        notes = (f"its decoder is not a U-Net's and is left out: the file {error}",)
    return _network(validated, f"nnssl ({nnunet_v2.trainer_of(content)})", *notes, **facts)


def _from_v2(tensors: dict[str, torch.Tensor], content: Mapping[str, Any]) -> PretrainedNetwork:
    architecture, facts, notes = nnunet_v2.plans_of(content)
    trainer = nnunet_v2.trainer_of(content)
    kind = f"nnU-Net v2 ({trainer})"
    try:
        validated = validate(tensors, architecture)
    except CheckpointError as error:
        # trainers may build another network than the plans say, e.g. of other depth
        note = f"its plans describe another network, which is not used: it {error}"
        return _derived(tensors, kind, facts, note, *notes)
    return _network(validated, kind, *nnunet_v2.unknown_trainer(trainer), *notes, **facts)


def _from_primus(weights: dict[str, torch.Tensor], content: Mapping[str, Any]) -> PretrainedNetwork:
    kind, trainer = "state dict of a Primus", nnunet_v2.trainer_of(content)
    prefix, patches, notes, block = None, list[Any](), tuple[str, ...](), None
    facts: dict[str, Any] = {}
    turned = False
    if nnssl.MARK in content:
        kind = f"nnssl ({trainer})"
        facts, prefix, patches, turned = nnssl.primus_plan_of(content)
    elif isinstance(content.get("init_args"), Mapping) and "plans" in content["init_args"]:
        kind = f"nnU-Net v2 ({trainer})"
        block, facts, notes = nnunet_v2.plans_of(content)
        patches = [facts.pop("patch_size")]
    tensors, others = transformers.own_tensors(weights, prefix)
    if trainer not in PRIMUS and transformers.is_described(block):
        notes = (*nnunet_v2.unknown_trainer(trainer), *notes)
    else:
        published = trainer in PRIMUS or nnssl.MARK in content
        block, assumed = transformers.derive_primus(tensors, patches, published)
        notes += assumed
    validated = transformers.validate_primus(tensors, others, block)
    arguments = validated.architecture["arch_kwargs"]
    facts["patch_size"] = arguments["input_shape"]
    if turned:
        facts["turned"] = _may_be_turned(validated.architecture)
        notes = (nnssl.TURNED if facts["turned"] else nnssl.NOT_TURNED, *notes)
    return _network(validated, kind, *notes, **facts)


def _from_card(weights: dict[str, torch.Tensor], config: Any) -> PretrainedNetwork:
    if not isinstance(config, Mapping):
        raise CheckpointError(f"has a {published.CONFIG} beside it that describes nothing.")
    block, kind, notes, facts = published.facts_of(config)
    if transformers.is_described(block):
        validated = transformers.validate_primus(weights, {}, block)
    else:
        validated = validate(weights, block)
    if facts["turned"] and not (transformers.is_described(block) and _may_be_turned(validated.architecture)):
        raise CheckpointError(f"has a {published.CONFIG} beside it that swaps axes which cannot be swapped.")
    return _network(validated, kind, *(note for note in notes if note not in validated.remarks), **facts)


def _may_be_turned(architecture: Mapping[str, Any]) -> bool:
    """Whether a Primus's first two axes are alike: with other edges it could not be undone, nor does nnssl train so."""
    arguments = architecture["arch_kwargs"]
    return all(arguments[key][0] == arguments[key][1] for key in ("input_shape", "patch_embed_size"))


def _derived(tensors: dict[str, torch.Tensor], kind: str, facts: dict[str, Any], *notes: str) -> PretrainedNetwork:
    architecture, assumed = derive(tensors)
    how = "architecture derived from the tensors' shapes"
    if architecture["network_class_name"] != ORIGINAL:
        how += f"; {assumed_operations(architecture)}"
    return _network(validate(tensors, architecture), kind, *notes, how, *assumed, **facts)
