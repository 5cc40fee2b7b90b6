"""What a source may lack or contradict, and what its architecture block may not do."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from nnunet_genesis.errors import TransferError
from nnunet_genesis.networks.build import skeleton
from nnunet_genesis.networks.layout import Place, describe
from nnunet_genesis.networks.pretrained import PretrainedNetwork
from nnunet_genesis.transfer.matching import match
from tests.transfer.networks import architecture, build, names, source, unet


def test_the_skeleton_is_the_network_without_memory():
    for kind in ("plain", "residual"):
        network, bones = unet(kind, classes=1), skeleton(architecture(kind), 1)
        assert {tensor.device.type for tensor in bones.state_dict().values()} == {"meta"}
        shapes = [
            {n: p.shape for n, p in net.named_parameters() if ".seg_layers." not in n} for net in (network, bones)
        ]
        assert shapes[0] == shapes[1]
        assert describe(network) == describe(bones)


def test_the_description_says_what_the_plans_say():
    block = architecture(strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]], kernels=[[1, 3, 3], [3, 3, 3], [3, 3, 3]])
    layout = describe(build(block))
    assert layout.sampling == [(1, 1, 1), (1, 2, 2), (2, 4, 4)]
    stem, down = layout.layers[Place("stem", 0)], layout.layers[Place("encoder", 2)]
    assert (stem.kernel, stem.inputs, stem.width, stem.part) == ((1, 3, 3), (1,), 4, "stem")
    assert (down.kernel, down.stride, down.inputs, down.width) == ((3, 3, 3), (2, 2, 2), (6,), 8)
    up, merging = layout.layers[Place("up", 0)], layout.layers[Place("decoder", 0)]
    assert (up.kernel, up.inputs, up.width, up.part) == ((1, 2, 2), (6,), 4, "decoder at stage 0")
    assert (merging.inputs, merging.kernel) == ((4, 4), (1, 3, 3))
    assert merging.tensors["norm.weight"] == "decoder.stages.1.convs.0.norm.weight"
    residual = describe(unet("residual"))
    assert residual.family == "ResidualEncoderUNet (BasicBlockD)"
    assert residual.layers[Place("encoder", 1, 0, "skip")].kernel == (1, 1, 1)
    assert describe(unet(dim=2)).layers[Place("stem", 0)].kernel == (1, 3, 3)


def test_every_tensor_of_networks_with_other_layers_has_its_place():
    changes = {"dropout_op": "torch.nn.modules.dropout.Dropout3d", "dropout_op_kwargs": {"p": 0.1}, "conv_bias": False,
               "norm_op": "torch.nn.BatchNorm3d", "norm_op_kwargs": {}, "nonlin": "torch.nn.ReLU"}  # fmt: skip
    for kind in ("plain", "residual"):
        block = architecture(kind, **changes)
        ledger = match(source(block, build(block), names(1)), build(block, seed=1), names(1))
        assert ledger.coverage == 1
        assert not ledger.limits
        other = match(source(block, build(block), names(1)), unet(kind), names(1))
        assert any("BatchNorm eps 1e-05, ReLU" in text for text in other.limits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network_class_name": "os.system"}, "holds a system; weights are carried from PlainConvUNet, Residual"),
        ({"network_class_name": "x.architectures.primus.PrimusM"}, "holds a PrimusM"),
        ({"arch_kwargs": None}, "does not say which network it holds"),
    ],
)
def test_other_networks_are_refused(change, message):
    with pytest.raises(TransferError, match=message):
        skeleton(architecture() | change, 1)


@pytest.mark.parametrize(
    "name", ["os.system", "elsewhere.Conv3d", "torch.nn.init.normal_", "torch.hub.load", "torch.nn.os", "builtins.eval"]
)
def test_only_layers_are_looked_up(name):
    with pytest.raises(TransferError, match="no layer of torch.nn"):
        skeleton(architecture(conv_op=name), 1)


def test_impossible_values_and_unknown_tensors_are_refused():
    with pytest.raises(TransferError, match="cannot be built: .*unexpected keyword"):
        skeleton(architecture(surprise=1), 1)
    with pytest.raises(TransferError, match="cannot be built"):
        skeleton(architecture(strides=[[1, 1, 1]]), 1)
    network = unet()
    network.extra = nn.Linear(1, 1)
    with pytest.raises(TransferError, match=r"tensors of an unknown kind, e\.g\. extra\.bias"):
        describe(network)
    with pytest.raises(TransferError, match="A Linear is no U-Net"):
        describe(nn.Linear(1, 1))


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
    ledger = match(PretrainedNetwork(weights, architecture(), 1, names(1)), unet(seed=1), names(1))
    assert ledger.encoder_coverage == 1
    assert ledger.coverage < 0.9
    ledger.refuse_low_coverage(0.9)
    assert ledger.share("decoder at stage 0", "initialised") == 1
    assert any(text.endswith("not in the checkpoint") for text in ledger.limits)
    assert ledger.unused == {}


def test_missing_biases_are_zero_and_unknown_names_are_listed():
    trained, target = unet(), unet(seed=1)
    weights = {n: p for n, p in trained.named_parameters() if not n.startswith("decoder.transpconvs.0.b")}
    ledger = match(
        PretrainedNetwork({**weights, "head.weight": torch.ones(3)}, architecture(), 1, names(1)), target, names(1)
    )
    ledger.apply(target)
    assert not target.decoder.transpconvs[0].bias.any()
    assert ledger.unused == {"head.weight": 3}
    assert not ledger.limits
    without = architecture(conv_bias=False)
    ledger = match(source(architecture(), trained, names(1)), build(without, seed=1), names(1))
    assert ledger.limits == {
        "the target has no bias here, the checkpoint has": ["decoder at stage 1", "decoder at stage 0"]
    }


def test_decoders_with_other_kernels_than_their_stage_are_read_by_their_weights():
    """As in nnU-Net v1, whose decoders have the kernel of the next lower stage."""
    block = architecture(kernels=[[1, 3, 3], [3, 3, 3], [3, 3, 3]])
    trained, target = build(block), build(block, seed=1)
    weights = dict(trained.named_parameters())
    weights["decoder.stages.1.convs.0.conv.weight"] = torch.randn(4, 8, 3, 3, 3)
    ledger = match(PretrainedNetwork(weights, block, 1, names(1)), target, names(1))
    ledger.apply(target)
    torch.testing.assert_close(
        target.decoder.stages[1].convs[0].conv.weight,
        weights["decoder.stages.1.convs.0.conv.weight"].sum(2, keepdim=True),
    )
    assert list(ledger.limits) == ["shorter kernel along z: exact for features constant along z, away from its ends"]


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_adapted_without_rounding_and_applying_twice_changes_nothing(precision):
    """Sums of three taps, and of three channels, of half precision need more digits than it has."""
    trained = unet(channels=3).to(precision)
    weights = {name: tensor.double() for name, tensor in trained.state_dict().items()}
    target = build(architecture(kernels=[[1, 3, 3]] * 3), 2, seed=1)
    ledger = match(source(architecture(), trained, names(3)), target, ["a", "b"])
    ledger.apply(target)
    once = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    ledger.apply(target)
    assert all(torch.equal(tensor, once[name]) for name, tensor in target.state_dict().items())
    copied, adapted = "encoder.stages.0.0.convs.1.norm.weight", "encoder.stages.0.0.convs.1.conv.weight"
    assert torch.equal(once[copied], weights[copied].float())
    assert {line.name: line.state for line in ledger.lines}[adapted] == "adapted"
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-6)
    close(once[adapted].double(), weights[adapted].sum(2, keepdim=True))
    stem = "encoder.stages.0.0.convs.0.conv.weight"
    close(once[stem][:, :1].double(), weights[stem].sum((1, 2), keepdim=True) / 2)


def test_blocks_without_their_projection_are_named():
    given = architecture("residual", features=(4, 6, 6))
    wanted = architecture("residual", features=(4, 6, 8))
    ledger = match(source(given, build(given), names(1)), build(wanted, seed=1), names(1), resize_widths=True)
    assert ledger.limits["starts anew: no such convolution in the checkpoint's block"] == ["encoder stage 2"]
    back = match(source(wanted, build(wanted), names(1)), build(given, seed=1), names(1), resize_widths=True)
    assert back.limits["the block has no counterpart of the checkpoint's skip"] == ["encoder stage 2"]
