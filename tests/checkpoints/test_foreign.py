"""Files that are no readable checkpoints: one line says what they are, which are read and what to do."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from nnunet_genesis.checkpoints.detect import detect
from nnunet_genesis.checkpoints.foreign import READABLE
from nnunet_genesis.errors import CheckpointError
from tests.checkpoints import build
from tests.checkpoints.files import small_plans


def nifti() -> bytes:
    return nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)).to_bytes()


def archive(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as written:
        for name in names:
            written.writestr(name, "{}")
    return stream.getvalue()


def torchscript() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2)), stream)
    return stream.getvalue()


def arrays() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.ones(2))
    return stream.getvalue()


FILES = {
    "is an image (NIfTI)": nifti,
    "is compressed (gzip), as images (.nii.gz)": lambda: gzip.compress(nifti()),
    "is an image (NRRD)": lambda: b"NRRD0005\n# Complete NRRD\ntype: float\n",
    "is an image (MetaImage)": lambda: b"ObjectType = Image\nNDims = 3\n",
    "is an image (DICOM)": lambda: bytes(128) + b"DICM" + bytes(300),
    "is a model of Keras": lambda: archive("metadata.json", "config.json", "model.weights.h5"),
    "is a model of TensorFlow.": lambda: b"\x08\x01\x12\x80\x08meta graph",
    "is a model of TensorFlow Lite": lambda: b"\x1c\0\0\0TFL3" + bytes(100),
    # ir_version, producer_name, producer_version; and with the graph at once
    "looks like a model in ONNX": lambda: b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x10",
    "looks like a model in ONNX.": lambda: b"\x08\x0a:\x90\x01\x0a\x20",
    "holds a model with its code (TorchScript, torch.jit.save). Save its weights in Python": torchscript,
    "is a collection of NumPy's arrays": arrays,
    "is an array of NumPy": lambda: b"\x93NUMPY\x01\x00",
    "is an archive without a checkpoint in it": lambda: archive("[Content_Types].xml", "word/document.xml"),
    "is a text": lambda: json.dumps({"plans_name": "nnUNetPlans", "configurations": {}}).encode(),
    "is a text.": lambda: b"Epoch 12: train_loss -0.8, Dice 0.9\n",
    "is a web page or XML: the download went wrong": lambda: b"<!DOCTYPE html><html>404</html>",
    "is a pointer of git LFS in place of the file: run git lfs pull": lambda: b"version https://git-lfs.github.com/",
    "is a picture (PNG)": lambda: b"\x89PNG\r\n\x1a\n",
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
def test_other_files_are_named_by_their_content(tmp_path: Path, genesis, capsys, what):
    path = tmp_path / "model.pth"
    path.write_bytes(FILES[what]())
    assert genesis("inspect", path) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{path} {what}" in said
    assert said.endswith(f" {READABLE}\n")


NETWORKS = {
    "STU-Net": ["conv_blocks_context.0.0.conv1.weight", "upsample_layers.0.conv.weight", "seg_outputs.0.weight"],
    "UNETR ": ["vit.patch_embedding.position_embeddings", "encoder1.layer.conv1.conv.weight"],
    "SwinUNETR": ["module.backbone.swinViT.patch_embed.proj.weight", "module.organ_embedding"],
    "a vision transformer": ["encoder.patch_embed.proj.weight", "encoder.blocks.0.attn.qkv.weight"],
    "SegResNet": ["backbone.convInit.conv.weight", "down_layers.0.1.conv1.conv.weight"],
    "DynUNet": ["input_block.conv1.conv.weight"],
    "UNet (of MONAI)": ["model.0.conv.unit0.conv.weight", "model.1.submodule.0.conv.unit0.conv.weight"],
    "the residual U-Net of nnU-Net v1": ["encoder.initial_conv.weight", "encoder.stages.0.convs.0.conv1.weight"],
    "a ResNet": ["conv1.weight", "layer1.0.conv1.weight"],
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("container", ["state_dict", "network_weights", "net"])
def test_weights_of_other_networks_are_named(network, container):
    weights = {name: torch.ones(2, 3) for name in NETWORKS[network]}
    with pytest.raises(CheckpointError) as refusal:
        detect({container: weights})
    assert str(refusal.value).startswith(f"holds weights of {network}")
    assert str(refusal.value).endswith(READABLE)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_whole_model_is_told_from_code_in_a_checkpoint(tmp_path: Path, genesis, capsys, legacy):
    network = build(small_plans()["configurations"]["3d_fullres"]["architecture"], 3)
    torch.save(network, tmp_path / "model.pth", _use_new_zipfile_serialization=not legacy)
    assert genesis("inspect", tmp_path / "model.pth") == 1
    said = capsys.readouterr().err
    assert (
        "model.pth is a whole object in Python (dynamic_network_architectures.architectures.unet.PlainConvUNet)" in said
    )
    assert "torch.save(model.state_dict(), FILE)" in said
    torch.save({"model": network}, tmp_path / "model.pth", _use_new_zipfile_serialization=not legacy)
    assert genesis("inspect", tmp_path / "model.pth") == 1
    assert "is refused: reading it would run code that it names (dynamic_network_arch" in capsys.readouterr().err


def test_a_plain_pickle_and_noise_are_no_checkpoints(tmp_path: Path, genesis, capsys):
    for content in (pickle.dumps({"a": 1}), struct.pack("<Q", 5) + b"\x00" * 99, b"\x80\x02", bytes(range(256)) * 4):
        (tmp_path / "a.pth").write_bytes(content)
        assert genesis("inspect", tmp_path / "a.pth") == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "a.pth cannot be read; it is cut off or no checkpoint (" in said
