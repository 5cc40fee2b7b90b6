"""What a checkpoint says of its cases is checked before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_genesis.checkpoints.case_files import MOST_ROWS_INSIDE, carry_record, kept_record, read_record_file
from nnunet_genesis.errors import CheckpointError
from nnunet_genesis.leaks.case_record import CaseRecord, read_record, record_in
from nnunet_genesis.leaks.signature import DIGEST, LENGTH


def block(rows: int = 2, **changes) -> dict:
    rng = np.random.default_rng(0)
    digests = rng.integers(0, 256, (rows, DIGEST), np.uint8)
    signatures = rng.integers(-127, 128, (rows, LENGTH), np.int8)
    return CaseRecord(tuple(f"c{row}" for row in range(rows)), digests, signatures).block() | changes


def test_what_is_written_is_read(tmp_path):
    torch.save({"genesis": {"cases": block(3)}}, tmp_path / "a.pth")
    record = record_in(tmp_path / "a.pth")
    assert record.names == ("c0", "c1", "c2")
    for key in ("digests", "signatures"):
        np.testing.assert_array_equal(getattr(record, key), block(3)[key])


@pytest.mark.parametrize("content", [{}, {"genesis": 3}, {"genesis": {}}, {"genesis": {"cases": None}},
                                     {"network_weights": {"a": torch.zeros(2)}}])  # fmt: skip
def test_checkpoints_that_do_not_say(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    assert record_in(tmp_path / "a.pth") is None


@pytest.mark.parametrize("damaged", [
    3, [], {"format": 1}, block(names=["c0"]), block(names="c0"), block(names=[0, 1]),
    block(digests=torch.zeros(2, DIGEST)), block(digests=torch.zeros(2, 3, dtype=torch.uint8)),
    block(signatures=[[0] * LENGTH] * 2), block(signatures=torch.zeros(1, LENGTH, dtype=torch.int8)),
    block(signatures=torch.zeros(2, LENGTH, dtype=torch.float32)), block(format=torch.ones(2)), block(format=None),
    block(format=[1]),
])  # fmt: skip
def test_damaged_records_are_not_taken_for_empty_ones(tmp_path, damaged):
    with pytest.raises(CheckpointError, match="damaged record"):
        read_record(damaged)
    torch.save({"genesis": {"cases": damaged}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        record_in(tmp_path / "a.pth")


def test_records_of_later_versions():
    with pytest.raises(CheckpointError, match="another format"):
        read_record(block(format=3))


def test_values_that_repeat_are_not_unfolded(tmp_path):
    torch.save({"genesis": {"cases": block(signatures=torch.zeros(1, 1, dtype=torch.int8).expand(2, LENGTH))}},
               tmp_path / "a.pth")  # fmt: skip
    with pytest.raises(CheckpointError, match="repeats fewer values"):
        record_in(tmp_path / "a.pth")


def test_a_long_record_lies_beside_the_checkpoint_which_names_it(tmp_path):
    few, many = block(MOST_ROWS_INSIDE), block(MOST_ROWS_INSIDE + 1)
    assert kept_record(few, tmp_path) is few
    held = kept_record(many, tmp_path)
    (file,) = tmp_path.glob("*")
    assert file.name == held["file"]
    torch.save({"genesis": {"cases": held}}, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").stat().st_size < 2000
    found = record_in(tmp_path / "a.pth").block()
    assert found["names"] == many["names"]
    assert all(torch.equal(found[key], many[key]) for key in ("digests", "signatures"))
    assert kept_record(many, tmp_path) == held  # under the same name


def test_a_record_that_is_not_beside_its_checkpoint_is_missed(tmp_path):
    held = kept_record(block(MOST_ROWS_INSIDE + 1), tmp_path)
    file = tmp_path / held["file"]
    torch.save({"genesis": {"cases": held}}, tmp_path / "a.pth")
    (tmp_path / "weights").mkdir()
    carry_record(held, tmp_path / "a.pth", tmp_path / "weights")
    assert (tmp_path / "weights" / file.name).read_bytes() == file.read_bytes()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"is not the record of cases that a\.pth names"):
        record_in(tmp_path / "a.pth")
    file.unlink()
    with pytest.raises(
        CheckpointError, match=rf"a\.pth has the record of its cases in {file.name}, which is not beside"
    ):
        record_in(tmp_path / "a.pth")
    carry_record(held, tmp_path / "a.pth", tmp_path / "weights")  # nothing to carry is no error
    carry_record(None, tmp_path / "a.pth", tmp_path / "weights")


class Attack:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_record_that_would_run_code_is_refused_and_nothing_runs(tmp_path):
    np.savez(tmp_path / "cases.npz", names=np.array([Attack(tmp_path / "ran")], dtype=object), format=1,
             digests=np.zeros((1, DIGEST), np.uint8), signatures=np.zeros((1, LENGTH), np.int8))  # fmt: skip
    with pytest.raises(CheckpointError, match=r"cases\.npz cannot be read \(ValueError\)"):
        read_record_file(tmp_path / "cases.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("digest", [3, "../../etc/passwd", "A" * 64, "0" * 63])
def test_a_checkpoint_names_no_other_file(tmp_path, digest):
    torch.save({"genesis": {"cases": {"format": 2, "file": "/etc/passwd", "sha256": digest}}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="damaged record"):
        record_in(tmp_path / "a.pth")
