"""A network of volumes x, y, z, transferred, computes on the volume z, y, x what it computed on the volume x, y, z."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import nnunet_genesis
from nnunet_genesis.checkpoints.detect import detect
from nnunet_genesis.errors import TransferError
from nnunet_genesis.networks.pretrained import PretrainedNetwork
from nnunet_genesis.transfer.axes import to_zyx
from nnunet_genesis.transfer.comparison import largest_difference
from nnunet_genesis.transfer.matching import match
from tests.checkpoints.files import small_plans, stock
from tests.checkpoints.replicas import LUNA16_POOLS, generic_unet, original_unet3d, run_original_unet3d, suprem
from tests.transfer.networks import architecture, build, names, source
from tests.transfer.test_original_sizes import original

KERNELS = [[3, 3, 1], [3, 1, 3], [3, 3, 3]]
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 1, 1]]


def reversed_axes(volume: torch.Tensor) -> torch.Tensor:
    """(N, C, x, y, z) → (N, C, z, y, x)."""
    return volume.permute(0, 1, *range(volume.ndim - 1, 1, -1)).contiguous()


def features(network: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """What every stage of the encoder, every up-sampling and every stage of the decoder gives out."""
    found: list[torch.Tensor] = []
    parts = [*network.encoder.stages, *network.decoder.transpconvs, *network.decoder.stages]
    hooks = [part.register_forward_hook(lambda *each: found.append(each[2])) for part in parts]
    with torch.no_grad():
        network(image)
    for hook in hooks:
        hook.remove()
    return found


def pair(kind: str) -> tuple[PretrainedNetwork, nn.Module, nn.Module]:
    """A checkpoint, its network, and a target whose plans have the same network with axes reversed."""
    if kind == "original":
        (block, trained), (_, target) = (
            original([4, 6, 8], strides=STRIDES),
            original([4, 6, 8], seed=1, strides=[each[::-1] for each in STRIDES]),
        )
    else:
        cut = 2 if kind == "plain 2D" else 3
        old = [[each[:cut] for each in lists] for lists in (KERNELS, STRIDES)]
        new = [[each[::-1] for each in lists] for lists in old]
        block, other = (architecture(kind.split()[0], cut, kernels=k, strides=s) for k, s in (old, new))
        trained, target = build(block), build(other, seed=1)
    given = replace(source(block, trained.double(), names(1)), axes="xyz", patch_size=[8, 16, 24], spacing=[3, 2, 1])
    return given, trained, target.double()


@pytest.mark.parametrize("kind", ["plain", "residual", "original", "plain 2D"])
def test_features_of_the_transposed_volume_are_the_transposed_features(kind: str):
    given, trained, target = pair(kind)
    turned = to_zyx(given)
    assert (turned.axes, turned.patch_size, turned.spacing) == ("zyx", [24, 16, 8], [1, 2, 3])
    report = match(turned, target, names(1))
    report.apply(target)
    assert not report.limits
    assert report.coverage == 1
    assert largest_difference(turned, target, names(1)) < 1e-10
    image = torch.randn(2, 1, *[8, 16, 8][: 2 if kind == "plain 2D" else 3], dtype=torch.float64)
    pairs = list(zip(features(trained, image), features(target, reversed_axes(image)), strict=True))
    assert len(pairs) == 3 + 2 + 2
    for before, after in pairs:
        assert before.std() > 0.01
        torch.testing.assert_close(after, reversed_axes(before), rtol=1e-9, atol=1e-9)


def test_the_report_says_so_and_why():
    given, _, target = pair("plain")
    said = "its volumes have axes x, y, z ({}), those of nnU-Net z, y, x: kernels and strides were reversed"
    assert said.format("kind of file") in match(to_zyx(given), target, names(1)).table()
    assert said.format("--axes") in match(to_zyx(replace(given, axes="zyx"), "xyz"), target, names(1)).table()
    assert "axes x, y, z" not in match(to_zyx(given, "zyx"), target, names(1)).table()
    assert given.facts()["axes"] == "x, y, z"


def test_the_checkpoint_stays_as_it_is_and_twice_is_not_at_all():
    given, _, _ = pair("plain")
    before = {name: tensor.clone() for name, tensor in given.weights.items()}
    again = to_zyx(to_zyx(given), "xyz")
    for name, tensor in given.weights.items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(again.weights[name], tensor)
    assert again.architecture == given.architecture
    assert to_zyx(given, "zyx").weights is given.weights


@pytest.mark.parametrize(
    ("content", "axes"),
    [
        ({"state_dict": original_unet3d(4)}, "xyz"),
        ({"net": suprem(4)}, "xyz"),
        ({"state_dict": generic_unet([4, 6, 8, 8, 8, 8], LUNA16_POOLS)}, "xyz"),
        ({"state_dict": generic_unet([4, 6, 8, 8, 8, 8], LUNA16_POOLS), "lr_scheduler_state_dict": {}}, "zyx"),
        ({"state_dict": generic_unet([4, 6, 8], [[2, 2, 2]] * 2)}, "zyx"),
        (stock(small_plans()), "zyx"),
    ],
)
def test_the_order_is_that_of_the_kind_of_file(content: dict[str, Any], axes: str):
    assert detect(content).axes == axes


def test_a_primus_is_not_reversed_and_other_orders_have_no_meaning():
    primus = PretrainedNetwork({}, {"network_class_name": "nnunet_genesis.primus.Primus", "arch_kwargs": {}}, 1)
    assert to_zyx(primus) is not None
    with pytest.raises(TransferError, match="--axes is for kernels of U-Nets"):
        to_zyx(primus, "xyz")
    with pytest.raises(TransferError, match="in the order xyz or zyx, not yxz"):
        to_zyx(primus, "yxz")


def test_the_encoder_of_the_published_weights_reads_volumes_as_nnunet_presents_them(tmp_path):
    weights = original_unet3d(4)
    torch.save({"state_dict": weights}, tmp_path / "Genesis_Chest_CT.pt")
    image, expected = torch.rand(2, 1, 16, 16, 8), []
    run_original_unet3d(weights, image, expected)
    for axes, given in ((None, reversed_axes(image)), ("zyx", image)):
        encoder = nnunet_genesis.encoder(tmp_path / "Genesis_Chest_CT.pt", axes=axes)
        with torch.no_grad():
            made = encoder(given)
        for ours, theirs in zip(made, expected, strict=False):
            reference = theirs if axes else reversed_axes(theirs)
            torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)
            assert (ours - (reversed_axes(ours) if ours.shape[2] == ours.shape[4] else 0)).abs().max() > 0.1
