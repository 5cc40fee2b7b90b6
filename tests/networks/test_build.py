"""Networks built from plans, and taken out of their wrappers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunet_genesis.errors import TransferError
from nnunet_genesis.networks.build import skeleton, unwrap
from nnunet_genesis.networks.layout import describe
from tests.transfer.networks import architecture, unet


def test_wrappers_are_taken_off():
    network = nn.Linear(2, 2)
    assert unwrap(network) is network
    assert unwrap(torch.compile(nn.DataParallel(network))) is network


def test_the_skeleton_is_the_network_without_memory():
    for kind in ("plain", "residual"):
        network, bones = unet(kind, classes=1), skeleton(architecture(kind), 1)
        assert {tensor.device.type for tensor in bones.state_dict().values()} == {"meta"}
        shapes = [
            {n: p.shape for n, p in net.named_parameters() if ".seg_layers." not in n} for net in (network, bones)
        ]
        assert shapes[0] == shapes[1]
        assert describe(network) == describe(bones)


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


def test_impossible_values_are_refused():
    with pytest.raises(TransferError, match="cannot be built: .*unexpected keyword"):
        skeleton(architecture(surprise=1), 1)
    with pytest.raises(TransferError, match="cannot be built"):
        skeleton(architecture(strides=[[1, 1, 1]]), 1)
