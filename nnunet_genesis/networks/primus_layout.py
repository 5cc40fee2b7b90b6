"""A Primus → its description: cells, grid of tokens, width, heads, blocks, and the part that each tensor belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from nnunet_genesis.errors import TransferError
from nnunet_genesis.networks.layout import AXES, HEADS, STEM
from nnunet_genesis.networks.tied_names import name_groups

HEAD = "up_projection."
"""Begins the names of what makes logits of tokens: the only decoder that a Primus has."""
POSITIONS = "eva.pos_embed"
REGISTERS = "register_tokens"
MASK_TOKEN = "mask_token"
BLOCK = re.compile(r"eva\.blocks\.(\d+)\.")
READS_IMAGE = re.compile(r"down_projection\.(proj|stem\.blocks\.0\.(conv1\.conv|skip\.\d+\.conv))\.weight")
"""Weights whose inputs are the channels of the image: one convolution in a Primus, two in PrimusV2 and PrimusV3."""

ASIDE = ("dim", "training")
"""Of what rotary positions are told: follows from the heads, or is no constant."""


@dataclass(frozen=True)
class PrimusLayout:
    """A Primus's description.

    Attributes:
        family: Name of its class, which says how tokens are made of an image.
        width: Features of a token.
        depth: Number of transformer blocks.
        heads: Of each attention.
        cell: Edges of the voxels behind a token.
        grid: Tokens along each axis of a patch.
        registers: Number of further tokens, which stand for no place.
        rotations: Constants of the rotary positions, by name.
        parts: First name of each tensor → its row in a report, in the order of computation.
    """

    family: str
    width: int
    depth: int
    heads: int
    cell: tuple[int, ...]
    grid: tuple[int, ...]
    registers: int
    rotations: dict[str, Any]
    parts: dict[str, str]


def describe_primus(network: nn.Module) -> PrimusLayout:
    """Describe a Primus, of `nnunet_genesis.primus` or of the library that it comes from, on any device.

    Raises:
        TransferError: It does not keep its grid of tokens, which only rotary positions do.
    """
    eva: Any = network.eva
    if getattr(eva.rope, "feat_shape", None) is None:
        raise TransferError(
            f"The {type(network).__name__} has no rotary positions (use_rot_pos_emb), so that its grid of tokens "
            "cannot be told. Plan with them."
        )
    return PrimusLayout(
        type(network).__name__, int(eva.embed_dim), len(eva.blocks), int(eva.blocks[0].attn.num_heads),
        cell_of(network.down_projection), tuple(map(int, eva.rope.feat_shape)), int(eva.num_prefix_tokens),
        {key: value for key, value in vars(eva.rope).items() if key not in ASIDE and isinstance(value, int | float)},
        {name: part_of(name) for name in sorted(name_groups(network), key=_order)},
    )  # fmt: skip


def cell_of(projection: Any) -> tuple[int, ...]:
    """Edges of the voxels behind a token; stages of convolutions halve the image."""
    if hasattr(projection, "proj"):
        return tuple(map(int, projection.proj.kernel_size))
    return (2 ** len(projection.stages),) * AXES


def part_of(name: str) -> str:
    """The part that a tensor of a Primus belongs to; those of the encoder begin so, as in U-Nets."""
    if name.startswith(HEAD):
        return HEADS
    if name.startswith("down_projection."):
        return STEM
    if block := BLOCK.match(name):
        return f"encoder block {block[1]}"
    rows = {POSITIONS: "encoder positions", REGISTERS: "encoder registers", MASK_TOKEN: "mask token"}
    return rows.get(name, "encoder norm")


def _order(name: str) -> int:
    """Rank of what computes first; the names of a network come in the order in which it was put together."""
    return {STEM: 0, "mask token": 2, HEADS: 3}.get(part_of(name), 1)
