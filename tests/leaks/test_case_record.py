"""What a checkpoint says of its cases is checked before it is used."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_genesis.errors import CheckpointError, DatasetError
from nnunet_genesis.leaks.case_record import CaseRecord, read_record, record_in, record_of
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
        read_record(block(format=2))


def test_values_that_repeat_are_not_unfolded(tmp_path):
    torch.save({"genesis": {"cases": block(signatures=torch.zeros(1, 1, dtype=torch.int8).expand(2, LENGTH))}},
               tmp_path / "a.pth")  # fmt: skip
    with pytest.raises(CheckpointError, match="repeats fewer values"):
        record_in(tmp_path / "a.pth")


def test_volumes_that_are_missing_or_damaged(tmp_path):
    with pytest.raises(DatasetError, match="There is no volume of a"):
        record_of(tmp_path, ["a"])
    (tmp_path / "a.b2nd").write_bytes(b"no volume")
    with pytest.raises(DatasetError, match="volume of a .* cannot be read"):
        record_of(tmp_path, ["a"])
