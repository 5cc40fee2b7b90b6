"""Reading runs no code; what we write is plain."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_genesis.checkpoint import bare, network_weights, plain, read_checkpoint, save_plain
from nnunet_genesis.errors import CheckpointError


class Trap:
    """A pickle of this makes a folder when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_that_would_run_code_is_refused_and_nothing_runs(tmp_path: Path):
    torch.save({"network_weights": {}, "trap": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError, match=r"trap\.pth is refused: reading it would run code .*mkdir"):
        read_checkpoint(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()
    torch.load(tmp_path / "trap.pth", weights_only=False)
    assert (tmp_path / "sprung").exists()  # the trap is real


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_cut_off_files_are_named(tmp_path: Path, share):
    torch.save({"network_weights": {"a": torch.ones(1000)}}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"a\.pth (cannot be read|is not a checkpoint)") as refusal:
        read_checkpoint(tmp_path / "a.pth")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("checksums", [True, False])
def test_changed_bytes_are_noticed_where_checksums_were_written(tmp_path: Path, checksums):
    torch.serialization.set_crc32_options(checksums)
    try:
        torch.save({"network_weights": {"a": torch.ones(1000)}}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(tmp_path / "a.pth")["network_weights"]["a"].sum() == 1000
    content = bytearray((tmp_path / "a.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.pth").write_bytes(content)
    if checksums:
        with pytest.raises(CheckpointError, match=r"a\.pth was damaged or altered after .* \(a/data/0\)"):
            read_checkpoint(tmp_path / "a.pth")
    else:
        assert read_checkpoint(tmp_path / "a.pth")["network_weights"]["a"].sum() != 1000


def test_missing_text_and_other_files(tmp_path: Path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello there, this is no checkpoint\n" * 20)
    with pytest.raises(CheckpointError, match=r"text\.pth"):
        read_checkpoint(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list, not a checkpoint"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"state_dict": {}}, tmp_path / "v1.pth")
    with pytest.raises(CheckpointError, match=r'has no "network_weights" \(it holds: state_dict\)'):
        network_weights(read_checkpoint(tmp_path / "v1.pth"), tmp_path / "v1.pth")


def test_numpy_scalars_of_nnunet_are_let_through_and_made_plain(tmp_path: Path):
    stock = {
        "_best_ema": np.float32(0.5),
        "logging": {"lrs": [np.float64(0.1)]},
        "network_weights": {"a": torch.ones(2)},
    }
    torch.save(stock, tmp_path / "stock.pth")
    assert read_checkpoint(tmp_path / "stock.pth")["_best_ema"] == 0.5
    save_plain(lambda stream: torch.save(stock, stream), {"epochs": np.int64(3)}, tmp_path / "ours.pth")
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)  # no allow-list
    assert type(ours["_best_ema"]) is float
    assert type(ours["logging"]["lrs"][0]) is float
    assert ours["genesis"] == {"epochs": 3}


def test_a_failing_save_keeps_the_file_before(tmp_path: Path):
    def fail(stream: io.BytesIO) -> None:
        raise OSError("disk full")

    save_plain(lambda stream: torch.save({"a": 1}, stream), {}, tmp_path / "a.pth")
    with pytest.raises(OSError, match="disk full"):
        save_plain(fail, {}, tmp_path / "a.pth")
    assert torch.load(tmp_path / "a.pth", weights_only=True)["a"] == 1


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_leave_no_trace_in_names(tmp_path: Path, prefix):
    weights = network_weights({"network_weights": {f"{prefix}encoder.a": torch.ones(1)}}, tmp_path)
    assert list(weights) == ["encoder.a"]


def test_bare_unwraps():
    network = nn.Linear(2, 2)
    assert bare(network) is network
    assert bare(torch.compile(nn.DataParallel(network))) is network


def test_plain_keeps_structure():
    nested = {"a": [np.float32(1), (np.int64(2), "b")], "t": None}
    assert plain(nested) == {"a": [1.0, (2, "b")], "t": None}
    assert type(plain(nested)["a"][1][0]) is int
