"""A Primus → a masked autoencoder: the transformer sees visible tokens alone, a light decoder restores hidden cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.building_blocks.eva import Eva
from timm.layers.drop import DropPath
from torch import Tensor, nn

from nnunet_genesis.pretraining.cells import grid_of, visible_cells, voxels_of
from nnunet_genesis.settings import PretrainingSettings

SPREAD = 0.02
"""Standard deviation of a fresh mask token, as of the library's positions."""


class MaskedAutoencoder(nn.Module):
    """He et al. (CVPR 2022), in 3D Zhou et al. (SelfMedMAE, ISBI 2023), on nnU-Net's Primus.

    The tokens of visible cells, and no others, go through the transformer; a trainable mask token takes the place of
    the hidden ones; a decoder of half the width, with positions of its own, sees all of them. How ours differs: voxels
    come from the Primus' own up-projection, not from a linear layer, so that all of the Primus is trained, and
    transferred. Its tensors are named `network.…` in `state_dict`; the decoder's begin with `decoder_of_tokens`.
    """

    def __init__(self, primus: nn.Module, patch: tuple[int, int, int], cell: tuple[int, int, int], depth: int) -> None:
        """Wrap a network, whose mask token becomes a parameter.

        Args:
            primus: A Primus with as many outputs as inputs.
            patch: Its `input_shape`, in voxels.
            cell: Its `patch_embed_size`, in voxels.
            depth: Blocks of the decoder, at least 1.
        """
        super().__init__()
        network: Any = primus
        tokens, self.cell = network.mask_token, cell
        del network.mask_token
        network.mask_token = nn.Parameter(torch.empty_like(tokens).normal_(std=SPREAD))
        self.network = network
        width, heads = tokens.shape[-1], network.eva.blocks[0].attn.num_heads
        narrow_heads = max(1, heads // 2)  # of the same width: the rotary positions of the library ask for that
        narrow = width // heads * narrow_heads
        self.decoder_of_tokens = nn.ModuleDict(
            {
                "narrow": nn.Linear(width, narrow),
                "blocks": Eva(narrow, depth, narrow_heads, ref_feat_shape=grid_of(patch, cell)),
                "widen": nn.Linear(narrow, width),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Restore hidden cells.

        Args:
            x: (B, C, *patch). A cell is hidden if any of its voxels is NaN in any channel; whatever else it holds is
                not seen. At least one cell of each patch must be visible.

        Returns:
            (B, C, *patch). What stands in visible cells is not trained, and means nothing.
        """
        visible = visible_cells(x, self.cell)
        tokens = self.network.mask_token.repeat(*visible.shape, 1)
        counts = visible.sum(1)
        for count in counts.unique():  # samples with as many visible cells go through the encoder together
            members = counts == count
            seen = encode_visible(self.network, x[members], visible[members], self.cell)
            tokens = tokens.type(seen.dtype)
            tokens[members[:, None] & visible] = seen.flatten(0, 1)
        decoded, _ = self.decoder_of_tokens["blocks"](self.decoder_of_tokens["narrow"](tokens))
        decoded = self.decoder_of_tokens["widen"](decoded)
        grid = grid_of(x.shape[2:], self.cell)
        restored: Tensor = self.network.up_projection(decoded.transpose(1, 2).unflatten(2, grid))
        return restored


def for_pretraining(primus: nn.Module, arguments: Mapping[str, Any], settings: PretrainingSettings) -> nn.Module:
    """A Primus as it is pre-trained: with drop-path of the settings, wrapped where it gets visible cells alone.

    Args:
        primus: The network that the plans describe.
        arguments: The arguments that the plans have for it.
        settings: Drop-path, recipe and decoder.
    """
    set_drop_path(primus, settings.drop_path)
    if not settings.recipe.masking.leaves_out:
        return primus
    patch, cell = tuple(arguments["input_shape"]), tuple(arguments["patch_embed_size"])
    return MaskedAutoencoder(primus, patch, cell, settings.decoder_depth)


def set_drop_path(primus: nn.Module, rate: float) -> None:
    """Drop whole paths of the transformer's blocks in training, ever more often, up to `rate` (0..1) in the last."""
    network: Any = primus
    for block, own in zip(network.eva.blocks, np.linspace(0, rate, len(network.eva.blocks)), strict=True):
        block.drop_path1, block.drop_path2 = (DropPath(float(own)) if own else nn.Identity() for _ in range(2))


def encode_visible(primus: nn.Module, x: Tensor, visible: Tensor, cell: Sequence[int]) -> Tensor:
    """Tokens that a Primus makes of visible cells, as if there were no others.

    With all cells visible they equal those of the library's forward. Stems of several convolutions (PrimusV2, V3) see
    beyond a cell: voxels of hidden cells are set to 0 first, so that none of them influences a token.

    Args:
        primus: The library's Primus, PrimusV2 or PrimusV3.
        x: (B, C, *patch), anything in hidden cells.
        visible: bool (B, cells), row-major; the same number of True in each row, at least 1.
        cell: Edges of a cell in voxels, the network's `patch_embed_size`.

    Returns:
        (B, visible cells, embed_dim), in row-major order of the cells.
    """
    network: Any = primus
    hidden = ~voxels_of(visible, cell, x.shape[2:])
    tokens = network.down_projection(x.masked_fill(hidden, 0.0)).flatten(2).transpose(1, 2)
    if network.register_tokens is not None:
        tokens = torch.cat((network.register_tokens.expand(len(x), -1, -1), tokens), dim=1)
    if network.eva.pos_embed is not None:
        tokens = tokens + network.eva.pos_embed
    registers = tokens.shape[1] - visible.shape[1]
    index = visible.nonzero()[:, 1].view(len(x), -1)
    kept = torch.cat((torch.arange(registers, device=x.device).expand(len(x), -1), index + registers), dim=1)
    tokens = network.eva.pos_drop(tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2])))
    rope = None if network.eva.rope is None else network.eva.rope.get_embed()[index][:, None]  # one for all heads
    for block in network.eva.blocks:
        tokens = block(tokens, rope=rope)
    encoded: Tensor = network.eva.norm(tokens)[:, registers:]
    return encoded
