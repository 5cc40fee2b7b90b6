"""A second run does what is left, whatever stopped the first."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_genesis import files
from nnunet_genesis.errors import DatasetError
from nnunet_genesis.importing import into_dataset, read
from nnunet_genesis.importing.journal import REPORT
from nnunet_genesis.importing.read import read_scan
from tests.importing.conftest import (
    image_file,
    images,
    make,
    make_series,
    run,
    saved_report,
    snapshot,
    voxels,
)


def test_a_second_run_reads_and_writes_no_scan(source, raw, monkeypatch):
    make(source / "a.nii.gz")
    make(source / "b.nrrd")
    make_series(source / "ct", voxels(3, (4, 5, 6)), "1.2.3.4")
    (source / "bad.nii.gz").write_text("hello")
    first = run(raw, source)
    before = snapshot(raw)

    def never(*_):
        raise AssertionError("a finished scan was read")

    monkeypatch.setattr(read, "read_scan", never)
    second = run(raw, source)
    assert (first.imported, first.already_there) == (3, 0)
    assert (second.imported, second.already_there) == (0, 3)
    assert second.rejected == first.rejected != {}
    assert snapshot(raw) == before


def test_changed_sources_are_done_again(source, raw):
    make(source / "a.nii.gz")
    make(source / "b.nii.gz")
    make(source / "c.mhd", compress=False)
    data = (source / "c.raw").read_bytes()
    (source / "c.raw").unlink()
    assert run(raw, source).imported == 2
    before = snapshot(raw)
    make(source / "a.nii.gz", voxels(1))
    (source / "c.raw").write_bytes(data)
    report = run(raw, source)
    assert (report.imported, report.already_there, report.rejected) == (2, 1, {})
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(image_file(raw, "a")))), voxels(1))
    assert snapshot(raw)["b_0000.nii.gz"] == before["b_0000.nii.gz"]
    (source / "b.nii.gz").write_text("spoilt")
    assert list(run(raw, source).rejected) == [str(source / "b.nii.gz")]
    assert images(raw) == ["a_0000.nii.gz", "c_0000.nii.gz"]


def test_output_that_was_deleted_is_made_again(source, raw):
    make(source / "a.nii.gz")
    run(raw, source)
    image_file(raw, "a").unlink()
    assert run(raw, source).imported == 1


@pytest.mark.parametrize("channels", [("CT",), ("T1", "T2")])
def test_a_killed_run_leaves_whole_cases_and_the_next_one_finishes(source, raw, monkeypatch, channels):
    for case in "abcd":
        for channel in range(len(channels)):
            make(source / f"{case}_{channel:04d}.nii.gz", voxels(channel))
    real, calls, folder = os.replace, [], raw / "Dataset501_Chest"

    def dying(start, end):
        if str(end).endswith(".nii.gz"):
            assert start.parent == folder  # nnU-Net takes every file in imagesTr for a case
            calls.append(end)
            if len(calls) == 2 * len(channels):  # the last file of the second case
                raise KeyboardInterrupt
        real(start, end)

    monkeypatch.setattr(files.os, "replace", dying)
    monkeypatch.setattr(into_dataset.Journal, "write", lambda self: None)  # a kill gives no chance to save
    with pytest.raises(KeyboardInterrupt):
        run(raw, source, channels=channels)
    monkeypatch.undo()
    (folder / ".incomplete_c_0000.nii.gz").symlink_to(source / "c_0000.nii.gz")  # a run with links, killed
    (folder / ".incomplete_gone_0000.nii.gz").write_bytes(b"half a file")
    untouched = (source / "c_0000.nii.gz").stat().st_mtime_ns
    assert not (folder / REPORT).exists()
    for path in image_file(raw, "x").parent.iterdir():
        assert read_scan([path]) is not None
    report = run(raw, source, channels=channels)
    assert (report.imported, report.already_there) == (3, 1)
    assert len(images(raw)) == 4 * len(channels)
    assert (source / "c_0000.nii.gz").stat().st_mtime_ns == untouched
    assert not list(folder.glob(".incomplete*"))


def test_half_a_case_left_by_a_killed_run_is_removed_even_if_its_source_is_gone(source, raw):
    for channel in range(2):
        make(source / f"a_{channel:04d}.nii.gz", voxels(channel))
        make(source / f"b_{channel:04d}.nii.gz", voxels(channel))
    run(raw, source, channels=("T1", "T2"))
    report = saved_report(raw)
    report["sources"][str(source / "b_*")].update(state="")
    (raw / "Dataset501_Chest" / REPORT).write_text(json.dumps(report))
    image_file(raw, "b", 1).unlink()
    for channel in range(2):
        (source / f"b_{channel:04d}.nii.gz").unlink()
    run(raw, source, channels=("T1", "T2"))
    assert images(raw) == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_a_run_interrupted_between_cases_saves_its_report(source, raw, monkeypatch):
    make(source / "a.nii.gz")
    (source / "b.nii.gz").write_text("hello")
    make(source / "c.nii.gz")
    real, seen = read.read_scan, []

    def dying(paths):
        seen.append(paths[0].name)
        if paths[0].name == "c.nii.gz":
            raise KeyboardInterrupt
        return real(paths)

    monkeypatch.setattr(read, "read_scan", dying)
    with pytest.raises(KeyboardInterrupt):
        run(raw, source)
    assert list(saved_report(raw)["rejected"]) == [str(source / "b.nii.gz")]
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        run(raw, source)
    assert seen == ["c.nii.gz"]


@pytest.mark.parametrize("case", ["../../victim", "/victim", "a/b", "a\0b", 5, "."])
def test_a_report_from_elsewhere_names_no_files_outside(source, raw, case):
    """Files of recorded cases are removed and replaced: a record must not point out of imagesTr."""
    make(source / "a.nii.gz")
    folder = run(raw, source).folder
    victim = folder / "victim_0000.nii.gz"
    victim.write_bytes(b"precious")
    report = saved_report(raw)
    (record,) = report["sources"].values()
    record |= {"case": case, "state": ""}
    (folder / REPORT).write_text(json.dumps(report))
    with pytest.raises(DatasetError, match="was changed and cannot be used"):
        run(raw, source)
    assert victim.read_bytes() == b"precious"
