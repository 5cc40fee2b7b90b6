"""`nnunet_genesis inspect`: what a file is, or one line on what is wrong with it."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch

from tests.checkpoints import build
from tests.checkpoints.files import small_plans, stock, written
from tests.checkpoints.replicas import LUNA16_POOLS, generic_unet, original_unet3d
from tests.checkpoints.test_reading import Trap


def test_it_says_what_a_file_is(tmp_path: Path, genesis, capsys):
    plans = small_plans()
    path = written(stock(plans), tmp_path / "checkpoint_final.pth")
    network = build(plans["configurations"]["3d_fullres"]["architecture"], 3)
    assert genesis("inspect", path) == 0
    shown = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert {label: text.strip() for label, text in shown.items()} == {
        "format": "nnU-Net v2 (nnUNetTrainerDA5)",
        "architecture": "PlainConvUNet, 3D; 3 stages of 4 6 8; convolutions 2 2 2; kernels 3x3x3 3x3x3 3x3x3; "
        "strides 1x1x1 2x2x2 2x2x2; norm InstanceNorm3d; activation LeakyReLU",
        "parameters": f"{sum(parameter.numel() for parameter in network.parameters()):,}",
        "channels": "1 (T1)",
        "axes": "z, y, x",
        "normalisation": "ZScoreNormalization",
        "patch size": "32x48x32",
        "spacing": "1 x 1 x 1 mm",
        "SHA-256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": generic_unet([4, 6, 8, 8, 8, 8], LUNA16_POOLS), "epoch": 6}, "(HU + 775.8457) / 251.9326"),
        ({"state_dict": original_unet3d(4)}, "HU -1000 to 1000 scaled to 0 to 1"),
        (stock(small_plans())["network_weights"], "derived from the tensors' shapes"),
    ],
)
def test_it_says_what_is_assumed(tmp_path: Path, genesis, capsys, content, message):
    assert genesis("inspect", written(content, tmp_path / "a.pth")) == 0
    assert message in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no weights that are known (it is empty)"),
        ({"epoch": 3, "optimizer": {}}, "holds no weights that are known (epoch, optimizer)"),
        ({"fc.weight": torch.ones(2, 3)}, "holds 1 tensors of an unknown network: fc.weight (2, 3)"),
        ({"state_dict": {"encoder.patch_embed.proj.weight": torch.ones(2)}}, "holds weights of a vision transformer"),
        ({"model": {"module.eva.norm.weight": torch.ones(2)}}, "holds a part of a Primus only"),
        ({"init_args": {"plans": {}}, "state_dict": {"encoder.a": torch.ones(1)}}, "has incomplete plans inside"),
        (
            {"init_args": {"plans": "plans.json"}, "state_dict": {"encoder.a": torch.ones(1)}},
            "has incomplete plans inside",
        ),
        ([1, 2], "holds a list, not a checkpoint"),
    ],
)
def test_unknown_files_are_one_line(tmp_path: Path, genesis, capsys, content, message):
    assert genesis("inspect", written(content, tmp_path / "a.pth")) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert f"{tmp_path / 'a.pth'} {message}" in shown.err


def test_missing_foreign_and_cut_off_files_are_one_line(tmp_path: Path, genesis, capsys):
    whole = written(stock(small_plans()), tmp_path / "whole.pth").read_bytes()
    legacy = tmp_path / "legacy.pth"
    torch.save(stock(small_plans()), legacy, _use_new_zipfile_serialization=False)
    contents = {"cut.pth": whole[: len(whole) // 2], "legacy_cut.pth": legacy.read_bytes()[:5000], "empty.pth": b"",
                "keras.h5": b"\x89HDF\r\n\x1a\n" + bytes(100), "text.pth": b"{ hello, hello }",
                "noise.pth": bytes(range(256)) * 9}  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "absent.pth", ""):
        assert genesis("inspect", tmp_path / name) == 1, name
        shown = capsys.readouterr()
        assert (shown.out, shown.err.count("\n")) == ("", 1), name
        assert str(tmp_path / name) in shown.err
        if name == "keras.h5":
            assert "no HDF5 file" in shown.err


@pytest.mark.parametrize("legacy", [True, False])
def test_a_file_that_would_run_code_is_refused_and_nothing_runs(tmp_path: Path, genesis, capsys, legacy):
    content = stock(small_plans()) | {"trap": Trap(tmp_path / "sprung")}
    torch.save(content, tmp_path / "trap.model", _use_new_zipfile_serialization=not legacy)
    (tmp_path / "trap.pkl").write_bytes(pickle.dumps(content["trap"]))
    for name, message in (("trap.model", "reading it would run code that it names ("), ("trap.pkl", "trap.pkl is")):
        assert genesis("inspect", tmp_path / name) == 1
        shown = capsys.readouterr().err
        assert message in shown
        assert shown.count("\n") == 1
    assert not (tmp_path / "sprung").exists()
