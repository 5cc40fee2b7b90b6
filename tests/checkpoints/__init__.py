"""Checkpoints of other trainings, built here from plain re-tellings of their networks."""

from __future__ import annotations

from typing import Any

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_genesis.networks.pretrained import PretrainedNetwork
from nnunet_genesis.networks.tied_names import name_groups


def build(
    source: PretrainedNetwork | dict[str, Any], classes: int, channels: int = 1, deep_supervision: bool = True
) -> nn.Module:
    """The network that nnU-Net builds from an architecture block."""
    block = source.architecture if isinstance(source, PretrainedNetwork) else source
    channels = source.input_channels if isinstance(source, PretrainedNetwork) else channels
    return get_network_from_plans(
        block["network_class_name"], block["arch_kwargs"], block["_kw_requires_import"], channels, classes,
        allow_init=False, deep_supervision=deep_supervision,
    )  # fmt: skip


def loaded(source: PretrainedNetwork, classes: int, deep_supervision: bool = True) -> nn.Module:
    """The network of a source with its weights, which must be one name of each of its tensors."""
    network = build(source, classes, deep_supervision=deep_supervision)
    assert list(source.weights) == list(name_groups(network))
    assert network.load_state_dict(source.weights, strict=False).unexpected_keys == []
    return network
