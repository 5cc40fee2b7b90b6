"""One tensor, several names: a network's state dict → groups of names that share a tensor."""

from __future__ import annotations

import torch
from torch import nn

HEADS = ".seg_layers."
"""Part of the name of every segmentation head, as in nnU-Net's own weight loading."""


def name_groups(network: nn.Module) -> dict[str, list[str]]:
    """First name of each tensor → all its names in state dict order.

    nnU-Net's networks register a convolution up to four times (below `encoder` and `decoder.encoder`, as `conv` and
    as `all_modules.0`); which names belong together is read off the network itself, by identity of the tensor.
    """
    groups: dict[int, list[str]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return {names[0]: names for names in groups.values()}


def effective(names: list[str], source: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """The tensor that a file gives to a group of names: the last one, as `load_state_dict` would; None if none."""
    found = [source[name] for name in names if name in source]
    return found[-1] if found else None


def part(name: str, stem: str) -> str:
    """Part of the network that a tensor belongs to: stem, encoder, decoder or segmentation heads."""
    if HEADS in name:
        return "segmentation heads"
    if name.startswith(stem):
        return "stem"
    return "encoder" if name.startswith("encoder.") else "decoder"


def stem_of(network: nn.Module) -> str:
    """Prefix of the first block that reads the image: `encoder.stem.` or the first convolution of stage 0.

    Its names are the first of the state dict in PlainConvUNet and ResidualEncoderUNet.
    """
    return "encoder.stem." if hasattr(network.encoder, "stem") and network.encoder.stem is not None else (
        "encoder.stages.0.0.convs.0."
    )  # fmt: skip
