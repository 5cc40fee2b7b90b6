"""Two Primus of one grid of tokens → what the parts of both make of the same noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from nnunet_genesis.networks.primus_layout import cell_of

TOKENS = 64
"""Read by a block; all of a patch would take minutes and gigabytes."""
EDGE = 4
"""Tokens along each axis of what the projection gives out."""


def token_outputs(source: Any, target: Any, matrix: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What both networks' parts give out: projection to tokens, positions, blocks, the last norm.

    Blocks do the same to any subset of a grid's tokens if each keeps its place, so that some tokens are enough. The
    rotations of places are the target's: they follow from grid and heads, which both have alike.

    Args:
        source: The checkpoint's network, in evaluation.
        target: The target, in evaluation, with the same grid and heads; it may have more blocks.
        matrix: How much of each source channel goes into each target channel, (target, source).
    """
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=matrix.dtype)

    projections = source.down_projection, target.down_projection
    image = noise(1, len(matrix), *(EDGE * edge for edge in cell_of(target.down_projection)))
    yield projections[0](torch.einsum("ts,bt...->bs...", matrix, image)), projections[1](image)
    width, registers = target.eva.embed_dim, target.eva.num_prefix_tokens
    if registers:
        yield source.register_tokens, target.register_tokens.detach()
    if target.eva.pos_embed is not None:
        yield source.eva.pos_embed, target.eva.pos_embed.detach()
    rotations = target.eva.rope.get_embed().to(matrix.dtype)
    places = torch.randperm(len(rotations), generator=generator)[:TOKENS]
    blocks = source.eva.blocks
    for number, block in enumerate(target.eva.blocks):
        tokens = noise(1, registers + len(places), width)
        before = blocks[number](tokens, rope=rotations[places]) if number < len(blocks) else tokens
        yield before, block(tokens, rope=rotations[places])
    tokens = noise(1, TOKENS, width)
    yield source.eva.norm(tokens), target.eva.norm(tokens)
