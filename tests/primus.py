"""Small Primus by every way that leads to one: plans, nnU-Net's and nnssl's trainings, a masked autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from dynamic_network_architectures.building_blocks.eva import Eva
from torch import nn

from nnunet_genesis import primus
from nnunet_genesis.networks.pretrained import PretrainedNetwork

KINDS = ("Primus", "PrimusV2", "PrimusV3")


def primus_block(kind: str = "Primus", patch=(16, 24, 16), cell=(8, 8, 8), **changes: Any) -> dict[str, Any]:
    """The `architecture` block of a plans file."""
    values = {"embed_dim": 48, "eva_depth": 2, "eva_numheads": 2, "patch_embed_size": list(cell),
              "input_shape": list(patch), "drop_path_rate": 0.2, "scale_attn_inner": True, "init_values": 0.1}  # fmt: skip
    if kind == "PrimusV3":
        values |= {"ch_per_level": [4, 6, 8, 10]}
    return {"network_class_name": f"nnunet_genesis.primus.{kind}", "arch_kwargs": values | changes,
            "_kw_requires_import": []}  # fmt: skip


def build_primus(block: dict[str, Any], channels: int = 1, classes: int = 2, seed: int = 0) -> Any:
    """The network with random weights, norms, positions and biases."""
    kind = getattr(primus, block["network_class_name"].rsplit(".", 1)[-1])
    torch.manual_seed(seed)
    network = kind(channels, classes, **block["arch_kwargs"])
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.3)
    nn.init.normal_(network.mask_token)
    return network.eval()


def primus_source(block: dict[str, Any], network: nn.Module, channels: Any = ("T1",)) -> PretrainedNetwork:
    return PretrainedNetwork(network.state_dict(), block, len(channels), channels)


class MaskedAutoencoder(nn.Module):
    """A Primus in a network with a decoder and a mask token of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.mask_token = nn.Parameter(torch.randn(1, 1, 24))
        self.decoder = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(24, 24)]), "norm": nn.LayerNorm(24)})


class OfNnssl(nn.Module):
    """The names of nnssl's masked autoencoder on Primus: a decoder of the transformer's kind, a trained mask token."""

    def __init__(self, network: Any, grid: tuple[int, ...], heads: int, decoder: int = 1) -> None:
        super().__init__()
        width = network.embed_dim
        self.down_projection, self.eva, self.up_projection = network.down_projection, network.eva, network.up_projection
        if decoder:
            self.decoder = Eva(width, decoder, heads, ref_feat_shape=grid, init_values=0.1, scale_attn_inner=True)
        else:
            self.up_projection = nn.Identity()
        self.mask_token = nn.Parameter(torch.randn(1, 1, width))
