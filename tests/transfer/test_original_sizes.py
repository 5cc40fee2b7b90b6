"""The original 3D U-Net in other sizes of itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nnunet_genesis.checkpoints.architectures import original_unet3d
from nnunet_genesis.transfer.matching import match
from nnunet_genesis.unet3d import UNet3D
from tests.transfer.networks import names, periodic, source


def original(
    features: list[int], channels: int = 1, seed: int = 0, strides: list[list[int]] | None = None
) -> tuple[dict[str, Any], UNet3D]:
    """Architecture block and network, random weights, of the original 3D U-Net in another size."""
    strides = strides or [[1, 1, 1], *[[2, 2, 2]] * (len(features) - 1)]
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
    report = match(source(block, trained, names(1)), wider, names(1), resize_widths=True)
    report.apply(wider)
    image = torch.randn(2, 1, 8, 8, 16)
    torch.testing.assert_close(last_features(wider, image)[:, :4], last_features(trained, image), rtol=1e-4, atol=1e-4)
    assert not report.limits


def test_a_shallower_original_with_more_channels_keeps_its_encoder():
    (block, trained), (_, other) = original([4, 6, 8, 10]), original([4, 6, 8], channels=2, seed=1)
    report = match(source(block, trained, names(1)), other, names(2))
    report.apply(other)
    image = torch.randn(2, 1, 8, 8, 16)
    with torch.no_grad():
        pairs = zip(other.encoder(image.expand(-1, 2, -1, -1, -1)), trained.encoder(image), strict=False)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert report.encoder_coverage == 1


@pytest.mark.parametrize("thin_to_cubic", [True, False])
def test_other_pooling_keeps_constant_images_only(thin_to_cubic):
    """Maxima over other windows: unlike strided convolutions, they differ at common positions too."""
    strides = [[[1, 1, 1], [1, 2, 2], [2, 2, 2]], [[1, 1, 1], [2, 2, 2], [2, 2, 2]]]
    old, new = strides if thin_to_cubic else strides[::-1]
    (block, trained), (_, other) = original([4, 6, 8], strides=old), original([4, 6, 8], seed=1, strides=new)
    report = match(source(block, trained, names(1)), other, names(1))
    report.apply(other)
    text = "another stride along z: other windows of maximum pooling; exact for images constant along z, but for the "
    assert report.limits[text + "padding at its ends"] == ["encoder stage 1"]
    networks = [periodic(network).double() for network in (trained, other)]
    image = torch.randn(2, 1, 1, 16, 16, dtype=torch.float64).expand(2, 1, 16, 16, 16)
    with torch.no_grad():
        for theirs, ours in zip(*(network.encoder(image) for network in networks), strict=True):
            torch.testing.assert_close(ours[:, :, 0], theirs[:, :, 0], rtol=0, atol=1e-7)
        features = torch.randn(1, 4, 8, 8, 8, dtype=torch.float64)
        stages = ((network.encoder.pools[1], network.encoder.stages[1][0].convs[0].conv) for network in networks)
        coarse, fine = sorted((conv(pool(features)) for pool, conv in stages), key=lambda maps: maps.shape[2])
    assert (coarse - fine[:, :, ::2]).abs().max() > 0.1
