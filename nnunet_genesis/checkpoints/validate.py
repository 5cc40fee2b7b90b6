"""Tensors and an architecture → the tensors of that network, after a check that they belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nnunet_genesis.checkpoints.architectures import STEM, checked
from nnunet_genesis.checkpoints.foreign import unknown_network
from nnunet_genesis.errors import CheckpointError, TransferError
from nnunet_genesis.networks.build import skeleton
from nnunet_genesis.networks.tied_names import name_groups

HEADS = ".seg_layers."
"""Part of the names of segmentation heads."""

COUNTER = ".num_batches_tracked"
"""End of the names of the only tensors that hold no weights: how often batch normalisation was trained."""


@dataclass(frozen=True)
class Validated:
    """Weights that were compared with their network.

    Attributes:
        weights: One name per tensor, the first in the network's state dict.
        architecture: Block of nnU-Net's plans in plain values.
        input_channels: Number of image channels.
        remarks: What is missing or left over.
    """

    weights: dict[str, torch.Tensor]
    architecture: dict[str, Any]
    input_channels: int
    remarks: tuple[str, ...]


def validate(weights: Mapping[str, torch.Tensor], architecture: Any) -> Validated:
    """Build the network, without memory for its weights, and compare names and shapes.

    The encoder must be complete. Heads may be missing, and the decoder too, in whole or in part. Kernels of decoder
    convolutions may differ: nnU-Net v1 gave them those of the next lower resolution. Tensors outside encoder and
    decoder are left out.

    Args:
        weights: One name per tensor.
        architecture: Block of nnU-Net's plans; it may come from a file.

    Raises:
        CheckpointError: The weights are not those of the architecture.
    """
    block = checked(architecture)
    stem = weights.get(STEM[block["network_class_name"]])
    if stem is None or stem.ndim < 4:
        raise CheckpointError(unknown_network(weights))
    channels = stem.shape[1]
    try:
        network = skeleton(block, channels, _classes(weights))
    except TransferError as error:
        raise CheckpointError(f"describes a network that cannot be built. {error}") from None
    except (ArithmeticError, LookupError, NotImplementedError):
        raise CheckpointError("describes a network that cannot be built.") from None
    of_network = network.state_dict()
    first_names = list(name_groups(network))
    missing = [name for name in first_names if name not in weights]
    needed = [name for name in missing if name.startswith("encoder.")]
    wrong = [name for name in first_names if name in weights and not fits(name, weights[name], of_network[name])]
    strange = [name for name in weights.keys() - first_names if name.startswith(("encoder.", "decoder."))]
    if needed or wrong or strange:
        raise CheckpointError(disagreement(block, needed, wrong, sorted(strange), weights, of_network))
    used = {name: weights[name] for name in first_names if name in weights}
    return Validated(used, block, channels, _remarks(weights, used, missing, of_network))


def _classes(weights: Mapping[str, torch.Tensor]) -> int:
    """Outputs of the heads; any number where there are none."""
    return next((tensor.shape[0] for name, tensor in weights.items() if HEADS in name and tensor.ndim), 2)


def fits(name: str, tensor: torch.Tensor, of_network: torch.Tensor) -> bool:
    """Whether a tensor has the kind and the shape that the network gives it; of decoders only its channels."""
    if not tensor.is_floating_point() and not name.endswith(COUNTER):
        return False
    any_kernel = name.startswith("decoder.stages.") and tensor.ndim == of_network.ndim > 1
    return tensor.shape[:2] == of_network.shape[:2] if any_kernel else tensor.shape == of_network.shape


def disagreement(
    block: dict[str, Any],
    missing: list[str],
    wrong: list[str],
    strange: list[str],
    weights: Mapping[str, torch.Tensor],
    of_network: Mapping[str, torch.Tensor],
) -> str:
    """The sentence on tensors that are not those of a network, after the name of the file."""
    name = block["network_class_name"].rsplit(".", 1)[1]
    if wrong:
        tensor, example = weights[wrong[0]], wrong[0]
        shape = tuple(of_network[example].shape)
        example += f" has shape {tuple(tensor.shape)} in place of {shape}" if tensor.shape != shape else (
            f" holds {str(tensor.dtype).removeprefix('torch.')} in place of numbers with a point")  # fmt: skip
    else:
        example = f"{missing[0]} is missing" if missing else f"{strange[0][:100]} does not belong to it"
    more = len(missing) + len(wrong) + len(strange) - 1
    return f"does not hold the {name} it seems to hold: {example}{f', and {more} more' if more else ''}."


def _remarks(
    weights: Mapping[str, torch.Tensor],
    used: Mapping[str, torch.Tensor],
    missing: list[str],
    of_network: Mapping[str, torch.Tensor],
) -> tuple[str, ...]:
    absent = [name for name in missing if name.startswith("decoder.") and HEADS not in name]
    decoder = [name for name in used if name.startswith("decoder.") and HEADS not in name]
    left = [name for name in weights if name not in used]
    kernels = [name for name in decoder if used[name].shape != of_network[name].shape]
    remarks = []
    if absent:
        share = f"{len(absent)} of {len(absent) + len(decoder)} decoder tensors are missing"
        remarks.append(share if decoder else "encoder only")
    if kernels:
        remarks.append(f"{len(kernels)} decoder convolutions have other kernels than nnU-Net v2 gives them")
    if left:
        remarks.append(
            f"{len(left)} tensors belong neither to encoder nor decoder and are not used, e.g. {left[0][:100]}"
        )
    return tuple(remarks)
