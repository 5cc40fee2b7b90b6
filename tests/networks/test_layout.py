"""What the description of a network says, and which differences it sees."""

from __future__ import annotations

import pytest
from torch import nn

from nnunet_genesis.errors import TransferError
from nnunet_genesis.networks.layout import Place, describe
from tests.transfer.networks import architecture, build, unet


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


def test_tensors_and_networks_of_unknown_kinds_are_refused():
    network = unet()
    network.extra = nn.Linear(1, 1)
    with pytest.raises(TransferError, match=r"tensors of an unknown kind, e\.g\. extra\.bias"):
        describe(network)
    with pytest.raises(TransferError, match="A Linear is no U-Net"):
        describe(nn.Linear(1, 1))
