"""Tensors and an architecture → tensors under all names of that network, after a check that they belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nnunet_genesis.checkpoints.architectures import STEM, checked, unknown
from nnunet_genesis.errors import CheckpointError, TransferError
from nnunet_genesis.networks.build import skeleton
from nnunet_genesis.networks.tied_names import name_groups

HEADS = ".seg_layers."
"""Part of the names of segmentation heads."""


def fit(
    weights: Mapping[str, torch.Tensor], architecture: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any], int, tuple[str, ...]]:
    """Build the network, without memory for its weights, and compare names and shapes.

    The encoder must be complete. Heads may be missing, and the decoder too, in whole or in part. Kernels of decoder
    convolutions may differ: nnU-Net v1 gave them those of the next lower resolution. Tensors outside encoder and
    decoder are left out.

    Args:
        weights: One name per tensor.
        architecture: Block of nnU-Net's plans; it may come from a file.

    Returns:
        Weights under all names of the network, the architecture as plain values, the number of input channels, and
        remarks on what is missing or left over.

    Raises:
        CheckpointError: The weights are not those of the architecture.
    """
    block = checked(architecture)
    stem = weights.get(STEM[block["network_class_name"]])
    if stem is None or stem.ndim < 4:
        raise CheckpointError(unknown(weights))
    channels = stem.shape[1]
    try:
        network = skeleton(block, channels, _classes(weights))
    except TransferError as error:
        raise CheckpointError(f"describes a network that cannot be built. {error}") from None
    tensors, groups = network.state_dict(), name_groups(network)
    missing = [name for name in groups if name not in weights]
    needed = [name for name in missing if name.startswith("encoder.")]
    wrong = [name for name in groups if name in weights and not _fits(name, weights[name], tensors[name])]
    strange = [name for name in weights if name not in groups and name.startswith(("encoder.", "decoder."))]
    if needed or wrong or strange:
        raise CheckpointError(_disagreement(block, needed, wrong, strange, weights, tensors))
    complete = {alias: weights[name] for name, names in groups.items() if name in weights for alias in names}
    return complete, block, channels, _remarks(weights, groups, missing, tensors)


def _classes(weights: Mapping[str, torch.Tensor]) -> int:
    """Outputs of the heads; any number where there are none."""
    return next((tensor.shape[0] for name, tensor in weights.items() if HEADS in name and tensor.ndim), 2)


def _fits(name: str, given: torch.Tensor, wanted: torch.Tensor) -> bool:
    other_kernel = name.startswith("decoder.stages.") and given.ndim == wanted.ndim and given.ndim > 1
    return given.shape[:2] == wanted.shape[:2] if other_kernel else given.shape == wanted.shape


def _disagreement(
    block: dict[str, Any],
    missing: list[str],
    wrong: list[str],
    strange: list[str],
    weights: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
) -> str:
    name = block["network_class_name"].rsplit(".", 1)[1]
    if wrong:
        first = wrong[0]
        example = f"{first} has shape {tuple(weights[first].shape)} in place of {tuple(tensors[first].shape)}"
    else:
        example = f"{missing[0]} is missing" if missing else f"{strange[0]} does not belong to it"
    more = len(missing) + len(wrong) + len(strange) - 1
    return f"does not hold the {name} it seems to hold: {example}{f', and {more} more' if more else ''}."


def _remarks(
    weights: Mapping[str, torch.Tensor],
    groups: Mapping[str, list[str]],
    missing: list[str],
    tensors: Mapping[str, torch.Tensor],
) -> tuple[str, ...]:
    decoder = [name for name in groups if name.startswith("decoder.") and HEADS not in name]
    absent = [name for name in decoder if name in missing]
    left = [name for name in weights if name not in groups]
    kernels = [name for name in decoder if name in weights and weights[name].shape != tensors[name].shape]
    remarks = []
    if absent:
        whole = len(absent) == len(decoder)
        remarks.append("encoder only" if whole else f"{len(absent)} of {len(decoder)} decoder tensors are missing")
    if kernels:
        remarks.append(f"{len(kernels)} decoder convolutions have other kernels than nnU-Net v2 gives them")
    if left:
        remarks.append(f"{len(left)} tensors belong neither to encoder nor decoder and are not used, e.g. {left[0]}")
    return tuple(remarks)
