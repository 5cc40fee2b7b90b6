"""The `architecture` block of plans → its network without memory: shapes and names, no weights, nothing imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.residual import BasicBlockD, BottleneckD
from torch import nn

from nnunet_genesis.errors import TransferError
from nnunet_genesis.unet3d import UNet3D

NETWORKS = {kind.__name__: kind for kind in (PlainConvUNet, ResidualEncoderUNet, UNet3D)}
BLOCKS = {kind.__name__: kind for kind in (BasicBlockD, BottleneckD)}
LAYER = re.compile(r"torch\.nn\.(modules\.[a-z]+\.)?[A-Z]\w*")
"""Paths under which PyTorch's layers are found."""


def skeleton(architecture: Mapping[str, Any], channels: int, classes: int = 1) -> nn.Module:
    """The network that an architecture block describes, on torch's meta device: shapes without memory.

    The block may come out of a foreign file, so only the known U-Nets and layers of `torch.nn` are looked up.

    Raises:
        TransferError: Another network or class is named, or the values do not make a network.
    """
    try:
        name = str(architecture["network_class_name"]).rsplit(".", 1)[-1]
        values = dict(architecture["arch_kwargs"])
        imports = list(architecture.get("_kw_requires_import", ()))
    except (KeyError, TypeError, ValueError):
        raise TransferError(
            'The checkpoint does not say which network it holds: "network_class_name" or "arch_kwargs" is missing in '
            "its architecture."
        ) from None
    if name not in NETWORKS:
        raise TransferError(f"The checkpoint holds a {name}; weights are carried from {', '.join(NETWORKS)} only.")
    values |= {key: _class(values[key]) for key in imports if values.get(key) is not None}
    values.pop("deep_supervision", None)
    try:
        with torch.device("meta"):
            network: nn.Module = NETWORKS[name](input_channels=channels, num_classes=classes, **values)
    except (TypeError, ValueError, AssertionError, RuntimeError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TransferError(f"The {name} that the checkpoint describes cannot be built: {reason}.") from None
    return network


def _class(name: Any) -> Any:
    """`torch.nn.modules.conv.Conv3d` → that class; nothing outside `torch.nn` and nnU-Net's two residual blocks."""
    last = str(name).rsplit(".", 1)[-1]
    if last in BLOCKS and str(name) == f"{BLOCKS[last].__module__}.{last}":
        return BLOCKS[last]
    found = getattr(nn, last, None) if LAYER.fullmatch(str(name)) else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise TransferError(f"The checkpoint's architecture names {name}, which is no layer of torch.nn.")
    return found
