"""The original 3D U-Net in other sizes of itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nnunet_genesis.sources.architectures import original_unet3d
from nnunet_genesis.transfer import match
from nnunet_genesis.unet3d import UNet3D
from tests.transfer.networks import names, source


def original(features: list[int], channels: int = 1, seed: int = 0) -> tuple[dict[str, Any], UNet3D]:
    """Architecture block and network, random weights, of the original 3D U-Net in another size."""
    strides = [[1, 1, 1], *[[2, 2, 2]] * (len(features) - 1)]
    torch.manual_seed(seed)
    network = UNet3D(channels, 2, features, strides)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return original_unet3d(features, strides), network


def last_features(network: UNet3D, image: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = network.decoder.stages[-1].register_forward_hook(lambda *found: seen.append(found[2]))
    with torch.no_grad():
        network(image)
    handle.remove()
    return seen[0]


def test_a_wider_original_computes_the_same_in_its_leading_channels():
    (block, trained), (_, wider) = original([4, 6, 8]), original([6, 8, 12], seed=1)
    ledger = match(source(block, trained, names(1)), wider, names(1), resize_widths=True)
    ledger.apply(wider)
    image = torch.randn(2, 1, 8, 8, 16)
    torch.testing.assert_close(last_features(wider, image)[:, :4], last_features(trained, image), rtol=1e-4, atol=1e-4)
    assert not ledger.limits


def test_a_shallower_original_with_more_channels_keeps_its_encoder():
    (block, trained), (_, other) = original([4, 6, 8, 10]), original([4, 6, 8], channels=2, seed=1)
    ledger = match(source(block, trained, names(1)), other, names(2))
    ledger.apply(other)
    image = torch.randn(2, 1, 8, 8, 16)
    with torch.no_grad():
        pairs = zip(other.encoder(image.expand(-1, 2, -1, -1, -1)), trained.encoder(image), strict=False)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert ledger.encoder_coverage == 1
