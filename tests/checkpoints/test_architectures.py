"""Networks read off tensors without plans, whatever shapes and names a file gives them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from nnunet_genesis.checkpoints.architectures import PLAIN, RESIDUAL, checked, unet
from nnunet_genesis.checkpoints.detect import detect
from nnunet_genesis.checkpoints.names import canonical_name
from nnunet_genesis.checkpoints.reading import read_pretrained
from nnunet_genesis.errors import CheckpointError
from nnunet_genesis.networks.tied_names import name_groups
from tests.checkpoints import build, loaded
from tests.checkpoints.files import small_plans, stock, written
from tests.transfer import networks


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (1, 1, 1), (4, 1, 3, 3), (6, 6, 3, 3, 3, 3)])
def test_a_tensor_of_another_rank_is_an_error_that_says_so(kind, shape):
    network = networks.unet(kind)
    weights = {name: network.state_dict()[name] for name in name_groups(network)}
    assert detect(weights).weights.keys() == weights.keys()
    for name in weights:
        if weights[name].ndim != len(shape):
            with pytest.raises(CheckpointError):
                detect({**weights, name: torch.zeros(shape)})


@settings(max_examples=15, deadline=None)
@given(data=st.data(), name=st.sampled_from([PLAIN, RESIDUAL]), dimensions=st.sampled_from([2, 3]),
       stages=st.integers(2, 4), bias=st.booleans(), norm=st.sampled_from(["instancenorm.InstanceNorm", "batchnorm.BatchNorm", None]))  # fmt: skip
def test_the_architecture_is_read_off_the_tensors(data, name, dimensions, stages, bias, norm):
    def draw(values, count):
        return data.draw(st.lists(values, min_size=count, max_size=count))

    sizes = st.lists(st.sampled_from([1, 3]), min_size=dimensions, max_size=dimensions)
    steps = st.lists(st.integers(1, 2), min_size=dimensions, max_size=dimensions)
    block = unet(name, draw(st.integers(2, 5), stages), draw(sizes, stages), [[1] * dimensions, *draw(steps, stages - 1)],
                 draw(st.integers(1, 3), stages), draw(st.integers(1, 3), stages - 1), bias=bias, norm=norm)  # fmt: skip
    network = build(block, 3, channels=2)
    canonical_only = {group: network.state_dict()[group].clone() for group in name_groups(network)}
    source = detect(canonical_only)
    assert source.architecture == block
    assert source.input_channels == 2
    twin = loaded(source, 3)
    assert all(torch.equal(tensor, twin.state_dict()[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("container", [None, "network_weights", "state_dict", "model"])
def test_state_dicts_without_plans(tmp_path: Path, container):
    weights = stock(small_plans("tiny_resenc"))["network_weights"]
    source = read_pretrained(
        written({container: weights, "epoch": 1} if container else weights, tmp_path / "weights.pt")
    )
    assert source.architecture["network_class_name"] == RESIDUAL
    assert source.channels is source.patch_size is source.normalisation is None
    assert source.notes == (
        "architecture derived from the tensors' shapes; instance normalisation and LeakyReLU of slope 0.01 are assumed",
    )


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_safetensors_by_content(tmp_path: Path, suffix):
    network = build(small_plans()["configurations"]["3d_fullres"]["architecture"], 3)
    tensors = {name: network.state_dict()[name].clone() for name in name_groups(network)}
    path = tmp_path / f"exported.{suffix}"
    save_file(tensors, path)
    source = read_pretrained(path)
    assert loaded(source, 3)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"exported\.\w+ cannot be read; it is cut off or no safetensors file"):
        read_pretrained(path)


def test_encoders_alone_and_missing_tensors():
    network = build(small_plans()["configurations"]["3d_fullres"]["architecture"], 3)
    weights = network.state_dict()
    source = detect({name: tensor for name, tensor in weights.items() if name.startswith("encoder.")})
    assert source.notes[1:] == ("strides are assumed to be 2: the file has no decoder to read them off", "encoder only")
    assert set(source.weights) == {name for name in name_groups(network) if name.startswith("encoder.")}
    less = {name: tensor for name, tensor in weights.items() if "encoder.stages.1.0.convs.1.norm.bias" not in name}
    less = {name: tensor for name, tensor in less.items() if "encoder.stages.1.0.convs.1.all_modules.1" not in name}
    with pytest.raises(
        CheckpointError, match=r"PlainConvUNet .*encoder\.stages\.1\.0\.convs\.1\.norm\.bias is missing"
    ):
        detect(less)


DROPOUT = {"dropout_op": "torch.nn.modules.dropout.Dropout3d", "dropout_op_kwargs": {"p": 0.5}}
OTHER_BLOCKS = [("tiny", {"nonlin_first": True}), *((template, changes) for template in ("tiny", "tiny_resenc") for changes in (
    {}, {"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"}, DROPOUT))]  # fmt: skip


@pytest.mark.parametrize(("template", "changes"), OTHER_BLOCKS)
def test_names_of_a_tensor_are_told_apart_as_the_network_does(template, changes):
    """The rule that works on names alone agrees with the network, whose first name of a tensor is the one kept."""
    block = small_plans(template)["configurations"]["3d_fullres"]["architecture"]
    block["arch_kwargs"] |= changes
    for first, names in name_groups(build(block, 3)).items():
        assert {canonical_name(name) for name in names} == {first}


@pytest.mark.parametrize("key", ["strides", "kernel_sizes"])
def test_kernels_and_strides_have_the_axes_of_the_convolutions(key):
    block = small_plans()["configurations"]["3d_fullres"]["architecture"]
    assert checked(block)
    block["arch_kwargs"][key] = [entry[1:] for entry in block["arch_kwargs"][key]]
    with pytest.raises(CheckpointError, match="kernels or strides of other axes than its convolutions"):
        checked(block)
