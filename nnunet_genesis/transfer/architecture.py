"""Weights, the `architecture` block of plans and channel names → a source, and its network without memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.residual import BasicBlockD, BottleneckD
from torch import nn

from nnunet_genesis.errors import TransferError

NETWORKS = {kind.__name__: kind for kind in (PlainConvUNet, ResidualEncoderUNet)}
BLOCKS = {kind.__name__: kind for kind in (BasicBlockD, BottleneckD)}


@dataclass(frozen=True)
class Source:
    """What a checkpoint holds, whichever format it came in.

    Attributes:
        weights: Names as in nnU-Net v2's networks → tensors; any of a tensor's names will do, and parts may be missing.
        architecture: As in the plans of nnU-Net v2: `network_class_name`, `arch_kwargs`, `_kw_requires_import`.
        channels: Names of the input channels.
    """

    weights: Mapping[str, torch.Tensor]
    architecture: Mapping[str, Any]
    channels: Sequence[str]


def skeleton(architecture: Mapping[str, Any], channels: int) -> nn.Module:
    """The network that an architecture block describes, on torch's meta device: shapes without memory, one class.

    The block may come out of a foreign file, so only nnU-Net's two U-Nets and classes of `torch.nn` are looked up.

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
        raise TransferError(f"The checkpoint holds a {name}; weights are carried from {' and '.join(NETWORKS)} only.")
    values |= {key: _class(values[key]) for key in imports if values.get(key) is not None}
    values.pop("deep_supervision", None)
    try:
        with torch.device("meta"):
            network: nn.Module = NETWORKS[name](input_channels=channels, num_classes=1, **values)
    except (TypeError, ValueError, AssertionError, RuntimeError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TransferError(f"The {name} that the checkpoint describes cannot be built: {reason}.") from None
    return network


def _class(name: Any) -> Any:
    """`torch.nn.modules.conv.Conv3d` → that class; nothing outside `torch.nn` and nnU-Net's two residual blocks."""
    last = str(name).rsplit(".", 1)[-1]
    if str(name).startswith("dynamic_network_architectures.") and last in BLOCKS:
        return BLOCKS[last]
    found = getattr(nn, last, None) if str(name).startswith("torch.nn.") else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise TransferError(f"The checkpoint's architecture names {name}, which is no layer of torch.nn.")
    return found
