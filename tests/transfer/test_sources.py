"""What a source may lack or contradict, and what its architecture block may not do."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from nnunet_genesis.errors import TransferError
from nnunet_genesis.networks.pretrained import PretrainedNetwork
from nnunet_genesis.transfer.matching import match
from nnunet_genesis.transfer.records import State
from tests.transfer.networks import architecture, build, names, source, unet


def test_every_tensor_of_networks_with_other_layers_has_its_place():
    changes = {"dropout_op": "torch.nn.modules.dropout.Dropout3d", "dropout_op_kwargs": {"p": 0.1}, "conv_bias": False,
               "norm_op": "torch.nn.BatchNorm3d", "norm_op_kwargs": {}, "nonlin": "torch.nn.ReLU"}  # fmt: skip
    for kind in ("plain", "residual"):
        block = architecture(kind, **changes)
        report = match(source(block, build(block), names(1)), build(block, seed=1), names(1))
        assert report.coverage == 1
        assert not report.limits
        other = match(source(block, build(block), names(1)), unet(kind), names(1))
        assert any("BatchNorm (track_running_stats, eps 1e-05, affine), ReLU" in text for text in other.limits)


def test_weights_of_another_architecture_are_refused():
    with pytest.raises(
        TransferError, match=r"encoder\.stages\.2\S* of the checkpoint is \(8, 6, 3, 3, 3\), but .* \(9, 6\) and"
    ):
        match(source(architecture(features=(4, 6, 9)), unet(), names(1)), unet(), names(1))
    with pytest.raises(TransferError, match="one of the two is not this checkpoint's"):
        match(source(architecture(), unet(), names(2)), unet(channels=2), names(2))
    with pytest.raises(TransferError, match="one of the two is not"):
        match(source(architecture(dim=2), unet(), names(1)), unet(), names(1))


def test_an_encoder_alone_covers_the_encoder():
    weights = {name: tensor for name, tensor in unet().named_parameters() if name.startswith("encoder")}
    report = match(PretrainedNetwork(weights, architecture(), 1, names(1)), unet(seed=1), names(1))
    assert report.encoder_coverage == 1
    assert report.coverage < 0.9
    report.refuse_low_coverage(0.9)
    assert report.share("decoder at stage 0", State.INITIALISED) == 1
    assert any(text.endswith("not in the checkpoint") for text in report.limits)
    assert report.unused == {}


def test_missing_biases_are_zero_and_unknown_names_are_listed():
    trained, target = unet(), unet(seed=1)
    weights = {n: p for n, p in trained.named_parameters() if not n.startswith("decoder.transpconvs.0.b")}
    report = match(
        PretrainedNetwork({**weights, "head.weight": torch.ones(3)}, architecture(), 1, names(1)), target, names(1)
    )
    report.apply(target)
    assert not target.decoder.transpconvs[0].bias.any()
    assert report.unused == {"head.weight": 3}
    assert not report.limits
    without = architecture(conv_bias=False)
    report = match(source(architecture(), trained, names(1)), build(without, seed=1), names(1))
    assert report.limits == {
        "the target has no bias here, the checkpoint has": ["decoder at stage 1", "decoder at stage 0"]
    }


def test_decoders_with_other_kernels_than_their_stage_are_read_by_their_weights():
    """As in nnU-Net v1, whose decoders have the kernel of the next lower stage."""
    block = architecture(kernels=[[1, 3, 3], [3, 3, 3], [3, 3, 3]])
    trained, target = build(block), build(block, seed=1)
    weights = dict(trained.named_parameters())
    weights["decoder.stages.1.convs.0.conv.weight"] = torch.randn(4, 8, 3, 3, 3)
    report = match(PretrainedNetwork(weights, block, 1, names(1)), target, names(1))
    report.apply(target)
    torch.testing.assert_close(
        target.decoder.stages[1].convs[0].conv.weight,
        weights["decoder.stages.1.convs.0.conv.weight"].sum(2, keepdim=True),
    )
    assert list(report.limits) == ["shorter kernel along z: exact for features constant along z, away from its ends"]


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_adapted_without_rounding_and_applying_twice_changes_nothing(precision):
    """Sums of three taps, and of three channels, of half precision need more digits than it has."""
    trained = unet(channels=3).to(precision)
    weights = {name: tensor.double() for name, tensor in trained.state_dict().items()}
    target = build(architecture(kernels=[[1, 3, 3]] * 3), 2, seed=1)
    report = match(source(architecture(), trained, names(3)), target, ["a", "b"])
    report.apply(target)
    once = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    report.apply(target)
    assert all(torch.equal(tensor, once[name]) for name, tensor in target.state_dict().items())
    copied, adapted = "encoder.stages.0.0.convs.1.norm.weight", "encoder.stages.0.0.convs.1.conv.weight"
    assert torch.equal(once[copied], weights[copied].float())
    assert {record.name: record.state for record in report.records}[adapted] is State.ADAPTED
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-6)
    close(once[adapted].double(), weights[adapted].sum(2, keepdim=True))
    stem = "encoder.stages.0.0.convs.0.conv.weight"
    close(once[stem][:, :1].double(), weights[stem].sum((1, 2), keepdim=True) / 2)


def test_blocks_without_their_projection_are_named():
    old = architecture("residual", features=(4, 6, 6))
    new = architecture("residual", features=(4, 6, 8))
    report = match(source(old, build(old), names(1)), build(new, seed=1), names(1), resize_widths=True)
    assert report.limits["starts anew: no such convolution in the checkpoint's block"] == ["encoder stage 2"]
    back = match(source(new, build(new), names(1)), build(old, seed=1), names(1), resize_widths=True)
    assert back.limits["the block has no counterpart of the checkpoint's skip"] == ["encoder stage 2"]
