"""What every kind of checkpoint becomes: weights, their architecture, and what is known about the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Source:
    """A pre-trained network.

    Attributes:
        format: Kind of file, in words.
        weights: Tensors under every name that the architecture's network gives them, so that `load_state_dict` takes
            them; names that share a tensor share it here. Encoder-only files lack the decoder, some files lack heads.
        architecture: As in nnU-Net's plans: "network_class_name", "arch_kwargs", "_kw_requires_import".
        input_channels: Number of image channels.
        channels: Their names, None if unknown.
        patch_size: Patch that the network was trained on, in voxels, None if unknown.
        spacing: Of the images it was trained on, in mm, None if unknown.
        normalisation: Scheme per channel, by nnU-Net's names, None if unknown.
        notes: What had to be assumed or left out.
    """

    format: str
    weights: dict[str, torch.Tensor]
    architecture: dict[str, Any]
    input_channels: int
    channels: list[str] | None = None
    patch_size: list[int] | None = None
    spacing: list[float] | None = None
    normalisation: list[str] | None = None
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of values in the weights; shared tensors count once."""
        return sum(tensor.numel() for tensor in {id(tensor): tensor for tensor in self.weights.values()}.values())

    def facts(self) -> dict[str, str]:
        """Label → text, for a user to read."""
        channels = ", ".join(self.channels) if self.channels else "names unknown"
        return {
            "format": self.format,
            "architecture": _in_words(self.architecture),
            "parameters": f"{self.parameters:,}",
            "channels": f"{self.input_channels} ({channels})",
            "normalisation": ", ".join(self.normalisation) if self.normalisation else "unknown",
            "patch size": _times(self.patch_size) if self.patch_size else "unknown",
            "spacing": " x ".join(f"{value:g}" for value in self.spacing) + " mm" if self.spacing else "unknown",
        }


def _in_words(architecture: dict[str, Any]) -> str:
    kwargs = architecture["arch_kwargs"]
    parts = [f"{architecture['network_class_name'].rsplit('.', 1)[1]}, {len(kwargs['strides'][0])}D"]
    parts.append(f"{len(kwargs['features_per_stage'])} stages of " + " ".join(map(str, kwargs["features_per_stage"])))
    for key, text in (("n_blocks_per_stage", "blocks"), ("n_conv_per_stage", "convolutions")):
        if key in kwargs:
            parts.append(f"{text} {' '.join(map(str, kwargs[key]))}")
    if "kernel_sizes" in kwargs:
        parts.append("kernels " + " ".join(map(_times, kwargs["kernel_sizes"])))
    return "; ".join([*parts, "strides " + " ".join(map(_times, kwargs["strides"]))])


def _times(sizes: list[int]) -> str:
    return "x".join(map(str, sizes))
