"""One tensor, several names: a network's state dict → groups of names that share a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn


def name_groups(network: nn.Module) -> dict[str, list[str]]:
    """First name of each tensor → all its names in state dict order.

    nnU-Net's networks register a convolution up to four times (below `encoder` and `decoder.encoder`, as `conv` and
    as `all_modules.0`); which names belong together is read off the network itself, by identity of the tensor.
    """
    groups: dict[int, list[str]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return {names[0]: names for names in groups.values()}


def effective(names: Sequence[str], source: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The tensor that a file gives to a group of names: the last one, as `load_state_dict` would; None if none."""
    found = [source[name] for name in names if name in source]
    return found[-1] if found else None
