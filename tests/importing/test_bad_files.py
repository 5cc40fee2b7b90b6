"""Bad files are named with a reason and stop nothing."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_genesis.commands.parsing import left_out
from nnunet_genesis.errors import DatasetError
from nnunet_genesis.importing import into_dataset, read
from nnunet_genesis.importing.read import read_scan
from tests.importing.conftest import (
    cut,
    images,
    make,
    run,
    saved_report,
    the_reason,
    voxels,
    with_value,
)


def patched(path: Path, start: int, layout: str, *numbers: float) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(layout, content, start, *numbers)
    path.write_bytes(gzip.compress(bytes(content)))


def colours(path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (4, 5, 6, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(path))


def raw_lost(path: Path) -> None:
    make(path, compress=False)
    path.with_suffix(".raw").unlink()


def raw_elsewhere(path: Path, name: bytes) -> None:
    written = make(path.with_suffix(".mhd"), compress=False)
    header = written.read_bytes().replace(b"ElementDataFile = s.raw", b"ElementDataFile = " + name)
    written.unlink()
    written.with_suffix(".raw").rename(path.parent.parent / "s.raw")
    path.write_bytes(header)


def mha_spacing(path: Path, first: bytes) -> None:
    content, changes = re.subn(rb"(ElementSpacing = )\S+", rb"\g<1>" + first, make(path).read_bytes())
    assert changes == 1
    path.write_bytes(content)


def nan_in_nifti(path: Path) -> None:
    make(path, voxels().astype(np.float32))
    patched(path, 352 + 4 * 100, "<f", np.nan)


BAD = {
    "truncated gzip": ("s.nii.gz", lambda p: cut(make(p)), "damaged or incomplete"),
    "gzip checksum": ("s.nii.gz", lambda p: cut(make(p), 0.995), "damaged or incomplete"),
    "truncated before compression": (
        "s.nii.gz",
        lambda p: p.write_bytes(gzip.compress(gzip.decompress(make(p).read_bytes())[:-50])),
        "incomplete: .* bytes",
    ),
    "truncated nii": ("s.nii", lambda p: cut(make(p)), "incomplete"),
    "truncated nrrd": ("s.nrrd", lambda p: cut(make(p), 0.9), "damaged or incomplete"),
    "truncated mha": ("s.mha", lambda p: cut(make(p), 0.9), "damaged or incomplete"),
    "data file missing": ("s.mhd", raw_lost, r"its data file s.raw is missing"),
    "data file elsewhere": (
        "s.mhd",
        lambda p: raw_elsewhere(p, b"../s.raw"),
        r"its data file \.\./s\.raw lies outside",
    ),
    "data file of the system": ("s.mha", lambda p: raw_elsewhere(p, b"/etc/hostname"), "/etc/hostname lies outside"),
    "no data file": ("s.mhd", lambda p: raw_elsewhere(p, b""), "names no data file"),
    "data file cut short": (
        "s.mhd",
        lambda p: cut(make(p, compress=False).with_suffix(".raw")),
        "damaged or incomplete",
    ),
    "text as nii.gz": ("s.nii.gz", lambda p: p.write_text("hello"), "is no NIfTI file"),
    "text as nrrd": ("s.nrrd", lambda p: p.write_text("hello"), "another kind of file"),
    "zero bytes": ("s.nii.gz", lambda p: p.touch(), "is empty"),
    "zero bytes mha": ("s.mha", lambda p: p.touch(), "is empty"),
    "broken link": ("s.nii.gz", lambda p: p.symlink_to("nowhere"), "cannot be opened"),
    "two axes": ("s.nii.gz", lambda p: make(p, voxels(0, (6, 7))), "single slice"),
    "third axis of one": ("s.nii.gz", lambda p: make(p, voxels(0, (1, 6, 7))), "single slice"),
    "four axes": ("s.nii.gz", lambda p: make(p, voxels(0, (2, 5, 6, 7))), "has 4 dimensions"),
    "colours": ("s.nii.gz", colours, "more than one value per voxel"),
    "NaN": ("s.nrrd", lambda p: make(p, with_value(np.nan)), "NaN"),
    "NaN in NIfTI": ("s.nii.gz", nan_in_nifti, "NaN"),
    "infinite": ("s.mha", lambda p: make(p, with_value(-np.inf)), "infinite"),
    "constant": ("s.nii.gz", lambda p: make(p, np.full((4, 5, 6), 7, np.int16)), "the same value"),
    "spacing zero": ("s.nii.gz", lambda p: patched(make(p), 80, "<3f", 1, 0, 1), "spacing is not positive"),
    "spacing negative": ("s.nii.gz", lambda p: patched(make(p), 80, "<3f", 1, -1, 1), "spacing is not positive"),
    "spacing NaN": ("s.nii.gz", lambda p: patched(make(p), 84, "<f", np.nan), "spacing is not positive"),
    "spacing zero mha": (
        "s.mha",
        lambda p: mha_spacing(p, b"0"),
        "spacing is not positive",
    ),
    "spacing negative mha": (
        "s.mha",
        lambda p: mha_spacing(p, b"-1"),
        "spacing is not positive",
    ),
    "sheared": (
        "s.nii.gz",
        lambda p: (patched(make(p), 252, "<2h", 0, 2), patched(p, 280, "<4f", 1, 0.7, 0, 0)),
        "not perpendicular",
    ),
    "NIfTI-2": ("s.nii", lambda p: p.write_bytes(struct.pack("<i", 540) + b"n+2\0" + b"\0" * 600), "NIfTI-2"),
}


@pytest.mark.parametrize("bad", list(BAD))
def test_a_bad_file_is_reported_in_one_short_line_and_stops_nothing(source, raw, bad):
    name, spoil, expected = BAD[bad]
    make(source / "good.nii.gz")
    spoil(source / name)
    report = run(raw, source)
    reason = the_reason(report)
    assert list(report.rejected) == [str(source / name)]
    assert report.imported == 1
    assert images(raw) == ["good_0000.nii.gz"]
    assert re.search(expected, reason), reason
    assert "\n" not in reason
    assert len(reason) < 200
    assert str(source.parent) not in reason
    assert saved_report(raw)["rejected"] == report.rejected


def test_unexpected_failures_are_reported_and_tried_again(source, raw, monkeypatch):
    make(source / "a.nii.gz")
    make(source / "b.nii.gz")

    def failing(paths):
        if paths[0].name == "a.nii.gz":
            raise MemoryError("too big")
        return read_scan(paths)

    monkeypatch.setattr(read, "read_scan", failing)
    report = run(raw, source)
    assert (report.imported, the_reason(report)) == (1, "unexpected MemoryError: too big")
    monkeypatch.undo()
    report = run(raw, source)
    assert (report.imported, report.already_there, report.rejected) == (1, 1, {})


def test_a_full_disk_stops_the_run_and_condemns_no_scan(source, raw, monkeypatch):
    make(source / "a.nii.gz")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(into_dataset.shutil, "copyfile", full)
    with pytest.raises(DatasetError, match=r"could not be written .*No space left.* run the same command again"):
        run(raw, source)
    assert images(raw) == []
    assert saved_report(raw)["rejected"] == {}
    monkeypatch.undo()
    assert run(raw, source).imported == 1


def test_names_that_command_a_terminal_are_shown_as_text(capsys):
    assert left_out({"/scans/a\33[2J.nii": "is\nempty"}, "details") == 2
    assert capsys.readouterr().err == "1 left out (details):\n  /scans/a?[2J.nii: is empty\n"
