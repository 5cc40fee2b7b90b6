"""Reading runs no code; what we write is plain."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_genesis.checkpoints.reading import (
    network_weights,
    read_checkpoint,
    read_plain_pickle,
    read_pretrained,
)
from nnunet_genesis.checkpoints.safe_numpy import Array, Kind
from nnunet_genesis.checkpoints.saving import save_plain
from nnunet_genesis.errors import CheckpointError
from tests.transfer.networks import architecture, build


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


@pytest.mark.parametrize("legacy", [False, True])
def test_a_class_that_is_named_but_not_called_is_refused_too(tmp_path: Path, monkeypatch, legacy):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # which lets code run where nobody says otherwise
    content = {"network_weights": {}, "layer": torch.nn.Linear}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"would run code that it names \(torch\.nn\.modules\.linear\.Linear\)\."):
        read_checkpoint(tmp_path / "a.pth")
    (tmp_path / "plans.pkl").write_bytes(pickle.dumps({"plans": Path}))
    with pytest.raises(CheckpointError, match=r"plans\.pkl cannot be read.*pathlib\.Path is not known"):
        read_plain_pickle(tmp_path / "plans.pkl")


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


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(
    "value",
    [np.int16(-3), np.uint8(3), np.float16(0.5), np.str_("a"), np.bool_(True), np.zeros(0),
     np.arange(6).reshape(2, 3).T, np.array([1, 256], ">i2"), np.array(["a", "ö"])],
    ids=lambda value: str(value.dtype),
)  # fmt: skip
def test_numbers_and_text_of_numpy_are_read(tmp_path: Path, value, legacy):
    torch.save({"log": value}, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    content = read_checkpoint(tmp_path / "a.pth")
    assert np.array_equal(content["log"], value)
    assert content["log"].shape == value.shape
    torch.save(content, tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=False)["log"]
    assert type(again) is type(value)  # nothing of this package is needed to read it
    save_plain(lambda stream: torch.save({"log": value}, stream), {}, tmp_path / "plain.pth")
    assert torch.load(tmp_path / "plain.pth", weights_only=True)["log"] == value.tolist()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([1, None], dtype=object), r"is refused: it holds a numpy\.object_\. Only files of tensors"),
        (np.zeros(1, [("a", "i4"), ("b", "O")]), r"is refused: it holds a numpy\.void"),
        (np.datetime64("2020-01-01"), r"is refused: it holds a numpy\.datetime64"),
        (np.longdouble(1), r"is refused: it holds a numpy\.longdouble"),
        (np.ma.array([1]), r"would run code that it names \(numpy\.ma\.core\._mareconstruct\)"),
    ],
)
def test_other_values_of_numpy_are_refused_with_their_kind(tmp_path: Path, value, message):
    torch.save({"log": value}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", ["O", Kind("f8")])
def test_files_set_neither_objects_nor_flags_of_arrays(tmp_path: Path, kind):
    """Numpy's own array and dtype would take any bytes for pointers where a file says so."""

    class Crafted:
        def __reduce__(self):
            return Array, ((0,), "b"), (1, (1,), kind, False, b"01234567")

    class Flags(Kind):
        def __reduce__(self):
            return Kind, ("f8",), (3, "<", None, ("a",), {"a": ("O", 0)}, -1, -1, 63)

    kind = Flags("f8") if isinstance(kind, Kind) else kind
    path = tmp_path / "a.pth"
    torch.save({"log": Crafted()}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for ours, theirs in ((b"Array", b"ndarray"), (b"Kind", b"dtype")):
        content = content.replace(f"{Array.__module__}\n".encode() + ours, b"numpy\n" + theirs)
    path.write_bytes(content)
    if kind == "O":
        with pytest.raises(CheckpointError, match="cannot be read.*'str' object has no attribute 'dtype'"):
            read_checkpoint(path)
    else:
        log = read_checkpoint(path)["log"]
        assert log.dtype == np.dtype("f8")
        assert not log.dtype.hasobject


def test_an_archive_and_a_folder_name_the_checkpoints_in_them(tmp_path: Path):
    inside = "Dataset004_X/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0/checkpoint_"
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for name in ("best", "final"):
            archive.writestr(f"{inside}{name}.pth", "x")
    with pytest.raises(CheckpointError, match=rf"model\.zip is an archive.*Unpack it.*in it: {inside}final\.pth"):
        read_pretrained(tmp_path / "model.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty is a folder. Name a checkpoint; there is none in it"):
        read_pretrained(tmp_path / "empty")
    final = tmp_path / "results" / "Dataset004_X" / "model" / "fold_1" / "checkpoint_final.pth"
    final.parent.mkdir(parents=True)
    final.touch()
    for folder in list(final.parents)[:4]:
        with pytest.raises(CheckpointError, match=rf"{folder.name} is a folder\. .* in it: {re.escape(str(final))}\.$"):
            read_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value, dtype):
    weights = build(architecture(norm_op="torch.nn.modules.batchnorm.BatchNorm3d")).to(dtype).state_dict()
    torch.save(weights, tmp_path / "a.pth")
    assert read_pretrained(tmp_path / "a.pth")
    weights["encoder.stages.1.0.convs.0.conv.weight"][0, 0, 0, 0, 0] = value
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"a\.pth holds NaN or infinite values in encoder\.stages\.1\.0\.convs\.0\.conv"
    ):
        read_pretrained(tmp_path / "a.pth")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_leave_no_trace_in_names(tmp_path: Path, prefix):
    weights = network_weights({"network_weights": {f"{prefix}encoder.a": torch.ones(1)}}, tmp_path)
    assert list(weights) == ["encoder.a"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_in_a_plain_pickle_arrive_as_they_were(tmp_path: Path, protocol, order):
    values = {
        "table": np.array([[1, 2, 3], [4, 5, 6]], order=order),
        "swapped": np.array([1.5, -2], ">f4"),
        "empty": np.zeros((0, 2)),
        "scalar": np.float32(0.25),
    }
    path = tmp_path / "plans.pkl"
    path.write_bytes(pickle.dumps(values, protocol))
    content = read_plain_pickle(path)
    assert content.keys() == values.keys()
    for name, read in content.items():
        np.testing.assert_array_equal(read, values[name])
        assert read.dtype.newbyteorder("=") == values[name].dtype.newbyteorder("=")
    path.write_bytes(pickle.dumps({"objects": np.array([None])}, protocol))
    with pytest.raises(CheckpointError, match="object"):
        read_plain_pickle(path)
