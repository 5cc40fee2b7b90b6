"""The largest difference between two networks' features is zero, rounding, or the difference that there is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nnunet_genesis.checkpoints.architectures import original_unet3d
from nnunet_genesis.networks.pretrained import PretrainedNetwork
from nnunet_genesis.nnunet_dataset import PREVIOUS_STAGE
from nnunet_genesis.transfer.comparison import largest_difference
from nnunet_genesis.transfer.matching import match
from nnunet_genesis.transfer.report import ROUNDING, TransferReport
from nnunet_genesis.unet3d import UNet3D
from tests.transfer.networks import architecture, build, names, source

KINDS = pytest.mark.parametrize("kind", ["plain", "residual"])


def compared(
    old: PretrainedNetwork, target: nn.Module, channels: list[str], resize_widths: bool = False
) -> TransferReport:
    """The report on a transfer without limits, with the difference that was found after it."""
    report = match(old, target, channels, resize_widths)
    report.apply(target)
    assert not report.limits
    report.difference = largest_difference(old, target, channels)
    return report


def carried(old: dict[str, Any], new: dict[str, Any], resize_widths: bool = False) -> TransferReport:
    return compared(source(old, build(old), names(1)), build(new, seed=1), names(1), resize_widths)


@KINDS
@pytest.mark.parametrize("dim", [2, 3])
def test_a_copy_is_equal_and_the_report_says_so(kind, dim):
    report = carried(architecture(kind, dim), architecture(kind, dim))
    assert report.difference == 0
    assert report.exact
    assert "run on the same noise, the features of all stages are equal" in report.verdict
    assert (report.json()["exact"], report.json()["largest_difference"]) == (True, 0)


@KINDS
def test_longer_kernels_agree_up_to_rounding(kind):
    report = carried(architecture(kind, kernels=[[1, 3, 3]] * 3, features=(8, 16, 32)),
                     architecture(kind, features=(8, 16, 32)))  # fmt: skip
    assert 0 <= report.difference <= ROUNDING
    report.difference = 3e-7
    assert "differ by rounding only (at most 3e-07 of the largest)" in report.verdict


@KINDS
def test_wider_networks_are_compared_in_the_leading_channels(kind):
    report = carried(architecture(kind, features=(4, 6, 8)), architecture(kind, features=(5, 7, 11)), True)
    assert report.exact
    assert 0 < report.coverage < 1


@KINDS
def test_channels_in_another_order_or_with_labels_read_the_same_image(kind):
    block, labels = architecture(kind), [f"{PREVIOUS_STAGE}{label}" for label in (1, 2)]
    old = source(block, build(block, 3), ["CT", "T1", "T2"])
    assert compared(old, build(block, 3, seed=1), ["T2", "CT", "T1"]).exact
    assert compared(old, build(block, 5, seed=1), ["T2", "CT", "T1", *labels]).exact
    target = build(block, 3, seed=1)
    match(old, target, ["T2", "CT", "T1"]).apply(target)
    assert largest_difference(old, target, ["CT", "T1", "T2"]) > 0.1


@KINDS
@pytest.mark.parametrize("precision", [torch.float16, torch.float64])
def test_the_source_may_have_another_precision_and_lack_biases(kind, precision):
    block = architecture(kind)
    weights = {name: tensor.to(precision) for name, tensor in build(block).named_parameters()}
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("decoder.transpconvs.0.b")}
    assert compared(PretrainedNetwork(weights, block, 1, names(1)), build(block, seed=1), names(1)).exact


def test_decoders_of_nnunet_v1_are_run_with_their_own_kernels():
    old = architecture(kernels=[[1, 3, 3], [3, 3, 3], [3, 3, 3]])
    weights = dict(build(old).named_parameters())
    weights["decoder.stages.1.convs.0.conv.weight"] = torch.randn(4, 8, 3, 3, 3)
    assert compared(PretrainedNetwork(weights, old, 1, names(1)), build(architecture(), seed=1), names(1)).exact


def test_the_original_is_compared_with_its_pooling():
    networks = [UNet3D(1, classes, [4, 6, 8], strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]]) for classes in (1, 3)]
    old = source(original_unet3d([4, 6, 8], [[1, 1, 1], [1, 2, 2], [2, 2, 2]]), networks[0], names(1))
    assert compared(old, networks[1], names(1)).exact
    networks[1].encoder.pools[1] = nn.AvgPool3d([1, 2, 2])
    assert largest_difference(old, networks[1], names(1)) > 0.01


def broken_everywhere(block: dict[str, Any], trained: nn.Module) -> list[str]:
    """Names of the source's tensors without whose exact value the largest difference is not zero."""
    target = build(block, seed=1)
    match(source(block, trained, names(1)), target, names(1)).apply(target)
    found = []
    for name, parameter in trained.named_parameters():
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter[..., -1] += 0.5  # of a kernel its last tap alone
        if largest_difference(source(block, trained, names(1)), target, names(1)) > 100 * ROUNDING:
            found.append(name)
        with torch.no_grad():
            parameter.copy_(before)
    return found


@KINDS
def test_a_change_of_any_tensor_is_seen(kind):
    block = architecture(kind, features=(3, 4, 5))
    trained = build(block)
    # a norm by the statistics of what it reads cancels the bias before it
    expected = [
        name for name, _ in trained.named_parameters()
        if ".seg_layers." not in name and not name.endswith("conv.bias")
    ]  # fmt: skip
    assert broken_everywhere(block, trained) == expected


def test_a_difference_that_no_rule_knows_is_reported_as_an_error():
    block = architecture()
    old, target = source(block, build(block), names(1)), build(block, seed=1)
    for module in target.modules():
        if isinstance(module, nn.Conv3d):
            module.padding_mode = "circular"
            module._reversed_padding_repeated_twice = [1] * 6
    report = compared(old, target, names(1))
    assert report.difference > 0.01
    assert not report.exact
    assert "but does not: run on the same noise, features differ by" in report.verdict
    assert report.json()["exact"] is False
    report.difference = float("inf")
    assert report.json()["largest_difference"] is None
    assert "differ by inf" in report.verdict


def test_features_that_are_no_numbers_are_no_agreement():
    block = architecture()
    old, target = source(block, build(block), names(1)), build(block, seed=1)
    match(old, target, names(1)).apply(target)
    with torch.no_grad():
        target.encoder.stages[1][0].convs[0].norm.weight.fill_(float("nan"))
    assert largest_difference(old, target, names(1)) == float("inf")


def test_nothing_is_changed():
    block = architecture(norm_op="torch.nn.BatchNorm3d", norm_op_kwargs={})
    old, target = source(block, build(block), names(1)), build(block, seed=1).train()
    report = match(old, target, names(1))
    report.apply(target)
    held = [target.state_dict(), old.weights]
    before = [{name: tensor.clone() for name, tensor in tensors.items()} for tensors in held]
    assert largest_difference(old, target, names(1)) == 0
    assert all(module.training for module in target.modules())
    for tensors, copies in zip(held, before, strict=True):
        assert all(torch.equal(tensor, copies[name]) for name, tensor in tensors.items())
    assert "By construction, segmentation heads aside" in report.verdict  # until it is told the difference
    assert not report.exact


RELU = {"nonlin": "torch.nn.ReLU", "nonlin_kwargs": {}}


@KINDS
def test_relu_to_relu_is_exact_and_relu_to_leaky_relu_is_not(kind):
    relu, leaky = architecture(kind, **RELU), architecture(kind)
    assert carried(relu, relu).exact
    for old, new in ((relu, leaky), (leaky, relu)):
        trained, target = build(old), build(new, seed=1)
        report = match(source(old, trained, names(1)), target, names(1))
        report.apply(target)
        (limit,) = report.limits
        assert limit.startswith("other functions than in the checkpoint")
        assert "computes, with these limits" in report.verdict
        report.difference = 0.0  # of features that do not show it
        assert not report.exact
        assert largest_difference(source(old, trained, names(1)), target, names(1)) > 0.01
