"""Checkpoint → encoder as a torch module: image → features of every stage, for classification and other tasks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_genesis.architecture_checks import check_architecture
from nnunet_genesis.checkpoints.reading import read_pretrained
from nnunet_genesis.errors import CheckpointError, TransferError
from nnunet_genesis.hub.locating import located
from nnunet_genesis.named_classes import is_primus
from nnunet_genesis.networks.primus_layout import READS_IMAGE
from nnunet_genesis.networks.tied_names import name_groups
from nnunet_genesis.networks.wording import times
from nnunet_genesis.transfer.axes import to_zyx
from nnunet_genesis.transfer.channels import adapt_input_channels, channel_mixture
from nnunet_genesis.transfer.tokens import in_order_of_axes

HIDDEN = 1024
"""Width of the classifier's hidden layer in Models Genesis (Zhou et al., Medical Image Analysis 2021)."""


class Encoder(nn.Module):
    """The encoder of a U-Net or a Primus: the network that `nnunet_genesis.encoder` returns.

    A Primus has one stage, whose features are its tokens after the last norm. Its positions are those of one patch, so
    that it reads images of that size alone.

    Attributes:
        channels: Names of the input channels.
        widths: Number of features of each stage, finest first.
        strides: Down-sampling of each stage against the image, per axis.
        patch_size: Patch that the checkpoint was trained on, in voxels; None if unknown.
    """

    def __init__(
        self,
        stages: nn.Module,
        channels: Sequence[str],
        widths: Sequence[int],
        strides: Sequence[Sequence[int]],
        patch_size: Sequence[int] | None = None,
    ) -> None:
        """Take nnU-Net's encoder, which returns the outputs of its stages as a list; strides are those between them."""
        super().__init__()
        self.stages = stages
        self.channels = list(channels)
        self.patch_size = None if patch_size is None else list(patch_size)
        self.widths = list(widths)
        self.strides = [
            [prod(steps) for steps in zip(*strides[: stage + 1], strict=True)] for stage in range(len(widths))
        ]

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features of every stage.

        Args:
            image: (N, C, *spatial), prepared as the checkpoint's training data were (spacing, normalisation), float.

        Returns:
            One (N, width, *spatial / stride) per stage, finest first.

        Raises:
            TransferError: The image has other channels or axes, its edges are no multiples of `strides[-1]`, or the
                deepest stage would have a single voxel, which normalisation makes constant; or it is not of the size
                of a Primus's patch.
        """
        self._refuse(image)
        return self.stages(image)  # type: ignore[no-any-return]

    def pooled(self, image: torch.Tensor) -> torch.Tensor:
        """The deepest features averaged over space: (N, C, *spatial) → (N, widths[-1])."""
        return self(image)[-1].flatten(2).mean(2)  # type: ignore[no-any-return]

    def _refuse(self, image: torch.Tensor) -> None:
        axes = len(self.strides[0])
        if image.ndim != axes + 2 or image.shape[1] != len(self.channels):
            raise TransferError(
                f"The encoder reads images (N, {len(self.channels)}, {', '.join('zyx'[-axes:])}) with the channels "
                f"{', '.join(self.channels)}; this one is {tuple(image.shape)}. Other channels are named with "
                "nnunet_genesis.encoder(…, channels=[…])."
            )
        size, deepest = list(image.shape[2:]), self.strides[-1]
        if isinstance(self.stages, _Tokens) and size != self.patch_size:
            raise TransferError(
                f"An image of {times(size)} voxels does not suit the encoder: the positions of its tokens are those of "
                f"patches of {times(self.patch_size or ())}. Crop or pad it."
            )
        if any(edge % stride for edge, stride in zip(size, deepest, strict=True)) or size == deepest:
            raise TransferError(
                f"An image of {times(size)} voxels does not suit the encoder: edges must be multiples of "
                f"{times(deepest)}, and leave more than one voxel in the deepest stage. Crop or pad it."
            )


class _Tokens(nn.Module):
    """A Primus without what makes logits: image → its tokens in their grid, as a list of one stage."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.down_projection, self.eva, self.register_tokens = (
            network.down_projection, network.eva, network.register_tokens,
        )  # fmt: skip

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(N, C, z, y, x) → one (N, width, *grid)."""
        grid = self.down_projection(image)
        tokens = grid.flatten(2).transpose(1, 2)
        if self.register_tokens is not None:
            tokens = torch.cat([self.register_tokens.expand(len(tokens), -1, -1), tokens], 1)
        features, _ = self.eva(tokens)
        return [features[:, -grid[0, 0].numel() :].transpose(1, 2).reshape(grid.shape)]


class Classifier(nn.Module):
    """An encoder with the papers' head: average over space or tokens → linear, 1024, ReLU → linear, logits."""

    def __init__(self, encoder: Encoder, classes: int, hidden: int = HIDDEN) -> None:
        """The encoder is trained too, unless its parameters are frozen.

        Args:
            encoder: From `nnunet_genesis.encoder`.
            classes: Number of logits.
            hidden: Width of the hidden layer.
        """
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.Linear(encoder.widths[-1], hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, C, *spatial) → logits (N, classes)."""
        return self.head(self.encoder.pooled(image))  # type: ignore[no-any-return]


def load_encoder(
    checkpoint: str | Path, channels: Sequence[str] | None = None, *, pretrained: bool = True, axes: str | None = None
) -> Encoder:
    """The encoder of a checkpoint's network, as `nnunet_genesis.encoder`.

    Args:
        checkpoint: Any file that `nnunet_genesis inspect` knows, or its address (`hf://owner/repo`, `https://…`).
        channels: Names of the input channels of the new task. Those of the checkpoint by default. Filters of
            namesakes are taken over; a warning says what becomes of other channels, as in `nnunet_genesis transfer`.
        pretrained: False for the control arm: the same network, initialised as by nnU-Net with torch's global
            generator (`torch.manual_seed`).
        axes: Order of the axes of the volumes that the checkpoint was trained on, "xyz" or "zyx"; None for what is
            known of its kind of file. The encoder reads z, y, x: kernels are reversed for "xyz".

    Returns:
        The encoder on the CPU, in training mode.

    Raises:
        CheckpointError, HubError: The file cannot be read or fetched, or lacks parts of the encoder.
        TransferError: `channels` is empty, or `axes` is no such order.
    """
    path = located(checkpoint)
    source = in_order_of_axes(to_zyx(read_pretrained(path), axes))
    theirs = source.channel_labels
    ours = theirs if channels is None else list(channels)
    if not ours or isinstance(channels, str):
        raise TransferError('channels takes a list of names, e.g. channels=["T1", "T2"].')
    encoder = _fresh(source.architecture, len(ours))
    if pretrained:
        mixture = channel_mixture(theirs, ours)
        if channels is not None and mixture.rule != "by name":
            text = f"{path}: input channels {', '.join(ours)} for {', '.join(theirs)}: {mixture.rule}"
            warnings.warn(text, stacklevel=2)
        _load(encoder, source.weights, mixture.matrix, path)
    arguments = source.architecture["arch_kwargs"]
    if isinstance(encoder, _Tokens):
        cell, patch = arguments["patch_embed_size"], arguments["input_shape"]
        return Encoder(encoder, ours, [arguments["embed_dim"]], [cell], patch)
    return Encoder(encoder, ours, arguments["features_per_stage"], arguments["strides"], source.patch_size)


def _fresh(architecture: Mapping[str, Any], channels: int) -> nn.Module:
    """The encoder of the network that nnU-Net builds and initialises."""
    check_architecture(architecture, "The checkpoint", channels)
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    network: Any = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"], channels,
        1, allow_init=True, deep_supervision=False,
    )  # fmt: skip
    encoder: nn.Module = _Tokens(network) if is_primus(network) else network.encoder
    return encoder


def _load(encoder: nn.Module, weights: Mapping[str, torch.Tensor], matrix: torch.Tensor, path: Path) -> None:
    """Write the checkpoint's weights into an encoder, those that read the image mixed to its channels."""
    names, prefix = list(name_groups(encoder)), "" if isinstance(encoder, _Tokens) else "encoder."
    found = {name: weights[prefix + name] for name in names if prefix + name in weights}
    for name in names:
        if name not in found:
            raise CheckpointError(f"{path} has no complete encoder: {prefix}{name} is missing.")
    # the convolution of a U-Net that reads the image is registered first
    for name in [name for name in names if READS_IMAGE.fullmatch(name)] or names[:1]:
        found[name] = adapt_input_channels(found[name], matrix)
    encoder.load_state_dict(found, strict=False)  # a tensor's other names share its memory
