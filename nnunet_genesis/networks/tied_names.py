"""One tensor, several names: a network's state dict → groups of names that share a tensor."""

from __future__ import annotations

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
