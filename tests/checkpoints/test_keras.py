"""The Keras file of Models Genesis gives the network that its PyTorch file gives; files that mean harm are one line."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import nnunet_genesis
from nnunet_genesis.checkpoints import hdf5
from nnunet_genesis.checkpoints.detect import detect
from nnunet_genesis.checkpoints.hdf5 import read_hdf5
from nnunet_genesis.checkpoints.hdf5_arrays import ENTRIES
from nnunet_genesis.checkpoints.reading import read_pretrained
from nnunet_genesis.errors import CheckpointError
from tests.checkpoints.keras_files import write_keras
from tests.checkpoints.replicas import original_unet3d, run_original_unet3d
from tests.checkpoints.test_models_genesis import build

FIRST = "model_weights/depth_0_conv/depth_0_conv/kernel:0"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_keras(tmp_path_factory.mktemp("keras") / "Genesis_Chest_CT.h5", original_unet3d(4))


def changed(file: Path, folder: Path, change: Callable[[h5py.File], object]) -> Path:
    path = folder / "changed.h5"
    path.write_bytes(file.read_bytes())
    with h5py.File(path, "r+") as content:
        change(content)
    return path


@pytest.mark.parametrize("whole", [True, False])
def test_both_published_layouts_of_the_same_weights_give_equal_encoders(tmp_path: Path, whole):
    weights = original_unet3d(4)
    torch.save({"state_dict": weights}, tmp_path / "Genesis_Chest_CT.pt")
    write_keras(tmp_path / "Genesis_Chest_CT.h5", weights, whole)
    keras, pytorch = (nnunet_genesis.encoder(tmp_path / f"Genesis_Chest_CT.{end}") for end in ("h5", "pt"))
    assert keras.state_dict().keys() == pytorch.state_dict().keys()
    for name, tensor in pytorch.state_dict().items():
        assert torch.equal(keras.state_dict()[name], tensor), name
    image = torch.rand(2, 1, 16, 8, 16)
    for ours, theirs in zip(keras(image), pytorch(image), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("transposed", [True, False])
def test_the_whole_network_restores_what_that_of_keras_does(tmp_path: Path, transposed):
    """Up-sampling in Keras repeats voxels, unless the file has transposed convolutions."""
    weights = original_unet3d(4)
    source = read_pretrained(write_keras(tmp_path / "a.h5", weights, transposed=transposed))
    network = build(source, 1, deep_supervision=False)
    assert network.load_state_dict(source.weights, strict=False).unexpected_keys == []
    if not transposed:
        for name in [name for name in weights if "up_conv.weight" in name]:
            weights[name] = torch.eye(len(weights[name]))[:, :, None, None, None].repeat(1, 1, 2, 2, 2)
            weights[name.replace("weight", "bias")] *= 0
        features = torch.randn(1, 3, 2, 3, 2)
        kernel = torch.eye(3)[:, :, None, None, None].repeat(1, 1, 2, 2, 2)
        assert torch.equal(F.conv_transpose3d(features, kernel, stride=2), F.interpolate(features, scale_factor=2))
    image = torch.rand(1, 1, 16, 16, 8)
    with torch.no_grad():
        restored = torch.sigmoid(network(image))
    torch.testing.assert_close(restored, run_original_unet3d(weights, image), rtol=0, atol=1e-5)
    assert any("by repetition" in note for note in source.notes) != transposed


def test_inspect_says_what_it_is(file: Path, genesis, capsys):
    assert genesis("inspect", file) == 0
    shown = capsys.readouterr().out
    assert "Models Genesis (original 3D U-Net, Keras)" in shown
    assert re.search(r"architecture: +UNet3D, 3D; 4 stages of 4 8 16 32", shown)
    assert re.search(r"axes: +x, y, z", shown)
    assert "HU -1000 to 1000 scaled to 0 to 1" in shown
    assert "Keras adds 0.001 to the variance" in shown


def test_without_h5py_it_says_what_to_install(file: Path, genesis, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(hdf5, "find_spec", lambda name: None if name == "h5py" else found(name))
    assert genesis("inspect", file) == 1
    assert 'which h5py reads. Install it (pip install "nnunet-genesis[keras]")' in capsys.readouterr().err


def external_link(content: h5py.File) -> None:
    del content[FIRST]
    content[FIRST] = h5py.ExternalLink("/etc/passwd", "/x")


def soft_link(content: h5py.File) -> None:
    del content["model_weights/depth_0_conv"]
    content["model_weights/depth_0_conv"] = h5py.SoftLink("/model_weights/depth_1_conv")


def link_to_all_weights(content: h5py.File) -> None:
    content.move("model_weights", "others")
    content["model_weights"] = h5py.ExternalLink("others.h5", "/")


def again(content: h5py.File, **options: object) -> None:
    value = content[FIRST][()]
    del content[FIRST]
    content.create_dataset(FIRST, data=value, **options)


def bomb(content: h5py.File) -> None:
    """A terabyte of zeros in some bytes."""
    del content[FIRST]
    content.create_dataset(FIRST, (1 << 19, 1 << 19), "f4", chunks=(1 << 12, 1 << 12), compression="gzip")


def promise(content: h5py.File) -> None:
    """As large, and never written."""
    del content[FIRST]
    content.create_dataset(FIRST, (1 << 19, 1 << 19), "f4")


def external_storage(content: h5py.File) -> None:
    del content[FIRST]
    content.create_dataset(FIRST, (8,), "f4", external=[("/etc/hostname", 0, 32)])


def virtual(content: h5py.File) -> None:
    del content[FIRST]
    layout = h5py.VirtualLayout((8,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (8,))
    content.create_virtual_dataset(FIRST, layout)


def ring(content: h5py.File) -> None:
    content["model_weights/depth_0_conv/again"] = content["model_weights"]


def same_array_often(content: h5py.File) -> None:
    for number in range(99):
        content[f"model_weights/depth_0_conv/kernel{number}"] = content[
            "model_weights/depth_7_conv/depth_7_conv/kernel:0"
        ]


def tower(content: h5py.File) -> None:
    content["model_weights"].create_group("/".join(["deeper"] * 6))


def crowd(content: h5py.File) -> None:
    for number in range(ENTRIES):
        content["model_weights"].create_group(f"layer {number}")


def text(content: h5py.File) -> None:
    del content[FIRST]
    content[FIRST] = np.array([b"import os"])


def named_type(content: h5py.File) -> None:
    content["model_weights/type"] = np.dtype("f4")


def escape(content: h5py.File) -> None:
    content["model_weights/\x1b[2J"] = np.zeros(3, "f4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external_link, "holds a link in place of kernel:0; links are not followed"),
        (soft_link, "holds a link in place of depth_0_conv"),
        (link_to_all_weights, "holds a link in place of model_weights"),
        (lambda content: again(content, chunks=True), "stores depth_0_conv/kernel packed, in pieces"),
        (lambda content: again(content, compression="gzip"), "stores depth_0_conv/kernel packed"),
        (bomb, "stores depth_0_conv/kernel packed"),
        (virtual, "stores depth_0_conv/kernel packed"),
        (external_storage, "stores depth_0_conv/kernel packed, in pieces or in another file"),
        (promise, "describes a larger array depth_0_conv/kernel than it holds"),
        (same_array_often, "describes larger arrays than it holds"),
        (ring, "holds two arrays|beyond reason"),
        (tower, "nests or repeats groups beyond reason"),
        (crowd, "nests or repeats groups beyond reason"),
        (text, "holds other values than numbers"),
        (named_type, "neither a layer nor an array"),
        (escape, "holds names that no layer has"),
    ],
)
def test_what_keras_never_writes_is_refused(file: Path, tmp_path: Path, change, message):
    with pytest.raises(CheckpointError, match=message) as refusal:
        read_hdf5(changed(file, tmp_path, change))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("damage", [lambda content: content[:2000], lambda content: content[:8] + bytes(100)])
def test_damaged_files_are_one_line(file: Path, tmp_path: Path, damage, genesis, capsys):
    (tmp_path / "a.h5").write_bytes(damage(file.read_bytes()))
    assert genesis("inspect", tmp_path / "a.h5") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cannot be read; it is cut off, damaged or no HDF5 file" in error


def test_a_file_that_takes_too_long_is_given_up(file: Path, monkeypatch):
    monkeypatch.setattr(hdf5, "SECONDS", 0)
    monkeypatch.setattr(hdf5, "BYTES_PER_SECOND", 1 << 40)
    with pytest.raises(CheckpointError, match="takes longer to read than any file of its size"):
        read_hdf5(file)


def arrays(base: int = 4) -> dict[str, torch.Tensor]:
    shapes = {"depth_0_conv/kernel": (3, 3, 3, 1, base // 2), "depth_0_conv/bias": (base // 2,)}
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"conv3d_5/kernel": torch.zeros(3, 3, 3, 2, 2)}, "holds conv3d_5/kernel, which the original 3D U-Net of Keras"),
        ({f"conv3d_{number}/kernel": torch.zeros(1, 1, 1, 4, 1) for number in (1, 2)}, "holds a further head, conv3d_2"),
        ({"conv3d_transpose_1/kernel": torch.zeros(2, 2, 2, 4, 4)}, "has 1 transposed convolutions for 0 stages"),
        ({"depth_7_conv/kernel": torch.zeros(1, 1, 1, 1, 1 << 20), "depth_8_conv/kernel": torch.zeros(1, 1, 1, 1, 1)},
         "but not its widths"),
        ({}, "holds 1 tensors of an unknown network|holds 2 tensors of an unknown network"),
    ],
)  # fmt: skip
def test_other_networks_of_keras_are_named(others, message):
    with pytest.raises(CheckpointError, match=message):
        detect(arrays() | others)


def test_layers_of_another_task_are_left_out(file: Path, tmp_path: Path):
    dense = changed(file, tmp_path, lambda content: content.update({}) or content.__setitem__(
        "model_weights/dense_1/dense_1/kernel:0", np.zeros((32, 2), "f4")))  # fmt: skip
    source = read_pretrained(dense)
    assert source.notes[-1] == "1 tensors belong to neither and are not used, e.g. dense_1/kernel"
    assert source.weights.keys() == read_pretrained(file).weights.keys()
