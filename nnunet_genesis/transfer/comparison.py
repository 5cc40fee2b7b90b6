"""A checkpoint and the network that took over its weights → how far apart the features are that both compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isnan
from typing import Any

import torch
from torch import nn

from nnunet_genesis.named_classes import is_primus
from nnunet_genesis.networks.build import skeleton
from nnunet_genesis.networks.pretrained import PretrainedNetwork
from nnunet_genesis.transfer.channels import channel_mixture
from nnunet_genesis.transfer.token_outputs import token_outputs

EDGE = 4
"""Voxels along each axis of what a stage gives out. Patches of whole networks would take more memory than weights."""


def largest_difference(source: PretrainedNetwork, target: nn.Module, channels: Sequence[str]) -> float:
    """Run every stage of the checkpoint's network and of the target on the same noise, in evaluation.

    The first stage reads a patch, with channels as they were matched; the others read features, and those of the
    decoder a skip too. Stages of a Primus are its projection to tokens, its positions, blocks and last norm. Compared
    are the channels that both have. Stages that all agree make networks that agree, down to what the segmentation
    heads read.

    Args:
        source: The checkpoint; not changed, and not copied unless its precision is another than the target's.
        target: The network after the transfer, on the CPU, with stages as the checkpoint's.
        channels: Names of its input channels.

    Returns:
        Largest difference in a stage, divided by the largest magnitude that the checkpoint's network gives out there.
    """
    dtype, training = next(target.parameters()).dtype, target.training
    matrix = channel_mixture(source.channel_labels, channels).matrix.to(dtype)
    target.eval()
    with torch.inference_mode():
        outputs = token_outputs if is_primus(target) else _outputs
        pairs = list(outputs(_with_weights(source, dtype), target, matrix))
    target.train(training)
    found = [_relative(*pair) for pair in pairs]
    return max(inf if isnan(each) else each for each in found)


def _with_weights(source: PretrainedNetwork, dtype: torch.dtype) -> nn.Module:
    """The checkpoint's network with the checkpoint's own tensors, heads aside; biases that are missing are zero."""
    network = skeleton(source.architecture, source.input_channels).eval()
    for path, module in network.named_modules():
        for name, shape in [*module.named_parameters(path, False), *module.named_buffers(path, False)]:
            tensor = source.weights.get(name, torch.zeros(shape.shape))
            tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
            value = nn.Parameter(tensor, False) if isinstance(shape, nn.Parameter) else tensor
            setattr(module, name.rpartition(".")[2], value)
        if isinstance(module, nn.Conv2d | nn.Conv3d) and not is_primus(network):
            # nnU-Net v1's decoders have kernels of their own
            module.padding = tuple((edge - 1) // 2 for edge in module.weight.shape[2:])
    return network


def _outputs(source: Any, target: Any, matrix: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What both networks' stages give out, from the finest of the encoder to the finest of the decoder."""
    generator = torch.Generator().manual_seed(0)

    def noise(width: int, factors: Sequence[int]) -> torch.Tensor:
        edges = [EDGE * factor for factor in factors]
        return torch.randn(1, width, *edges, generator=generator, dtype=matrix.dtype)

    widths: list[tuple[int, int]] = []
    strides = target.encoder.strides
    for stages, stride in zip(zip(_encoder(source), _encoder(target), strict=True), strides, strict=True):
        features = noise(widths[-1][1] if widths else len(matrix), stride)
        shared = features[:, : widths[-1][0]] if widths else torch.einsum("ts,bt...->bs...", matrix, features)
        before, after = stages[0](shared), stages[1](features)
        widths.append((before.shape[1], after.shape[1]))
        yield before, after
    for index, stride in enumerate(strides[:0:-1]):
        (below, wider), (skip, wider_skip) = widths[-1 - index], widths[-2 - index]
        features, skips = noise(wider, [1] * len(stride)), noise(wider_skip, stride)
        before = _decoded(source.decoder, index, features[:, :below], skips[:, :skip])
        yield before, _decoded(target.decoder, index, features, skips)


def _encoder(network: Any) -> Iterator[nn.Module]:
    """The stages with the stem before the first, and in the original 3D U-Net the pooling before each."""
    encoder = network.encoder
    for level, stage in enumerate(encoder.stages):
        first = [encoder.stem] if level == 0 and hasattr(encoder, "stem") else []
        yield nn.Sequential(*first, *([encoder.pools[level]] if hasattr(encoder, "pools") else []), stage)


def _decoded(decoder: Any, index: int, below: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """What a stage of the decoder makes of features of the stage below and the encoder's."""
    found: torch.Tensor = decoder.stages[index](torch.cat((decoder.transpconvs[index](below), skip), 1))
    return found


def _relative(before: torch.Tensor, after: torch.Tensor) -> float:
    after = after[:, : before.shape[1]]
    return 0.0 if torch.equal(before, after) else float((after - before).abs().max() / before.abs().max())
