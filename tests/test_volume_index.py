"""The index of a folder of volumes: what it says, when it is computed anew, and who is left out."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

from nnunet_genesis import volume_index
from nnunet_genesis.corruption import RECIPES
from nnunet_genesis.errors import DatasetError
from nnunet_genesis.files import mapped_npz
from nnunet_genesis.leaks.signature import digest, pooled, signature
from nnunet_genesis.pretraining.patches import TRAINING, VALIDATION, PatchBatches
from nnunet_genesis.volume_index import IndexedVolumes, index_file, index_of, spread


def write(folder: Path, case: str, seed: int, channels: int = 2) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    volume = np.random.default_rng(seed).normal(size=(channels, 9 + seed, 10, 11)).astype(np.float32)
    block = (1, 8, 8, 8)
    for ending in (".b2nd", "_seg.b2nd"):
        (folder / f"{case}{ending}").unlink(missing_ok=True)
    nnUNetDatasetBlosc2.save_case(volume, np.zeros((1, *volume.shape[1:]), np.int16), {}, str(folder / case),
                                  chunks=block, blocks=block)  # fmt: skip
    return volume


def settle(folder: Path, changed: int = 10**18) -> None:
    """As if the folder had changed last a while ago."""
    os.utime(folder, ns=(changed, changed))


@pytest.fixture
def folder(tmp_path) -> Path:
    for seed, case in enumerate(("b", "ä", "a", "a_b")):
        write(tmp_path / "plans", case, seed)
    settle(tmp_path / "plans")
    return tmp_path / "plans"


@pytest.fixture
def no_reading(monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a volume is read")

    monkeypatch.setattr(volume_index, "_described", refuse)


def test_what_it_says_of_each_volume_is_what_the_volume_is(folder):
    index = index_of(folder)
    assert index.readable() == nnUNetDatasetBlosc2(str(folder)).identifiers == ["a", "a_b", "b", "ä"]
    assert isinstance(index.columns["signatures"], np.memmap)
    dataset = nnUNetDatasetBlosc2(str(folder))
    for row, case in enumerate(dataset.identifiers):
        volume = dataset.load_case(case)[0]
        held = {name: column[row] for name, column in index.columns.items()}
        assert tuple(held["shapes"]) == volume.shape
        assert held["spreads"].tobytes() == spread(volume).tobytes()  # the same number, not nearly the same
        for channel in range(2):
            assert bytes(held["digests"][channel]) == digest(volume[channel])
            np.testing.assert_array_equal(held["signatures"][channel], signature(pooled(volume[channel])))
    record = index.record(["ä", "a"])
    assert record.names == ("ä", "ä", "a", "a")
    np.testing.assert_array_equal(record.digests, index.columns["digests"][[3, 3, 0, 0], [0, 1, 0, 1]])
    with pytest.raises(DatasetError, match="no volume of c in"):
        index.rows(["a", "c"])


@pytest.mark.parametrize("stream", [TRAINING, VALIDATION])
def test_patches_are_those_without_an_index(folder, stream):
    cases, rest = ["b", "a", "ä"], (((6, 7, 8)), 3, 3, 0, RECIPES["paper"].without(), 3, stream, 0.9)
    plain = PatchBatches(nnUNetDatasetBlosc2(str(folder), list(cases)), *rest)
    indexed = PatchBatches(IndexedVolumes(index_of(folder), cases), *rest)
    for number in range(6):
        one, other = plain[number], pickle.loads(pickle.dumps(indexed))[number]
        assert one["keys"] == other["keys"]
        assert all(np.array_equal(one[key], other[key], equal_nan=True) for key in ("data", "target"))


def test_an_index_travels_as_the_name_of_its_file(folder):
    volumes = IndexedVolumes(index_of(folder), ["a", "b"])
    sent = pickle.dumps(volumes)
    assert len(sent) < 1000
    assert list(pickle.loads(sent).identifiers[:]) == ["a", "b"]
    write(folder, "c", 7)
    index_of(folder)
    with pytest.raises(DatasetError, match="was changed while it was in use"):
        pickle.loads(sent)


def test_a_folder_that_has_not_changed_is_not_looked_through(folder, monkeypatch, no_reading):
    monkeypatch.undo()
    first = index_of(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", None)
        patch.setattr(volume_index, "_stamp", None)
        assert index_of(folder).readable() == first.readable()
    settle(folder, 10**18 + 1)
    monkeypatch.setattr(volume_index, "_described", None)  # looked through, but nothing is read again
    assert index_of(folder).flaws() == {}


def test_a_folder_that_has_changed_a_moment_ago_is_looked_through_again(folder):
    os.utime(folder)
    assert index_of(folder).changed == 0
    settle(folder)
    assert index_of(folder).changed == 10**18


def test_only_new_and_changed_volumes_are_read(folder, monkeypatch):
    before, read = index_of(folder), []
    described = volume_index._described
    monkeypatch.setattr(volume_index, "_described", lambda *given: read.append(given[1]) or described(*given))
    write(folder, "aa", 5)
    (folder / "b.b2nd").unlink()
    shutil.copyfile(folder / "aa.b2nd", folder / "a.b2nd")
    after = index_of(folder)
    assert sorted(read) == ["a", "aa"]
    assert after.readable() == ["a", "a_b", "aa", "ä"]
    assert bytes(after.columns["digests"][0]) == bytes(after.columns["digests"][2])
    for name, column in before.columns.items():
        np.testing.assert_array_equal(column[[1, 3]], after.columns[name][[1, 3]])


@pytest.mark.parametrize(
    "damage", [lambda content: content[:100], lambda content: b"", lambda content: content[:-2000]]
)
def test_a_damaged_index_is_computed_anew(folder, damage):
    fresh = index_of(folder).record(["a"])
    path = index_file(folder)
    path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(index_of(folder).record(["a"]).digests, fresh.digests)


def test_volumes_that_cannot_be_read_are_named_and_left_out(folder):
    cut = folder / "a_b.b2nd"
    cut.write_bytes(cut.read_bytes()[:200])
    (folder / "b_seg.b2nd").unlink()
    content = bytearray((folder / "ä.b2nd").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = os.urandom(400)
    (folder / "ä.b2nd").write_bytes(content)
    index = index_of(folder)
    assert index.readable() == ["a"]
    assert list(index.flaws()) == ["a_b", "b", "ä"]
    assert all(index.flaws().values())
    assert index.warning().startswith("3 of 4 volumes in plans cannot be read and are left out: a_b (")
    assert "\n" not in index.warning()
    write(folder, "b", 1)
    assert index_of(folder).readable() == ["a", "b"]


def test_a_volume_that_is_damaged_later_is_named(folder):
    volumes = IndexedVolumes(index_of(folder), ["a"])
    (folder / "a.b2nd").write_bytes(b"no volume")
    with pytest.raises(DatasetError, match="volume of a in .* cannot be read"):
        volumes.load_case("a")


def test_a_folder_of_damaged_volumes_only_and_one_of_none(folder):
    for path in folder.glob("*.b2nd"):
        path.write_bytes(b"no volume")
    assert index_of(folder).readable() == []
    write(folder, "c", 1, channels=3)
    assert index_of(folder).readable() == ["c"]
    write(folder, "d", 1, channels=2)
    with pytest.raises(DatasetError, match="2 and 3 channels"):
        index_of(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(DatasetError, match="no volumes in"):
        index_of(folder)


def test_volumes_in_numpys_files(tmp_path):
    (folder := tmp_path / "old").mkdir()
    volumes = {case: np.random.default_rng(n).normal(size=(1, 8, 9, 10)).astype(np.float32)
               for n, case in enumerate("ab")}  # fmt: skip
    for case, volume in volumes.items():
        nnUNetDatasetNumpy.save_case(volume, np.zeros((1, 8, 9, 10), np.int16), {}, str(folder / case))
    indexed = IndexedVolumes(index_of(folder), ["b", "a"])
    assert list(indexed.identifiers) == ["a", "b"]
    volume, segmentation, _, properties = indexed.load_case("b")
    np.testing.assert_array_equal(volume, volumes["b"])
    assert segmentation is None
    assert properties["spread"] == spread(volumes["b"])


def test_what_was_computed_until_a_run_is_killed_is_kept(folder, monkeypatch):
    monkeypatch.setattr(volume_index, "PAUSE", 0.0)
    monkeypatch.setattr(volume_index, "THREADS", 1)
    described = volume_index._described

    def until_c(*given):
        if given[1] == "ä":
            raise KeyboardInterrupt
        return described(*given)

    monkeypatch.setattr(volume_index, "_described", until_c)
    with pytest.raises(KeyboardInterrupt):
        index_of(folder)
    kept = volume_index._stored(folder)
    assert kept.readable() == ["a", "a_b", "b"]
    assert kept.changed == 0
    assert [path.name for path in folder.parent.iterdir() if path != folder] == [index_file(folder).name]


def test_an_index_that_cannot_be_written(folder, monkeypatch):
    index_file(folder).mkdir()
    with pytest.raises(DatasetError, match="cannot be written"):
        index_of(folder)


def test_arrays_are_mapped_as_numpy_reads_them(tmp_path):
    arrays = {"a": np.arange(12).reshape(3, 4), "text": np.array([b"x", b"yz"]), "number": np.array(3),
              "words": np.array("abc"), "none": np.zeros((0, 4), np.float32), "flags": np.array([True])}  # fmt: skip
    np.savez(tmp_path / "a.npz", **arrays)
    mapped = mapped_npz(tmp_path / "a.npz")
    assert mapped.keys() == arrays.keys()
    for name, array in arrays.items():
        assert mapped[name].dtype == array.dtype
        np.testing.assert_array_equal(mapped[name], array)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    np.savez(tmp_path / "c.npz", objects=np.array([{}], dtype=object))
    for name in ("b.npz", "c.npz"):
        with pytest.raises(ValueError, match="compressed|objects"):
            mapped_npz(tmp_path / name)
    with pytest.raises(zipfile.BadZipFile):
        (tmp_path / "d.npz").write_bytes(b"")
        mapped_npz(tmp_path / "d.npz")
