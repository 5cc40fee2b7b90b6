"""State dict of nnU-Net v1's Generic_UNet, and the plans beside it → names of nnU-Net v2's PlainConvUNet, facts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from nnunet_genesis.checkpoints.trainers import NNUNET_V1
from nnunet_genesis.errors import CheckpointError
from nnunet_genesis.nnunet_dataset import PREVIOUS_STAGE

MARK = "conv_blocks_context."
"""Start of some names in every such state dict."""

BLOCK = re.compile(r"conv_blocks_(context|localization)\.(\d+)\.(?:([01])\.)?blocks\.(\d+)\.(conv|instnorm)\.(\w+)")
FIRST_HALF = re.compile(r"conv_blocks_\w+\.\d+\.0\.(?=blocks\.\d+\.conv\.weight$)")
OTHER = re.compile(r"(tu|seg_outputs)\.(\d+)\.(weight|bias)")
ROOM = {"context": "encoder.stages.{}.0", "localization": "decoder.stages.{}"}
NORMALISATIONS = {
    "CT": "CTNormalization",
    "CT2": "CTNormalization",
    "nonCT": "ZScoreNormalization",
    "noNorm": "NoNormalization",
}
"""v1's schemes by v2's names; CT2 differs in how it clips."""

RELU = {"nonlin": "torch.nn.ReLU"}
VARIANTS: dict[str, dict[str, Any]] = {
    "nnUNetTrainerV2_ReLU": RELU,
    "nnUNetTrainerV2_ReLU_biasInSegOutput": RELU,
    "nnUNetTrainerV2_ReLU_convReLUIN": RELU | {"nonlin_first": True},
    "nnUNetTrainerV2_lReLU_convReLUIN": {"nonlin_first": True},
    "nnUNetTrainerV2_LReLU_slope_2en1": {"nonlin_kwargs": {"negative_slope": 0.2, "inplace": True}},
    "nnUNetTrainerV2_Mish": {"nonlin": "torch.nn.Mish"},
    "nnUNetTrainerV2_GeLU": {"nonlin": "torch.nn.GELU", "nonlin_kwargs": {}},
}
"""Trainers of nnU-Net 1.7.1 whose networks have other operations → arguments of nnU-Net v2's network."""

INEXPRESSIBLE = {
    "nnUNetTrainerV2_GN": "group normalisation",
    "nnUNetTrainerV2_FRN": "filter response normalisation",
}
"""Those with operations that nnU-Net v2's network does not have."""

FRN = ".instnorm.tau"
"""End of a name that shows filter response normalisation."""


def is_generic_unet(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether these are tensors of Generic_UNet; STU-Net's begin alike, but lie in blocks of another kind."""
    return any(name.startswith(MARK) and (".blocks." in name) for name in weights)


def kind(sidecar: Mapping[str, Any] | None) -> str:
    """The kind of file in words, with its trainer where the plans tell it."""
    trainer = _trainer(sidecar)
    return f"nnU-Net v1 ({trainer})" if trainer else "nnU-Net v1 (Generic_UNet)"


def operations(sidecar: Mapping[str, Any] | None, assumed: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Operations between convolutions, which tensors do not show, by the name of the trainer.

    Args:
        sidecar: Content of the file of plans beside the checkpoint, None if there is none.
        assumed: What is assumed where the trainer is not known, in words.

    Returns:
        Arguments of nnU-Net v2's network that differ from the default, and notes on what is assumed.

    Raises:
        CheckpointError: nnU-Net v2 has no such operations.
    """
    trainer = _trainer(sidecar)
    if trainer in INEXPRESSIBLE:
        raise CheckpointError(
            f"was trained by {trainer}, with {INEXPRESSIBLE[trainer]}, which nnU-Net v2's networks do not have."
        )
    if trainer in VARIANTS:
        return VARIANTS[trainer], ()
    if trainer in NNUNET_V1:
        return {}, ()
    if sidecar is None:
        return {}, (f"{assumed}: no file of plans (.model.pkl) beside it names its trainer",)
    return {}, (f"{assumed}: its trainer {trainer or '(without a name)'} is none of nnU-Net v1's own",)


def _trainer(sidecar: Mapping[str, Any] | None) -> str:
    return str((sidecar or {}).get("name") or "")[:100]


def to_v2(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename; transposed convolutions and heads, which have no bias in v1, get a bias of zero.

    The computation stays the same: both networks have the same order of layers and of concatenation. The last stage
    and every decoder stage are split in two in v1: all convolutions but the last, and the last.

    Args:
        weights: Names of v1, e.g. `conv_blocks_context.0.blocks.0.conv.weight` (out, in, *kernel).

    Returns:
        One name per tensor.

    Raises:
        CheckpointError: There are other tensors, or none for upsampling.
    """
    found: dict[str, torch.Tensor] = {}
    before = Counter(half[0] for half in map(FIRST_HALF.match, weights) if half)
    for name, tensor in weights.items():
        if name.endswith(FRN):
            raise CheckpointError("was trained with filter response normalisation, which nnU-Net v2 does not have.")
        if block := BLOCK.fullmatch(name):
            found[_block_name(block, before)] = tensor
        elif other := OTHER.fullmatch(name):
            kind, level, parameter = other.groups()
            found[f"decoder.{'transpconvs' if kind == 'tu' else 'seg_layers'}.{level}.{parameter}"] = tensor
        else:
            raise CheckpointError(f"holds {name[:100]}, which nnU-Net v1's Generic_UNet does not have.")
    if "decoder.transpconvs.0.weight" not in found:
        raise CheckpointError("is a Generic_UNet of nnU-Net v1 that upsamples without weights, which v2 cannot do.")
    for name, tensor in list(found.items()):
        if name.startswith("decoder.transpconvs."):
            found.setdefault(name.replace(".weight", ".bias"), tensor.new_zeros(tensor.shape[1]))
        elif name.startswith("decoder.seg_layers."):
            found.setdefault(name.replace(".weight", ".bias"), tensor.new_zeros(tensor.shape[0]))
    return found


def facts_of_plans(sidecar: Mapping[str, Any], inputs: int) -> dict[str, Any]:
    """What the file of plans beside a v1 checkpoint (`.model.pkl`) tells about the input.

    Args:
        sidecar: Content of the file.
        inputs: Input channels of the network; those of a cascade's second stage end with the labels of the first.

    Returns:
        `channels` (None where their number is another), `patch_size`, `spacing` and `normalisation` of a
            `PretrainedNetwork`.

    Raises:
        CheckpointError: It is not such a file.
    """
    try:
        plans, stage = sidecar["plans"], sidecar["init"][5]
        stages = plans["plans_per_stage"]
        chosen = stages[max(stages) if stage is None else stage]
        order = sorted(plans["modalities"])
        channels = [str(plans["modalities"][number]) for number in order]
        if len(channels) + plans["num_classes"] == inputs:
            channels += [f"{PREVIOUS_STAGE}{label + 1}" for label in range(plans["num_classes"])]
        return {
            "channels": channels if len(channels) == inputs else None,
            "patch_size": [int(size) for size in chosen["patch_size"]],
            "spacing": [float(size) for size in chosen["current_spacing"]],
            "normalisation": [
                NORMALISATIONS.get(plans["normalization_schemes"][number], str(plans["normalization_schemes"][number]))
                for number in order
            ],
        }
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        raise CheckpointError("has a file of plans (.pkl) beside it that is not nnU-Net v1's.") from None


def _block_name(block: re.Match[str], before: Mapping[str, int]) -> str:
    side, level, half, number, layer, parameter = block.groups()
    conv = int(number) + (before[f"conv_blocks_{side}.{level}.0."] if half == "1" else 0)
    return f"{ROOM[side].format(level)}.convs.{conv}.{'conv' if layer == 'conv' else 'norm'}.{parameter}"
