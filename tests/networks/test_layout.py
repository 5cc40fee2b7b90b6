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


INSTANCE, BATCH = "torch.nn.InstanceNorm3d", "torch.nn.BatchNorm3d"
DIFFERENCES = {
    "activation": ({}, {"nonlin": "torch.nn.ReLU"}),
    "slope": ({}, {"nonlin_kwargs": {"negative_slope": 0.1}}),
    "shape of an activation": ({"nonlin": "torch.nn.ELU"}, {"nonlin": "torch.nn.ELU", "nonlin_kwargs": {"alpha": 2.0}}),
    "approximation": ({"nonlin": "torch.nn.GELU", "nonlin_kwargs": {}},
                      {"nonlin": "torch.nn.GELU", "nonlin_kwargs": {"approximate": "tanh"}}),
    "norm": ({}, {"norm_op": BATCH}),
    "no norm": ({}, {"norm_op": None}),
    "eps": ({}, {"norm_op_kwargs": {"eps": 1e-3, "affine": True}}),
    "affine": ({}, {"norm_op_kwargs": {"eps": 1e-5, "affine": False}}),
    "statistics": ({"norm_op": BATCH, "norm_op_kwargs": {}},
                   {"norm_op": BATCH, "norm_op_kwargs": {"track_running_stats": False}}),
}  # fmt: skip
SAME = {
    "inplace": ({}, {"nonlin_kwargs": {"inplace": False}}),
    "momentum": ({}, {"norm_op_kwargs": {"eps": 1e-5, "affine": True, "momentum": 0.3}}),
    "dropout": ({}, {"dropout_op": "torch.nn.Dropout3d", "dropout_op_kwargs": {"p": 0.3}}),
    "width": ({}, {"features_per_stage": [5, 7, 9]}),
}


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("what", [*DIFFERENCES, *SAME])
def test_norms_and_activations_differ_where_they_compute_something_else(kind, what):
    before, after = (describe(build(architecture(kind, **changes))) for changes in (DIFFERENCES | SAME)[what])
    assert (before.operations == after.operations) == (what in SAME)


def test_the_order_of_norm_and_activation_is_seen():
    found = [describe(build(architecture(nonlin_first=first))).operations for first in (False, True)]
    assert found[0] != found[1]
    assert found[0] == ("InstanceNorm (eps 1e-05, affine), LeakyReLU (negative_slope 0.01)",)


def test_groups_of_a_group_norm_are_seen():
    networks = [build(architecture()) for _ in range(3)]
    for network, groups in zip(networks, (1, 2, 2), strict=True):
        for module in list(network.modules()):
            if hasattr(module, "all_modules"):
                module.norm = module.all_modules[1] = nn.GroupNorm(groups, module.output_channels)
    one, two, again = (describe(network).operations for network in networks)
    assert one != two == again
    assert two == ("GroupNorm (num_groups 2, eps 1e-05, affine), LeakyReLU (negative_slope 0.01)",)
