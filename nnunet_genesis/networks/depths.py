"""A network → the parameters of its encoder, from the image on: what layer-wise learning rates go by."""

from __future__ import annotations

from typing import Any

from torch import nn

from nnunet_genesis.named_classes import is_primus


def encoder_depths(network: nn.Module) -> list[list[nn.Parameter]]:
    """Parameters of stem and encoder, by depth.

    Args:
        network: A U-Net of nnU-Net, the original UNet3D or a Primus, without wrappers.

    Returns:
        The stem first, then one list for each stage, or block of a Primus, and last what is as near to the heads as the
        decoder: the norm behind a Primus' blocks, nothing in a U-Net. The stem of a Primus are projection and
        positions; in a plain encoder the first stage has it, so that the first list is empty. The lists one after the
        other are in the order of `network.parameters()`, by which checkpoints keep the state of an optimiser.
    """
    stem: list[Any]
    if is_primus(network):
        eva: Any = network.eva
        inside = {id(parameter) for part in (eva.blocks, eva.norm) for parameter in part.parameters()}
        positions = [parameter for parameter in eva.parameters() if id(parameter) not in inside]
        stem = [*network.down_projection.parameters(), *positions]  # type: ignore[union-attr]
        return [stem, *(list(block.parameters()) for block in eva.blocks), list(eva.norm.parameters())]
    encoder: Any = network.encoder
    inside = {id(parameter) for parameter in encoder.stages.parameters()}
    stem = [parameter for parameter in encoder.parameters() if id(parameter) not in inside]
    return [stem, *(list(stage.parameters()) for stage in encoder.stages), []]
