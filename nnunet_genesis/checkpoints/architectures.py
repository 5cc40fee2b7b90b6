"""Widths, kernels and strides, or tensors → the architecture block of nnU-Net's plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nnunet_genesis.architecture_checks import MOST_STAGES
from nnunet_genesis.checkpoints.foreign import unknown_network
from nnunet_genesis.checkpoints.plain_types import plain
from nnunet_genesis.errors import CheckpointError, printable

PLAIN = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
ORIGINAL = "nnunet_genesis.unet3d.UNet3D"
CLASSES = {name.rsplit(".", 1)[1]: name for name in (PLAIN, RESIDUAL, ORIGINAL)}
"""Networks that are read, by the last part of their name: plans of several ages give different modules."""

CONVS = {PLAIN: "encoder.stages.{}.0.convs.{}.conv.weight", RESIDUAL: "encoder.stages.{}.blocks.{}.conv1.conv.weight"}
"""First convolution of a block, by stage and block."""
STEM = {PLAIN: CONVS[PLAIN].format(0, 0), RESIDUAL: "encoder.stem.convs.0.conv.weight"}
STEM[ORIGINAL] = STEM[PLAIN]
"""Weight that reads the image."""
PER_STAGE = ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage")
"""Arguments that may be one number for all stages."""
PER_AXIS = ("kernel_sizes", "strides")
"""Those whose entry for a stage may be one number for all axes."""


def original_unet3d(features: Sequence[int], strides: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The architecture block of the original 3D U-Net."""
    arguments = {"features_per_stage": list(features), "strides": [list(stride) for stride in strides]}
    return {"network_class_name": ORIGINAL, "arch_kwargs": arguments, "_kw_requires_import": []}


def unet(
    name: str,
    features: Sequence[int],
    kernels: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
    convs: Sequence[int],
    decoder_convs: Sequence[int],
    *,
    bias: bool = True,
    norm: str | None = "instancenorm.InstanceNorm",
) -> dict[str, Any]:
    """The architecture block of a PlainConvUNet or ResidualEncoderUNet, with nnU-Net's non-linearity and no dropout.

    Args:
        name: `PLAIN` or `RESIDUAL`.
        features: Width of each stage.
        kernels: Kernel of each stage; their length is the number of dimensions.
        strides: Stride at the start of each stage.
        convs: Convolutions (plain) or blocks (residual) of each stage.
        decoder_convs: Convolutions of each decoder stage, lowest resolution first.
        bias: Whether convolutions have a bias.
        norm: Normalisation below `torch.nn.modules`, without its dimensions; None for none.
    """
    dimensions = len(kernels[0])
    arguments = {
        "n_stages": len(features),
        "features_per_stage": list(features),
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "kernel_sizes": [list(kernel) for kernel in kernels],
        "strides": [list(stride) for stride in strides],
        "n_conv_per_stage" if name == PLAIN else "n_blocks_per_stage": list(convs),
        "n_conv_per_stage_decoder": list(decoder_convs),
        "conv_bias": bias,
        "norm_op": None if norm is None else f"torch.nn.modules.{norm}{dimensions}d",
        "norm_op_kwargs": None if norm is None else {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    imports = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    return {"network_class_name": name, "arch_kwargs": arguments, "_kw_requires_import": imports}


def derive(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read the architecture off the tensors' names and shapes.

    A stage's stride does not show in the encoder; it equals the kernel of the transposed convolution that undoes it.

    Args:
        weights: One name per tensor, as nnU-Net v2 names them.

    Returns:
        Architecture block, and what had to be assumed.

    Raises:
        CheckpointError: These are not the tensors of a known network.
    """
    name = RESIDUAL if STEM[RESIDUAL] in weights else PLAIN
    first = _counted(weights, CONVS[name].format("{}", 0))
    if len(first) < 2 or STEM[name] not in weights or {tensor.ndim for tensor in first} not in ({4}, {5}):
        raise CheckpointError(unknown_network(weights))
    stages = len(first)
    undone = [weights.get(f"decoder.transpconvs.{stages - 1 - stage}.weight") for stage in range(1, stages)]
    dimensions = first[0].ndim - 2
    strides = [[1] * dimensions, *([2] * dimensions if up is None else list(up.shape[2:]) for up in undone)]
    notes = ("strides are assumed to be 2: the file has no decoder to read them off",) if None in undone else ()
    second = weights.get("encoder.stages.0.0.convs.1.conv.weight")
    if second is not None and second.shape[:1] == (2 * first[0].shape[0],):
        return original_unet3d([2 * tensor.shape[0] for tensor in first], strides), notes
    decoder = [len(_counted(weights, f"decoder.stages.{level}.convs.{{}}.conv.weight")) for level in range(stages - 1)]
    start = STEM[name].removesuffix("conv.weight")
    norm = "batchnorm.BatchNorm" if f"{start}norm.running_mean" in weights else "instancenorm.InstanceNorm"
    return unet(
        name,
        [tensor.shape[0] for tensor in first],
        [tensor.shape[2:] for tensor in first],
        strides,
        [len(_counted(weights, CONVS[name].format(stage, "{}"))) for stage in range(stages)],
        [count or (1 if name == RESIDUAL else 2) for count in decoder],
        bias=f"{start}conv.bias" in weights,
        norm=norm if f"{start}norm.weight" in weights else None,
    ), notes


def checked(architecture: Any) -> dict[str, Any]:
    """An architecture block from a file in plain values and lists, with the full name of its network.

    Raises:
        CheckpointError: It is incomplete, or names another network. Whether sizes and layers are allowed is for
            `skeleton` to say.
    """
    try:
        name = str(architecture["network_class_name"])
        arguments = _spelled_out(plain(architecture["arch_kwargs"], as_json=True))
        imports = list(map(str, architecture["_kw_requires_import"]))
        stages = min(len(arguments[key]) for key in ("features_per_stage", "strides"))
        axes = {len(entry) for key in PER_AXIS for entry in arguments.get(key, [])}
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError("describes its network incompletely.") from None
    known = CLASSES.get(name.rsplit(".", 1)[-1])
    if known is None or stages < 2:
        raise CheckpointError(
            f"names a network that is not read: {printable(name, 150)}. Read are {', '.join(CLASSES)}."
        )
    if axes != {_dimensions(arguments)}:
        raise CheckpointError("describes kernels or strides of other axes than its convolutions have.")
    return {"network_class_name": known, "arch_kwargs": arguments, "_kw_requires_import": imports}


def assumed_operations(architecture: Mapping[str, Any]) -> str:
    """What tensors do not tell about the operations between convolutions, as the start of a sentence."""
    norm = str(architecture["arch_kwargs"].get("norm_op"))
    if "InstanceNorm" in norm:
        return "instance normalisation and LeakyReLU of slope 0.01 are assumed"
    return "LeakyReLU of slope 0.01 is assumed"


def _spelled_out(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a network with a list where its class also takes one number for all stages or axes."""
    found, dimensions = dict(arguments), _dimensions(arguments)
    stages = min(int(found.get("n_stages", 0)), MOST_STAGES + 1)
    for key, short in (*((key, 0) for key in PER_STAGE), ("n_conv_per_stage_decoder", 1)):
        if isinstance(found.get(key), int):
            found[key] = [found[key]] * (stages - short)
    for key in PER_AXIS:
        if key in found:
            found[key] = [[entry] * dimensions if isinstance(entry, int) else entry for entry in found[key]]
    return found


def _dimensions(arguments: Mapping[str, Any]) -> int:
    return 2 if str(arguments.get("conv_op")).endswith("Conv2d") else 3


def _counted(weights: Mapping[str, torch.Tensor], pattern: str) -> list[torch.Tensor]:
    """The tensors whose names have 0, 1, 2, … in the pattern's place, up to the first that is missing."""
    found: list[torch.Tensor] = []
    while pattern.format(len(found)) in weights:
        found.append(weights[pattern.format(len(found))])
    return found
