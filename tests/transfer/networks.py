"""Small U-Nets built from architecture blocks as in nnU-Net's plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nnunet_genesis.named_classes import layer_class
from nnunet_genesis.networks.pretrained import PretrainedNetwork

DNA = "dynamic_network_architectures.architectures.unet."


def architecture(
    kind: str = "plain",
    dim: int = 3,
    features: Sequence[int] = (4, 6, 8),
    kernels: Any = None,
    strides: Any = None,
    blocks: Sequence[int] | None = None,
    decoder: Sequence[int] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """The `architecture` block of a plans file; kernels 3 and strides 2 where none are given."""
    stages = len(features)
    values = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
        "kernel_sizes": kernels or [[3] * dim] * stages,
        "strides": strides or [[1] * dim] + [[2] * dim] * (stages - 1),
        "n_conv_per_stage_decoder": list(decoder or [1] * (stages - 1)),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    if kind == "plain":
        values["n_conv_per_stage"] = list(blocks or [2] * stages)
    else:
        values["n_blocks_per_stage"] = list(blocks or [1, *[2] * (stages - 1)])
    return {
        "network_class_name": DNA + {"plain": "PlainConvUNet", "residual": "ResidualEncoderUNet"}[kind],
        "arch_kwargs": values | changes,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def build(block: dict[str, Any], channels: int = 1, classes: int = 2, seed: int = 0) -> nn.Module:
    """The network with random weights, norms and biases."""
    import dynamic_network_architectures.architectures.unet as unets

    values = {key: layer_class(value, key) if key in block["_kw_requires_import"] and value else value
              for key, value in block["arch_kwargs"].items()}  # fmt: skip
    kind = getattr(unets, block["network_class_name"].rsplit(".", 1)[-1])
    torch.manual_seed(seed)
    network = kind(input_channels=channels, num_classes=classes, **values)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


def unet(kind: str = "plain", channels: int = 1, classes: int = 2, dim: int = 3, features=(4, 6, 8), seed: int = 0):
    return build(architecture(kind, dim, features), channels, classes, seed)


def names(count: int) -> list[str]:
    return [f"channel {i}" for i in range(count)]


def source(block: dict[str, Any], network: nn.Module, channels: Sequence[str]) -> PretrainedNetwork:
    return PretrainedNetwork(network.state_dict(), block, len(channels), channels)


def periodic(network: nn.Module) -> nn.Module:
    """Continue images around their borders: what is constant along an axis then stays so to its very ends."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            module.padding_mode = "circular"
    return network
