"""Single rows of an index of volumes, without nnU-Net's writers where they are not needed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetNumpy

from nnunet_genesis import volume_index
from nnunet_genesis.errors import DatasetError
from nnunet_genesis.volume_index import IndexedVolumes, index_file, index_of, spread


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two small volumes."""
    (tmp_path / "plans").mkdir()
    for number, case in enumerate("ab"):
        volume = np.random.default_rng(number).normal(size=(1, 4, 5, 6)).astype(np.float32)
        segmentation = np.zeros(volume.shape, np.int16)
        nnUNetDatasetNumpy.save_case(volume, segmentation, {}, str(tmp_path / "plans" / case))
    os.utime(tmp_path / "plans", ns=(10**18, 10**18))
    return tmp_path / "plans"


def test_the_spread_is_that_of_the_three_central_planes():
    volume = np.random.default_rng(0).normal(size=(2, 5, 6, 7)) * [[[[1]]], [[[9]]]]
    volume[0, 2, 0, 0] = np.nan
    for channel, found in zip(volume, spread(volume), strict=True):
        planes = [channel[2].ravel(), channel[:, 3].ravel(), channel[:, :, 3].ravel()]
        assert found == pytest.approx(np.nanstd(np.concatenate(planes)), rel=1e-6)


@pytest.mark.parametrize("name", ["", "aa", "z"])
def test_names_before_between_and_after_those_that_are_there(folder, name):
    index = index_of(folder)
    with pytest.raises(DatasetError, match=f"no volume of {name} in"):
        index.rows(["b", name])
    assert (index.rows(["b", "a", "b"]).tolist(), index.rows([]).tolist()) == ([1, 0, 1], [])


def test_names_are_a_sequence(folder):
    names = IndexedVolumes(index_of(folder), ["b", "a"]).identifiers
    assert (len(names), list(names), names[-1], names[::-1], names[:1]) == (2, ["a", "b"], "b", ["b", "a"], ["a"])
    assert IndexedVolumes(index_of(folder), ["b"]).identifiers[0] == "b"


def test_many_damaged_volumes_are_counted_and_some_are_named(folder, monkeypatch):
    assert index_of(folder).warning() == ""
    flaws = np.array([b"", b"too short"])
    index = replace(index_of(folder), columns=dict(index_of(folder).columns) | {"flaws": flaws})
    assert index.warning() == "1 of 2 volumes in plans cannot be read and are left out: b (too short)"
    index = replace(index, columns=dict(index.columns) | {"flaws": np.array([b"cut", b"too short"])})
    monkeypatch.setattr(volume_index, "MOST_NAMED", 1)
    assert index.warning().endswith("2 of 2 volumes in plans cannot be read and are left out: a (cut); and 1 more")


def test_a_run_that_is_interrupted_reads_no_further_volumes(folder, monkeypatch):
    read = []
    monkeypatch.setattr(volume_index, "_described", lambda _, case, ending: read.append(case) or time.sleep(0.01) or {})
    cases = [f"case{number:02d}" for number in range(60)]
    rows = volume_index._computed(folder, ".npz", cases, dict.fromkeys(cases, (1, 1)))
    next(rows)
    rows.close()
    assert len(read) < len(cases) / 2


Content = dict[str, np.ndarray]


@pytest.mark.parametrize("change", [
    lambda content: content.update(format=np.array(volume_index.FORMAT + 1)),
    lambda content: content.update(ending=np.array(".nii")),
    lambda content: content.pop("marked"),
    lambda content: content.update(spreads=content["spreads"].astype(np.float64)),
    lambda content: content.update(spreads=content["spreads"][:, 0]),
    lambda content: content.update(stamps=content["stamps"][:1]),
    lambda content: content.update(digests=content["digests"][:, :, :-1]),
    lambda content: content.update(signatures=content["signatures"][:, :, :-1]),
    lambda content: content.update(signatures=content["signatures"].repeat(2, axis=1)),
])  # fmt: skip
def test_an_index_of_another_form_is_not_taken(folder, change: Callable[[Content], object]):
    index_of(folder)
    with np.load(index_file(folder)) as stored:
        content = dict(stored)
    np.savez(index_file(folder), **content)
    assert volume_index._stored(folder) is not None
    change(content)
    np.savez(index_file(folder), **content)
    assert volume_index._stored(folder) is None
    assert index_of(folder).readable() == ["a", "b"]
