"""State dict of nnU-Net v1's Generic_UNet, and the plans beside it → names of nnU-Net v2's PlainConvUNet, facts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from nnunet_genesis.errors import CheckpointError
from nnunet_genesis.nnunet_dataset import PREVIOUS_STAGE

MARK = "conv_blocks_context."
"""Start of some names in every such state dict."""

BLOCK = re.compile(r"conv_blocks_(context|localization)\.(\d+)\.(?:([01])\.)?blocks\.(\d+)\.(conv|instnorm)\.(\w+)")
OTHER = re.compile(r"(tu|seg_outputs)\.(\d+)\.(weight|bias)")
ROOM = {"context": "encoder.stages.{}.0", "localization": "decoder.stages.{}"}
NORMALISATIONS = {
    "CT": "CTNormalization",
    "CT2": "CTNormalization",
    "nonCT": "ZScoreNormalization",
    "noNorm": "NoNormalization",
}
"""v1's schemes by v2's names; CT2 differs in how it clips."""


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
    for name, tensor in weights.items():
        if block := BLOCK.fullmatch(name):
            found[_block_name(block, weights)] = tensor
        elif other := OTHER.fullmatch(name):
            kind, level, parameter = other.groups()
            found[f"decoder.{'transpconvs' if kind == 'tu' else 'seg_layers'}.{level}.{parameter}"] = tensor
        else:
            raise CheckpointError(f"holds {name}, which nnU-Net v1's Generic_UNet does not have.")
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
        `channels` (None where their number is another), `patch_size`, `spacing` and `normalisation` of a `Source`.

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
    except (KeyError, IndexError, TypeError, ValueError):
        raise CheckpointError("has a file of plans (.pkl) beside it that is not nnU-Net v1's.") from None


def _block_name(block: re.Match[str], weights: Mapping[str, torch.Tensor]) -> str:
    side, level, half, number, layer, parameter = block.groups()
    conv = int(number)
    if half == "1":
        before = re.compile(rf"conv_blocks_{side}\.{level}\.0\.blocks\.\d+\.conv\.weight")
        conv += sum(before.fullmatch(name) is not None for name in weights)
    return f"{ROOM[side].format(level)}.convs.{conv}.{'conv' if layer == 'conv' else 'norm'}.{parameter}"
