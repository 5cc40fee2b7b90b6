"""Content of an nnssl checkpoint → its weights by nnU-Net's names, the architecture in its adaptation plan, facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nnunet_genesis.checkpoints.architectures import PLAIN, RESIDUAL, unet
from nnunet_genesis.checkpoints.foreign import READABLE
from nnunet_genesis.checkpoints.plain_types import plain
from nnunet_genesis.errors import CheckpointError

MARK = "nnssl_adaptation_plan"
"""Key of every such checkpoint."""

DYNAMIC = {"ResidualEncoderUNet": RESIDUAL, "PlainConvUNet": PLAIN}
PRESETS = ("ResEncL", "NoSkipResEncL")
"""Architectures that the plan names without describing them; the second has a decoder without skips."""

OTHER_PATCHES = ("pretrain_patch_size", "recommended_downstream_patchsize")
"""Keys of the plan; trainers of Primus crop patches of their own."""
TURNED = (
    "nnssl's masked autoencoders number the tokens of a patch with its first two axes swapped, nnU-Net's Primus does "
    "not: a transfer swaps positions, and what they rotate, accordingly"
)
NOT_TURNED = (
    "nnssl's masked autoencoders number the tokens of a patch with its first two axes swapped, which cannot be undone "
    "where these have different edges, as here: weights are carried, but positions mean others than in that training"
)
INCOMPLETE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration)


def plan_of(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Read the adaptation plan.

    Returns:
        Architecture block; `patch_size`, `spacing` and `normalisation` of a `PretrainedNetwork`; where the
        encoder's stages are in the state dict (`encoder.stages`).

    Raises:
        CheckpointError: The plan is incomplete, or names an architecture that is no convolutional U-Net.
    """
    try:
        plan = content[MARK]
        name, arguments = (plan["architecture_plans"][key] for key in ("arch_class_name", "arch_kwargs"))
        facts, encoder = _facts(plan, content), str(plan["key_to_encoder"])
        imports = list(plan["architecture_plans"]["arch_kwargs_requiring_import"] or ())
    except INCOMPLETE:
        raise CheckpointError("has an incomplete nnssl adaptation plan.") from None
    if name in PRESETS:
        # ResEnc-L: Isensee et al., nnU-Net Revisited, MICCAI 2024
        architecture = unet(RESIDUAL, [32, 64, 128, 256, 320, 320], [[3] * 3] * 6, [[1] * 3, *[[2] * 3] * 5],
                            [1, 3, 4, 6, 6, 6], [1] * 5)  # fmt: skip
    elif name in DYNAMIC and arguments:
        architecture = {
            "network_class_name": DYNAMIC[name],
            "arch_kwargs": plain(arguments, as_json=True),
            "_kw_requires_import": imports,
        }
    else:
        raise CheckpointError(
            f"is an nnssl checkpoint of {str(name)[:60]}; of nnssl's, {', '.join([*PRESETS, *DYNAMIC])} are read. "
            f"{READABLE}"
        )
    return architecture, facts, encoder


def primus_plan_of(content: Mapping[str, Any]) -> tuple[dict[str, Any], str, list[Any], bool]:
    """Read the adaptation plan of a Primus, which names a published size; the tensors tell more.

    Returns:
        `spacing` and `normalisation` of a `PretrainedNetwork`; what begins the names of the Primus's tensors; patches
        that it may have been trained on; whether it numbers tokens with the first two axes of a patch swapped.

    Raises:
        CheckpointError: The plan is incomplete.
    """
    try:
        plan = content[MARK]
        facts, encoder = _facts(plan, content), str(plan["key_to_encoder"])
        patches = [facts.pop("patch_size"), *(plan.get(key) for key in OTHER_PATCHES)]
        patches = [[int(size) for size in plain(patch, as_json=True)] for patch in patches if patch is not None]
    except INCOMPLETE:
        raise CheckpointError("has an incomplete nnssl adaptation plan.") from None
    # EvaMAE, which all of nnssl's trainers of Primus but one train: "b c w h d -> b (h w d) c"
    turned = "SimMIM" not in str(content.get("trainer_name"))
    return facts, encoder.removesuffix("eva"), patches, turned


def to_nnunet(weights: Mapping[str, torch.Tensor], encoder: str) -> dict[str, torch.Tensor]:
    """Rename: the encoder's stages may lie elsewhere (`stages`, `backbone.encoder.stages`) than in nnU-Net.

    Args:
        weights: Names of the file.
        encoder: Where the stages are, as the adaptation plan says.
    """
    inner = encoder.removesuffix("stages")
    outer = inner.removesuffix("encoder.")
    if not inner:
        own = ("stages.", "stem.")
        return {f"encoder.{name}" if name.startswith(own) else name: tensor for name, tensor in weights.items()}
    return {
        f"encoder.{name.removeprefix(inner)}" if name.startswith(inner) else name.removeprefix(outer): tensor
        for name, tensor in weights.items()
    }


def _facts(plan: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    configurations = plan["pretrain_plan"]["configurations"]
    if "normalization_schemes" not in configurations:  # by name, unless only the one used was saved
        name = (content.get("init_args") or {}).get("configuration_name")
        configurations = configurations.get(name) or next(iter(configurations.values()))
    patch, spacing = (plain(configurations.get(key), as_json=True) for key in ("patch_size", "spacing"))
    return {
        "patch_size": [int(size) for size in patch] if patch else None,
        "spacing": [float(size) for size in spacing] if spacing else None,
        "normalisation": [str(scheme) for scheme in configurations["normalization_schemes"]],
    }
