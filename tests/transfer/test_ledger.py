"""Every tensor of the target has one line; what was copied gives the same outputs."""

from __future__ import annotations

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunet_genesis.errors import TransferError
from nnunet_genesis.transfer import match
from nnunet_genesis.transfer.channels import adapt_input_channels, channel_mixture
from nnunet_genesis.transfer.names import effective, name_groups


def unet(kind: str = "plain", channels: int = 1, classes: int = 2, dim: int = 3, features=(4, 6, 8), seed: int = 0):
    torch.manual_seed(seed)
    conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if dim == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    common = {"features_per_stage": features, "conv_op": conv, "kernel_sizes": 3, "strides": [1, 2, 2],
              "num_classes": classes, "n_conv_per_stage_decoder": [1, 1], "conv_bias": True, "norm_op": norm,
              "norm_op_kwargs": {"affine": True}, "nonlin": nn.LeakyReLU}  # fmt: skip
    if kind == "plain":
        network = PlainConvUNet(channels, 3, n_conv_per_stage=2, **common)
    else:
        network = ResidualEncoderUNet(channels, 3, n_blocks_per_stage=[1, 2, 2], **common)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


def names(count: int) -> list[str]:
    return [f"channel {i}" for i in range(count)]


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("dim", [2, 3])
def test_same_architecture_is_copied_whole_and_gives_the_same_features(kind, dim):
    source, target = unet(kind, classes=1, dim=dim), unet(kind, classes=3, dim=dim, seed=1)
    ledger = match(source.state_dict(), target, names(1), names(1))
    assert sum(line.parameters for line in ledger.lines) == sum(p.numel() for p in target.parameters())
    assert len({line.name for line in ledger.lines}) == len(ledger.lines)
    assert ledger.coverage == 1
    assert ledger.share("segmentation heads", "initialised") == 1
    assert not ledger.unused
    heads = target.decoder.seg_layers[-1].weight.clone()
    ledger.apply(target)
    assert torch.equal(heads, target.decoder.seg_layers[-1].weight)
    target.decoder.seg_layers = source.decoder.seg_layers
    image = torch.randn(1, 1, *[16] * dim)
    assert torch.equal(source(image), target(image))


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize(("given", "wanted"), [(1, 4), (4, 1), (2, 3), (3, 2)])
def test_other_channel_counts_keep_the_response_to_repeated_images(kind, given, wanted):
    source, target = unet(kind, given), unet(kind, wanted, seed=1)
    ledger = match(source.state_dict(), target, names(given), [f"new {i}" for i in range(wanted)])
    ledger.refuse_mismatches()
    assert ledger.coverage == 1
    assert ledger.share("stem", "adapted") > 0
    ledger.apply(target)
    target.decoder.seg_layers = source.decoder.seg_layers
    image = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(
        source(image.repeat(1, given, 1, 1, 1)), target(image.repeat(1, wanted, 1, 1, 1)), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_channels_follow_their_names(kind):
    source, target = unet(kind, 3), unet(kind, 2, seed=1)
    ledger = match(source.state_dict(), target, ["FLAIR", "T1", "T2"], ["t2", "flair"])
    ledger.apply(target)
    target.decoder.seg_layers = source.decoder.seg_layers
    image = torch.randn(1, 2, 16, 16, 16)
    full = torch.stack([image[:, 1], torch.zeros_like(image[:, 1]), image[:, 0]], 1)
    torch.testing.assert_close(source(full), target(image), rtol=1e-3, atol=1e-3)


def test_reordered_channels_are_permuted_and_other_names_go_by_position():
    weight = torch.randn(4, 2, 3, 3, 3)
    mixture, rule = channel_mixture(["T1", "T2"], ["T2", "T1"])
    assert rule == "by name"
    assert torch.equal(adapt_input_channels(weight, mixture), weight[:, [1, 0]])
    mixture, rule = channel_mixture(["T1", "T2"], ["a", "b"])
    assert rule == "by position"
    assert torch.equal(adapt_input_channels(weight, mixture), weight)


def test_mismatches_are_listed_and_nothing_is_written():
    source, target = unet(features=(4, 6, 8)), unet(features=(4, 6, 10), seed=1)
    ledger = match(source.state_dict(), target, names(1), names(1))
    with pytest.raises(TransferError, match=r"encoder\.stages\.2\.0\.convs\.0\.conv\.weight: checkpoint \(8, 6, 3, 3, 3\), "
                       r"target \(10, 6, 3, 3, 3\).* and \d+ more"):  # fmt: skip
        ledger.refuse_mismatches()
    ledger = match(unet("residual").state_dict(), unet("plain"), names(1), names(1))
    with pytest.raises(TransferError, match="not in the checkpoint"):
        ledger.refuse_mismatches()
    assert ledger.unused


def test_names_that_share_a_tensor_form_a_group():
    network = unet()
    groups = name_groups(network)
    assert len(groups) == len(list(network.parameters()))
    assert list(groups) == [name for name, _ in network.named_parameters()]
    first = groups["encoder.stages.0.0.convs.0.conv.weight"]
    assert len(first) == 4
    assert first[-1] == "decoder.encoder.stages.0.0.convs.0.all_modules.0.weight"


def test_disagreeing_names_are_read_as_pytorch_reads_them():
    network, reference = unet(), unet(seed=2)
    source = {name: torch.randn_like(tensor) for name, tensor in network.state_dict().items()}
    reference.load_state_dict(source)
    for name, group in name_groups(network).items():
        assert torch.equal(effective(group, source), reference.state_dict()[name])


def test_the_table_names_every_part_with_its_share():
    table = match(unet().state_dict(), unet(channels=2, seed=1), names(1), names(2)).table()
    assert "segmentation heads" in table
    assert "sum of 1 over 2 channels" in table
    assert "100.0%" in table
