"""Tensors of a Primus, in whatever network they are kept → their names in nnU-Net's Primus, and its architecture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch

from nnunet_genesis.checkpoints.names import canonical
from nnunet_genesis.checkpoints.plain_types import plain
from nnunet_genesis.checkpoints.validate import Validated, disagreement, fits
from nnunet_genesis.errors import CheckpointError, TransferError, printable
from nnunet_genesis.named_classes import OURS, PRIMUS, names_primus
from nnunet_genesis.networks.build import skeleton
from nnunet_genesis.networks.primus_layout import HEAD, POSITIONS, READS_IMAGE, REGISTERS
from nnunet_genesis.networks.tied_names import name_groups
from nnunet_genesis.networks.wording import times

LAST_NORM = "eva.norm.weight"
"""A tensor that every Primus has."""
ROTATIONS = "eva.rope.pos_embed"
"""Sines and cosines by grid and heads: no weights, and in files of older libraries only."""
ENCODER = ("eva.", "down_projection.", REGISTERS)
TRAINED_WITH = {"init_values": 0.1, "scale_attn_inner": True}
"""What nnU-Net's and nnssl's trainers set where tensors show that it is set."""


def holds_primus(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether the tensors of a Primus's transformer are among these."""
    return any(_is_last_norm(name) for name in weights)


def _is_last_norm(name: str) -> bool:
    return name == LAST_NORM or name.endswith("." + LAST_NORM)


def own_tensors(
    weights: Mapping[str, torch.Tensor], prefix: str | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Take the Primus out of the network that it was trained in, e.g. a masked autoencoder.

    Args:
        weights: All tensors of a file.
        prefix: Begins the names of the Primus's; None to find it.

    Returns:
        Its tensors by nnU-Net's names, one each, and the others.

    Raises:
        CheckpointError: There are several, or none with that prefix.
    """
    found = [name.removesuffix(LAST_NORM) for name in weights if _is_last_norm(name)]
    if prefix is None and len(found) > 1:
        names = ", ".join(printable(name or "no prefix", 60) for name in found[:4])
        raise CheckpointError(f"holds {len(found)} transformers ({names}). Save the one that is meant.")
    prefix = found[0] if prefix is None else prefix
    if prefix not in found:
        raise CheckpointError(f"has no Primus where it says that it has one ({printable(prefix, 60)}eva).")
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    others = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    return canonical(own), others


def derive_primus(
    weights: Mapping[str, torch.Tensor], patches: Iterable[Any], published: bool = False
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read the architecture off the tensors' names and shapes.

    Args:
        weights: As `own_tensors` gives them.
        patches: Patches that the network may have been trained on, the likeliest first; the first that makes as many
            tokens as there are positions is taken. Without one, the patch is assumed to be a cube.
        published: Whether it is known to have a published size, from which the number of heads follows.

    Returns:
        Architecture block, and what had to be assumed.

    Raises:
        CheckpointError: These are not the tensors of a Primus, or do not tell enough.
    """
    image = next((tensor for name, tensor in weights.items() if READS_IMAGE.fullmatch(name)), None)
    norm, first = weights[LAST_NORM], "eva.blocks.0."
    if image is None or image.ndim != 5 or norm.ndim != 1 or f"{first}norm1.weight" not in weights:
        raise CheckpointError("holds a part of a Primus only: its projection of the image or its blocks are missing.")
    width = len(norm)
    kind, tokens_of, cell = _projection(weights, image)
    heads, assumed = _heads(width, weights.get(ROTATIONS))
    registers = weights[REGISTERS].shape[1] if REGISTERS in weights and weights[REGISTERS].ndim == 3 else 0
    patch, cube = _patch(weights.get(POSITIONS), registers, cell, patches)
    signs = {"init_values": f"{first}gamma_1", "scale_attn_inner": f"{first}attn.norm.weight"}
    arguments = {
        "embed_dim": width,
        "eva_depth": _counted(weights, "eva.blocks.{}.norm1.weight"),
        "eva_numheads": heads,
        "patch_embed_size": cell,
        "input_shape": patch,
        **{key: value for key, value in TRAINED_WITH.items() if signs[key] in weights},
        **({"num_register_tokens": registers} if registers else {}),
        **({} if POSITIONS in weights else {"use_abs_pos_embed": False}),
        **tokens_of,
    }
    if kind == "PrimusV3":  # its defaults are these; the others' are not
        arguments |= {key: None if key == "init_values" else False for key in TRAINED_WITH if key not in arguments}
    block = {"network_class_name": PRIMUS + kind, "arch_kwargs": arguments, "_kw_requires_import": []}
    return block, cube if published else assumed + cube


def _projection(weights: Mapping[str, torch.Tensor], image: torch.Tensor) -> tuple[str, dict[str, Any], list[int]]:
    """Class of the network, its arguments on how tokens are made, edges of a cell."""
    start = "down_projection."
    if f"{start}proj.weight" in weights:
        return "Primus", {}, list(image.shape[2:])
    pattern = f"{start}stages.{{}}.blocks.{{}}.conv1.conv.weight"
    stages = _counted(weights, pattern.format("{}", 0))
    depths = [_counted(weights, pattern.format(stage, "{}")) for stage in range(stages)]
    widths = [len(image), *(len(weights[pattern.format(stage, 0)]) for stage in range(stages))]
    skips = f"{start}proj_to_tokens.0.weight" in weights
    cell = [2 ** min(stages, 11)] * 3
    if not skips and widths == [32 * 2 ** max(stage - 1, 0) for stage in range(stages + 1)]:
        return "PrimusV2", {}, cell
    return "PrimusV3", {"depth_per_level": depths, "ch_per_level": widths, "add_skips": skips}, cell


def _heads(width: int, rotations: torch.Tensor | None) -> tuple[int, tuple[str, ...]]:
    """Number of heads, and the note on an assumption."""
    if rotations is not None and rotations.ndim == 2 and rotations.shape[1] >= 2:
        return 2 * width // rotations.shape[1], ()  # sine and cosine for each feature of a head
    from nnunet_genesis.primus import WIDTHS  # imports transformers

    # tensors show the width of all heads together only
    published = {embed_dim: eva_numheads for embed_dim, _, eva_numheads in WIDTHS.values()}
    if width not in published:
        known = ", ".join(map(str, published))
        raise CheckpointError(
            f"holds a Primus of width {width} without its plans: the tensors do not tell its number of heads, which is "
            f"known for widths {known} only. Name the checkpoint of the training, with the plans inside."
        )
    heads = published[width]
    return heads, (f"{heads} heads are assumed, those of the published Primus of width {width}",)


def _patch(
    positions: torch.Tensor | None, registers: int, cell: Sequence[int], patches: Iterable[Any]
) -> tuple[list[int], tuple[str, ...]]:
    """Edges of the patch, and the note on an assumption."""
    tokens = None if positions is None else (positions.shape[1] if positions.ndim == 3 else 0) - registers
    for patch in patches:
        if len(patch) == 3 and all(size % edge == 0 and size for size, edge in zip(patch, cell, strict=True)):
            grid = [size // edge for size, edge in zip(patch, cell, strict=True)]
            if tokens is None or prod(grid) == tokens:
                return [int(size) for size in patch], ()
    edge = round(max(tokens or 0, 0) ** (1 / 3))
    if not tokens or edge**3 != tokens:
        raise CheckpointError(
            f"does not tell the patch of its Primus: {tokens or 'no'} positions are no cube, and it holds no plans "
            "that fit them. Name the checkpoint of the training, with the plans inside."
        )
    patch = [edge * size for size in cell]
    return patch, (f"a patch of {times(patch)} is assumed: the file says {tokens} tokens, and a cube is likeliest",)


def validate_primus(
    weights: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor], architecture: Any
) -> Validated:
    """Build the network, without memory for its weights, and compare names and shapes.

    Projection of the image and transformer must be complete. What makes logits of tokens may be missing or another
    one, as may the mask token.

    Args:
        weights: As `own_tensors` gives them.
        others: What the file holds besides.
        architecture: Block of nnU-Net's plans; it may come from a file.

    Raises:
        CheckpointError: The weights are not those of the architecture.
    """
    block = _checked(architecture)
    image = next((tensor for name, tensor in weights.items() if READS_IMAGE.fullmatch(name)), None)
    if image is None or image.ndim != 5:
        raise CheckpointError("holds a part of a Primus only: its projection of the image is missing.")
    try:
        network = skeleton(block, image.shape[1], _classes(weights))
    except TransferError as error:
        raise CheckpointError(f"describes a network that cannot be built. {error}") from None
    of_network, first_names = network.state_dict(), list(name_groups(network))
    fitting = {name for name in first_names if name in weights and fits(name, weights[name], of_network[name])}
    wrong = [name for name in first_names if name in weights and name not in fitting and name.startswith(ENCODER)]
    missing = [name for name in first_names if name not in weights and name.startswith(ENCODER)]
    strange = [name for name in weights.keys() - {*first_names, ROTATIONS} if name.startswith(ENCODER)]
    if missing or wrong or strange:
        raise CheckpointError(disagreement(block, missing, wrong, sorted(strange), weights, of_network))
    used = {name: weights[name] for name in first_names if name in fitting}
    left = [*(name for name in weights if name not in used and name != ROTATIONS), *others]
    return Validated(used, block, image.shape[1], tuple(_remarks(used, left)))


def _remarks(used: Mapping[str, torch.Tensor], left: Sequence[str]) -> Iterable[str]:
    if not any(name.startswith(HEAD) for name in used):
        yield "encoder only"
    if left:
        yield f"{len(left)} tensors are no part of a Primus and are not used, e.g. {left[0][:100]}"


def is_described(architecture: Any) -> bool:
    """Whether plans name a Primus; nnU-Net's own trainers build theirs under plans that name a U-Net."""
    return isinstance(architecture, Mapping) and names_primus(str(architecture.get("network_class_name")))


def _checked(architecture: Any) -> dict[str, Any]:
    """An architecture block from a file in plain values and lists."""
    try:
        name = str(architecture["network_class_name"])
        arguments = plain(architecture["arch_kwargs"], as_json=True)
        imports = list(map(str, architecture["_kw_requires_import"]))
        shapes = [len(arguments[key]) for key in ("patch_embed_size", "input_shape")]
        numbers = [arguments[key] for key in ("embed_dim", "eva_depth", "eva_numheads")]
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError("describes its network incompletely.") from None
    if not names_primus(name) or name not in OURS:
        raise CheckpointError(f"names a network that is not its own: {printable(name, 150)}.")
    if shapes != [3, 3] or not all(isinstance(number, int) for number in numbers):
        raise CheckpointError("describes its network incompletely.")
    return {"network_class_name": name, "arch_kwargs": arguments, "_kw_requires_import": imports}


def _classes(weights: Mapping[str, torch.Tensor]) -> int:
    """Channels of the logits; any number where there are none."""
    last = [tensor for name, tensor in weights.items() if name.startswith(HEAD) and name.endswith(".weight")]
    return max(last[-1].shape[1], 1) if last and last[-1].ndim == 5 else 2


def _counted(weights: Mapping[str, torch.Tensor], pattern: str) -> int:
    count = 0
    while pattern.format(count) in weights:
        count += 1
    return count
