"""What is saved is complete and plain."""

from __future__ import annotations

import io
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_genesis.checkpoints.plain_types import plain
from nnunet_genesis.checkpoints.saving import save_plain, save_tensors


def test_a_failing_save_keeps_the_file_before(tmp_path: Path):
    def fail(stream: io.BytesIO) -> None:
        raise OSError("disk full")

    save_plain(lambda stream: torch.save({"a": 1}, stream), {}, tmp_path / "a.pth")
    with pytest.raises(OSError, match="disk full"):
        save_plain(fail, {}, tmp_path / "a.pth")
    assert torch.load(tmp_path / "a.pth", weights_only=True)["a"] == 1


@pytest.mark.parametrize(("path", "why"), [("/dev/full", "No space left"), ("missing/a.pth", "No such file")])
def test_what_cannot_be_written_is_an_error_of_the_system(tmp_path: Path, path: str, why: str):
    """The command line says such an error in one line."""
    with pytest.raises(OSError, match=why):
        save_tensors({"a": torch.ones(3)}, tmp_path / path)
    save_tensors({"a": torch.ones(3)}, tmp_path / "a.pth")
    assert torch.equal(torch.load(tmp_path / "a.pth", weights_only=True)["a"], torch.ones(3))


def test_a_file_that_ends_too_early_is_an_error_of_the_system(tmp_path: Path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_tensors({"a": torch.ones(50_000)}, tmp_path / "a.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_plain_keeps_structure():
    nested = {"a": [np.float32(1), (np.int64(2), "b")], "t": None}
    assert plain(nested) == {"a": [1.0, (2, "b")], "t": None}
    assert type(plain(nested)["a"][1][0]) is int
    assert plain(nested | {"t": torch.ones(1, dtype=torch.int64)}, as_json=True) == {"a": [1.0, [2, "b"]], "t": [1]}
