"""The encoder of any checkpoint as a module: the source network's own features, channels, pooling, gradients, errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import nnunet_genesis
from nnunet_genesis.errors import CheckpointError, GenesisError, TransferError
from nnunet_genesis.unet3d import UNet3D
from tests.checkpoints.replicas import original_unet3d
from tests.transfer.networks import architecture, build, periodic

KINDS = ["plain 3D", "plain 2D", "residual 3D", "residual 2D", "UNet3D"]
STRIDES = {3: [[1, 1, 1], [1, 2, 2], [2, 2, 2]], 2: [[1, 1], [2, 1], [2, 2]]}


def save(path: Path, network: nn.Module, block: dict, channels: list[str]) -> Path:
    """A checkpoint as nnU-Net writes it."""
    axes = len(block["arch_kwargs"]["strides"][0])
    plans = {
        "dataset_name": "Dataset001_Any",
        "plans_name": "nnUNetPlans",
        "configurations": {
            "any": {
                "architecture": block,
                "patch_size": [16] * axes,
                "spacing": [1.0] * axes,
                "normalization_schemes": ["ZScoreNormalization"] * len(channels),
            }
        },
    }
    names = {str(key): name for key, name in enumerate(channels)}
    dataset_json = {"channel_names": names, "labels": {"background": 0, "any": 1}}
    arguments = {"plans": plans, "configuration": "any", "dataset_json": dataset_json}
    torch.save({"network_weights": network.state_dict(), "init_args": arguments, "trainer_name": "any"}, path)
    return path


def checkpoint(folder: Path, kind: str, channels: list[str]) -> tuple[Path, nn.Module]:
    """A checkpoint of a kind, and the network whose weights it holds."""
    if kind == "UNet3D":
        torch.manual_seed(0)
        network = UNet3D(len(channels), 2, (4, 8, 16), STRIDES[3], deep_supervision=True)
        block = {"network_class_name": "nnunet_genesis.unet3d.UNet3D", "_kw_requires_import": [],
                 "arch_kwargs": {"features_per_stage": [4, 8, 16], "strides": STRIDES[3]}}  # fmt: skip
    else:
        name, axes = kind.split()
        block = architecture(name, int(axes[0]), strides=STRIDES[int(axes[0])])
        network = build(block, len(channels))
    return save(folder / "checkpoint.pth", network, block, channels), network.eval()


def image(kind: str, channels: int = 1, seed: int = 1) -> torch.Tensor:
    size = (8, 12, 16)[: 2 if "2D" in kind else 3]
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_networks_own(kind, tmp_path):
    path, network = checkpoint(tmp_path, kind, ["T1", "T2"])
    encoder = nnunet_genesis.encoder(path).eval()
    x = image(kind, 2)
    expected = network.encoder(x)
    features = encoder(x)
    assert len(features) == len(expected) == 3
    for ours, theirs in zip(features, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert encoder.channels == ["T1", "T2"]
    assert encoder.patch_size == [16] * (x.ndim - 2)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_those_announced(kind, tmp_path):
    encoder = nnunet_genesis.encoder(checkpoint(tmp_path, kind, ["T1"])[0])
    x = image(kind)
    for feature, width, stride in zip(encoder(x), encoder.widths, encoder.strides, strict=True):
        assert feature.shape == (2, width, *(size // step for size, step in zip(x.shape[2:], stride, strict=True)))
    assert encoder.strides[-1] == ([4, 2] if "2D" in kind else [2, 4, 4])


@pytest.mark.parametrize("kind", KINDS)
def test_pooled_vector_is_the_spatial_mean_of_the_deepest_features(kind, tmp_path):
    encoder = nnunet_genesis.encoder(checkpoint(tmp_path, kind, ["T1"])[0])
    x = image(kind)
    deepest = encoder(x)[-1]
    torch.testing.assert_close(encoder.pooled(x), deepest.mean(tuple(range(2, deepest.ndim))))


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_learns_in_every_part(kind, tmp_path):
    classifier = nnunet_genesis.Classifier(nnunet_genesis.encoder(checkpoint(tmp_path, kind, ["T1"])[0]), 3, hidden=7)
    logits = classifier(image(kind))
    assert logits.shape == (2, 3)
    assert isinstance(classifier.head[1], nn.ReLU)
    nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    weights = {name: parameter for name, parameter in classifier.named_parameters() if name.endswith("conv.weight")}
    assert len(weights) >= 6
    assert all(parameter.grad.any() for parameter in weights.values())


def test_the_papers_hidden_layer(tmp_path):
    classifier = nnunet_genesis.Classifier(nnunet_genesis.encoder(checkpoint(tmp_path, "plain 3D", ["T1"])[0]), 2)
    assert [tuple(layer.weight.shape) for layer in classifier.head[::2]] == [(1024, 8), (2, 1024)]


@pytest.mark.parametrize("kind", KINDS)
def test_namesakes_keep_their_filters(kind, tmp_path):
    path, network = checkpoint(tmp_path, kind, ["T1", "T2", "FLAIR"])
    encoder = nnunet_genesis.encoder(path, channels=["flair", "T1"]).eval()
    x = image(kind, 3)
    reordered = nnunet_genesis.encoder(path, channels=["FLAIR", "T1", "T2"]).eval()
    for ours, theirs in zip(reordered(x[:, [2, 0, 1]]), network.encoder(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    x[:, 1] = 0
    for ours, theirs in zip(encoder(x[:, [2, 0]]), network.encoder(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_other_channels_share_the_filters(kind, tmp_path):
    path, network = checkpoint(tmp_path, kind, ["T1"])
    with pytest.warns(UserWarning, match=r"input channels a, b, c for T1: sum of 1 over 3 channels"):
        encoder = nnunet_genesis.encoder(path, channels=["a", "b", "c"]).eval()
    x = image(kind)
    for ours, theirs in zip(encoder(torch.cat([x] * 3, 1)), network.encoder(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert encoder.channels == ["a", "b", "c"]


def test_a_checkpoint_without_channel_names(tmp_path):
    network = periodic(build(architecture(), 2))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    assert len(nnunet_genesis.encoder(tmp_path / "weights.pth").channels) == 2
    with pytest.warns(
        UserWarning, match="input channels PET, CT for unnamed channel 0, unnamed channel 1: by position"
    ):
        encoder = nnunet_genesis.encoder(tmp_path / "weights.pth", channels=["PET", "CT"])
    assert torch.equal(
        encoder.stages.stages[0][0].convs[0].conv.weight, network.encoder.stages[0][0].convs[0].conv.weight
    )


def test_half_precision_is_shared_without_rounding(tmp_path):
    network = build(architecture(), 1).bfloat16()
    torch.save(network.state_dict(), tmp_path / "half.pth")
    with pytest.warns(UserWarning, match="sum of 1 over 3 channels"):
        encoder = nnunet_genesis.encoder(tmp_path / "half.pth", channels=["a", "b", "c"])
    weight = encoder.stages.stages[0][0].convs[0].conv.weight
    given = network.encoder.stages[0][0].convs[0].conv.weight.float()
    torch.testing.assert_close(weight.sum(1, keepdim=True), given, rtol=1e-6, atol=1e-6)


def test_a_foreign_file(tmp_path):
    torch.save({"state_dict": original_unet3d(4)}, tmp_path / "chest.pt")
    encoder = nnunet_genesis.encoder(str(tmp_path / "chest.pt"))
    assert encoder.widths == [4, 8, 16, 32]
    assert encoder.pooled(torch.rand(1, 1, 16, 16, 16)).shape == (1, 32)


def test_the_control_arm_is_the_same_network_with_other_weights(tmp_path):
    path, _ = checkpoint(tmp_path, "residual 3D", ["T1"])
    pretrained = nnunet_genesis.encoder(path).state_dict()
    fresh = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        fresh.append(nnunet_genesis.encoder(path, pretrained=False).state_dict())
    assert {name: tensor.shape for name, tensor in fresh[0].items()} == {n: t.shape for n, t in pretrained.items()}
    stem = "stages.stem.convs.0.conv.weight"
    assert torch.equal(fresh[0][stem], fresh[1][stem])
    assert not torch.equal(fresh[0][stem], fresh[2][stem])
    assert not torch.equal(fresh[0][stem], pretrained[stem])
    assert not fresh[0]["stages.stem.convs.0.conv.bias"].any()  # as nnU-Net initialises


def test_wrong_images_are_one_line(tmp_path):
    encoder = nnunet_genesis.encoder(checkpoint(tmp_path, "plain 3D", ["T1"])[0])
    with pytest.raises(TransferError, match=r"reads images \(N, 1, z, y, x\) with the channels T1; this one is \(2, 3"):
        encoder(torch.zeros(2, 3, 16, 16, 16))
    with pytest.raises(TransferError, match=r"this one is \(1, 16, 16, 16\)"):
        encoder(torch.zeros(1, 16, 16, 16))
    for edges in ((2, 4, 4), (8, 8, 6), (3, 8, 8)):
        with pytest.raises(
            TransferError, match=f"{edges[0]}x{edges[1]}x{edges[2]} voxels.*multiples of 2x4x4.*Crop or pad"
        ):
            encoder.pooled(torch.zeros(1, 1, *edges))
    assert encoder(torch.zeros(1, 1, 2, 4, 8))[-1].shape == (1, 8, 1, 1, 2)


@pytest.mark.parametrize("channels", [[], "T1"])
def test_wrong_channel_names_are_one_line(channels, tmp_path):
    with pytest.raises(TransferError, match="channels takes a list of names"):
        nnunet_genesis.encoder(checkpoint(tmp_path, "plain 3D", ["T1"])[0], channels=channels)


def test_files_that_hold_no_encoder_are_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        nnunet_genesis.encoder(tmp_path / "missing.pth")
    path, network = checkpoint(tmp_path, "plain 3D", ["T1"])
    content = torch.load(path, weights_only=True)
    content["network_weights"] = {n: t for n, t in network.state_dict().items() if "stages.2" not in n}
    torch.save(content, path)
    with pytest.raises(GenesisError):
        nnunet_genesis.encoder(path)


def test_importing_the_package_is_cheap_and_unknown_names_are_errors():
    code = "import sys, nnunet_genesis; assert not {'torch', 'numpy', 'nnunetv2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'decoder'"):
        _ = nnunet_genesis.decoder
    with pytest.raises(ImportError):
        exec("from nnunet_genesis import decoder")
