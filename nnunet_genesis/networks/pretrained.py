"""What every kind of checkpoint becomes: weights, their architecture, and what is known about the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nnunet_genesis.errors import printable
from nnunet_genesis.named_classes import names_primus
from nnunet_genesis.networks.outputs import Outputs
from nnunet_genesis.networks.wording import times

UNNAMED = "unnamed channel "
"""Begins the stand-in for the name of a channel that a checkpoint does not name."""

AXES_OF_NNUNET, AXES_REVERSED = "zyx", "xyz"
"""Orders of the axes of volumes: as nnU-Net's readers give them, and as nibabel's do."""


@dataclass(frozen=True)
class PretrainedNetwork:
    """A pre-trained network.

    Attributes:
        weights: One name per tensor, the first in the state dict of the architecture's network; decoder and heads may
            be missing.
        architecture: As in nnU-Net's plans: "network_class_name", "arch_kwargs", "_kw_requires_import".
        input_channels: Number of image channels.
        channels: Their names, None if unknown.
        format: Kind of file, in words.
        patch_size: Patch that the network was trained on, in voxels, None if unknown.
        spacing: Of the images it was trained on, in mm, None if unknown.
        normalisation: Scheme per channel, by nnU-Net's names, None if unknown.
        notes: What had to be assumed or left out.
        turned: Whether a Primus numbers the tokens of a patch with its first two axes swapped.
        cases: Record of the images that it was trained on, as the file holds it; None if the file does not say.
        outputs: What the rows of its segmentation heads stand for; None if unknown, or if it segments nothing.
        axes: Order of the axes of the volumes that it was trained on; a 2D network has the order of the last two.
    """

    weights: Mapping[str, torch.Tensor]
    architecture: Mapping[str, Any]
    input_channels: int
    channels: Sequence[str] | None = None
    format: str = "state dict"
    patch_size: list[int] | None = None
    spacing: list[float] | None = None
    normalisation: list[str] | None = None
    notes: tuple[str, ...] = ()
    turned: bool = False
    cases: Any = None
    outputs: Outputs | None = None
    axes: str = AXES_OF_NNUNET

    @property
    def parameters(self) -> int:
        """Number of values in the weights."""
        return sum(tensor.numel() for tensor in self.weights.values())

    @property
    def channel_labels(self) -> list[str]:
        """The names of the channels, or stand-ins that no dataset uses."""
        if self.channels is None:
            return [f"{UNNAMED}{number}" for number in range(self.input_channels)]
        return list(self.channels)

    def facts(self) -> dict[str, str]:
        """Label → text, for a user to read."""
        channels = ", ".join(self.channels) if self.channels else "names unknown"
        return {
            "format": self.format,
            "architecture": _in_words(self.architecture),
            "parameters": f"{self.parameters:,}",
            "channels": f"{self.input_channels} ({channels})",
            **({"outputs": str(self.outputs)} if self.outputs else {}),
            "axes": ", ".join(self.axes),
            "normalisation": ", ".join(self.normalisation) if self.normalisation else "unknown",
            "patch size": times(self.patch_size) if self.patch_size else "unknown",
            "spacing": " x ".join(f"{value:g}" for value in self.spacing) + " mm" if self.spacing else "unknown",
        }


def _in_words(architecture: Mapping[str, Any]) -> str:
    kwargs = architecture["arch_kwargs"]
    if names_primus(architecture["network_class_name"]):
        return _primus_in_words(architecture["network_class_name"].rsplit(".", 1)[1], kwargs)
    parts = [f"{architecture['network_class_name'].rsplit('.', 1)[1]}, {len(kwargs['strides'][0])}D"]
    parts.append(f"{len(kwargs['features_per_stage'])} stages of " + " ".join(map(str, kwargs["features_per_stage"])))
    for key, text in (("n_blocks_per_stage", "blocks"), ("n_conv_per_stage", "convolutions")):
        if key in kwargs:
            parts.append(f"{text} {' '.join(map(str, kwargs[key]))}")
    if "kernel_sizes" in kwargs:
        parts.append("kernels " + " ".join(map(times, kwargs["kernel_sizes"])))
    return "; ".join(
        [*parts, "strides " + " ".join(map(times, kwargs["strides"])), *_operations_in_words(architecture)]
    )


def _operations_in_words(architecture: Mapping[str, Any]) -> list[str]:
    """Normalisation and activation, e.g. InstanceNorm3d and LeakyReLU."""
    if architecture["network_class_name"].endswith(".UNet3D"):  # has no other, so that its arguments do not name them
        return ["norm BatchNorm3d", "activation ReLU"]
    named = [architecture["arch_kwargs"].get(key) for key in ("norm_op", "nonlin")]
    norm, activation = ("none" if name is None else printable(str(name).rpartition(".")[2], 40) for name in named)
    return [f"norm {norm}", f"activation {activation}"]


def _primus_in_words(name: str, kwargs: Mapping[str, Any]) -> str:
    cell, patch = kwargs["patch_embed_size"], kwargs["input_shape"]
    grid = [edge // size for edge, size in zip(patch, cell, strict=True)]
    return (
        f"{name}, a 3D transformer; {kwargs['eva_depth']} blocks of width {kwargs['embed_dim']}, "
        f"{kwargs['eva_numheads']} heads; {times(grid)} tokens of {times(cell)} voxels"
    )
