"""Scans of every kind become a dataset that nnU-Net accepts; bad ones are named with a reason."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from nnunet_genesis import files, volumes
from nnunet_genesis.errors import DatasetError
from nnunet_genesis.import_journal import REPORT
from nnunet_genesis.scan_images import Geometry, read_scan
from nnunet_genesis.volumes import ImportReport, import_scans

REAL_DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "unlabeled"
OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
LEFT_HANDED = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def voxels(seed: int = 0, shape: tuple[int, ...] = (5, 6, 7)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def make(
    path: Path,
    array: np.ndarray | None = None,
    *,
    spacing: tuple[float, ...] = (0.7, 0.8, 2.5),
    origin: tuple[float, ...] = (-12.5, 33.25, 101.0),
    direction: tuple[float, ...] = OBLIQUE,
    compress: bool = True,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels() if array is None else array, isVector=False)
    if image.GetDimension() == 3:
        Geometry(image.GetSize(), spacing, origin, direction).give_to(image)
    sitk.WriteImage(image, str(path), compress)
    return path


def make_series(folder: Path, array: np.ndarray, uid: str, gap: float = 2.0, modality: str = "CT") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, plane in enumerate(array):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{uid.replace('.', '')}_{number}.dcm"
        slice_ = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.Modality = "1.2.3", uid, modality
        slice_.Rows, slice_.Columns, slice_.InstanceNumber = *plane.shape, number + 1
        slice_.PixelSpacing, slice_.SliceThickness = [0.8, 0.7], gap
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        slice_.ImagePositionPatient = [-10, 20, 5 + gap * number]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation, slice_.PixelRepresentation = 1, "MONOCHROME2", 1
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        slice_.PixelData = plane.astype("<i2").tobytes()
        pydicom.dcmwrite(path, slice_, enforce_file_format=True)
        paths.append(path)
    return paths


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "scans").mkdir()
    return tmp_path / "scans"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "raw"


def run(raw: Path, *sources: Path, channels: tuple[str, ...] = ("CT",), **options: object) -> ImportReport:
    return import_scans(sources, raw, 501, "Chest", channels, progress=False, **options)  # type: ignore[arg-type]


def images(raw: Path) -> list[str]:
    return sorted(path.name for path in (raw / "Dataset501_Chest" / "imagesTr").iterdir())


def image_file(raw: Path, case: str, channel: int = 0) -> Path:
    return raw / "Dataset501_Chest" / "imagesTr" / f"{case}_{channel:04d}.nii.gz"


def saved_report(raw: Path) -> dict:
    return json.loads((raw / "Dataset501_Chest" / REPORT).read_text())


def the_reason(report: ImportReport) -> str:
    assert len(report.rejected) == 1, report
    return next(iter(report.rejected.values()))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".NRRD"])
@pytest.mark.parametrize("direction", [OBLIQUE, LEFT_HANDED])
def test_every_format_keeps_values_and_geometry(source, raw, ending, direction):
    original = make(source / f"scan{ending}", direction=direction)
    report = run(raw, source)
    assert (report.imported, report.already_there, report.rejected) == (1, 0, {})
    assert report.folder == raw / "Dataset501_Chest"
    assert images(raw) == ["scan_0000.nii.gz"]
    found = sitk.ReadImage(str(image_file(raw, "scan")))
    assert np.array_equal(sitk.GetArrayFromImage(found), voxels())
    for one, other in zip(
        vars(Geometry.of(found)).values(), vars(Geometry.of(sitk.ReadImage(str(original)))).values(), strict=True
    ):
        assert np.allclose(one, other, atol=1e-4)
    assert np.allclose(found.GetSpacing(), (0.7, 0.8, 2.5), atol=1e-5)
    assert image_file(raw, "scan").read_bytes()[:2] == b"\x1f\x8b"


@pytest.mark.parametrize(
    "kind", ["int8", "uint8", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
)
def test_every_pixel_type_is_kept(source, raw, kind):
    array = np.abs(voxels() % 100).astype(kind)
    make(source / "scan.nrrd", array)
    assert run(raw, source).imported == 1
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(image_file(raw, "scan"))))
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


def test_gzipped_nifti_is_copied_byte_for_byte_and_read_only_sources_give_writable_copies(source, raw):
    original = make(source / "scan.nii.gz")
    original.chmod(0o444)
    run(raw, source)
    copy = image_file(raw, "scan")
    assert copy.read_bytes() == original.read_bytes()
    assert not copy.is_symlink()
    assert copy.stat().st_mode & 0o200


def test_link_makes_links_to_gzipped_nifti_and_converts_the_rest(source, raw, monkeypatch):
    original = make(source / "a.nii.gz")
    make(source / "b.nrrd")
    plain = make(source / "c.nii", compress=False)
    plain.rename(source / "c.nii.gz")
    monkeypatch.chdir(source.parent)
    assert run(raw, Path("scans"), link=True).imported == 3
    link = image_file(raw, "a")
    assert link.is_symlink()
    assert Path(os.readlink(link)) == original
    assert not image_file(raw, "b").is_symlink()
    assert gzip.decompress(image_file(raw, "c").read_bytes())
    assert run(raw, source, link=True).already_there == 3


def test_a_linked_source_survives_a_later_copy(source, raw):
    original = make(source / "a.nii.gz")
    run(raw, source, link=True)
    make(original, voxels(1))
    content = original.read_bytes()
    assert run(raw, source, link=False).imported == 1
    assert original.read_bytes() == content == image_file(raw, "a").read_bytes()
    assert not image_file(raw, "a").is_symlink()


def test_folders_are_searched_and_residue_is_skipped(source, raw):
    make(source / "site1" / "p 1" / "scän.nii.gz")
    make(source / "site2" / "scan_seg.mhd", compress=False)
    shutil.copy(source / "site1" / "p 1" / "scän.nii.gz", source / "._scan.nii.gz")
    make(source / ".hidden" / "scan.nii.gz")
    make(source / "labelsTr" / "scan.nii.gz")
    (source / "notes.txt").write_text("not a scan")
    (source / "site2" / "other.img").write_bytes(b"x")
    report = run(raw, source)
    assert report.rejected == {}
    assert images(raw) == ["site1_p-1_sc-n_0000.nii.gz", "site2_scan-seg_0000.nii.gz"]


def test_dicom_series_become_one_case_each(source, raw):
    array = voxels(3, (6, 5, 4))
    make_series(source / "study" / "one", array, "1.2.3.4")
    make_series(source / "study" / "two", array + 1, "1.2.3.5")
    make_series(source / "study" / "two", array + 2, "1.2.3.6")
    report = run(raw, source)
    assert (report.imported, report.rejected) == (3, {})
    found = sitk.ReadImage(str(image_file(raw, "study_one")))
    assert np.array_equal(sitk.GetArrayFromImage(found), array - 1024)
    assert np.allclose(found.GetSpacing(), (0.7, 0.8, 2.0))
    assert np.allclose(found.GetOrigin(), (-10, 20, 5))
    assert sum(name.startswith("study_two") for name in images(raw)) == 2
    assert run(raw, source).already_there == 3


@pytest.mark.parametrize("given", ["folder", "slice", "all slices"])
def test_dicom_folder_or_slices_given_directly(source, raw, given):
    slices = make_series(source / "ct7", voxels(3, (4, 5, 6)), "1.2.3.4")
    chosen = {"folder": [source / "ct7"], "slice": slices[:1], "all slices": slices}[given]
    assert run(raw, *chosen).imported == 1
    assert images(raw) == ["ct7_0000.nii.gz"]


def test_dicom_with_a_missing_or_damaged_slice_is_rejected(source, raw):
    make_series(source / "gap", voxels(3, (7, 5, 4)), "1.2.3.4")[3].unlink()
    damaged = make_series(source / "damaged", voxels(3, (7, 5, 4)), "1.2.3.5")[3]
    damaged.write_bytes(damaged.read_bytes()[:200])
    make_series(source / "single", voxels(3, (1, 5, 4)), "1.2.3.6")
    make_series(source / "mask", voxels(3, (4, 5, 4)), "1.2.3.7", modality="SEG")
    report = run(raw, source)
    reasons = {Path(where).relative_to(source).parts: why for where, why in report.rejected.items()}
    assert "not evenly spaced" in reasons["gap", "series 1.2.3.4"]
    assert "not evenly spaced" in reasons["damaged", "series 1.2.3.5"]
    assert "damaged" in reasons["damaged", damaged.name]
    assert "single slice" in reasons["single", "series 1.2.3.6"]
    assert "modality SEG" in reasons["mask", "series 1.2.3.7"]
    assert report.imported == 0


def cut(path: Path, keep: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def patched(path: Path, start: int, layout: str, *numbers: float) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(layout, content, start, *numbers)
    path.write_bytes(gzip.compress(bytes(content)))


def with_value(value: float) -> np.ndarray:
    array = voxels().astype(np.float32)
    array[2, 3, 4] = value
    return array


def colours(path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (4, 5, 6, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(path))


def raw_lost(path: Path) -> None:
    make(path, compress=False)
    path.with_suffix(".raw").unlink()


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
    "data file missing": ("s.mhd", raw_lost, r"data file \(.raw, .zraw\) is missing"),
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

    monkeypatch.setattr(volumes, "read_scan", failing)
    report = run(raw, source)
    assert (report.imported, the_reason(report)) == (1, "unexpected MemoryError: too big")
    monkeypatch.undo()
    report = run(raw, source)
    assert (report.imported, report.already_there, report.rejected) == (1, 1, {})


def test_a_full_disk_stops_the_run_and_condemns_no_scan(source, raw, monkeypatch):
    make(source / "a.nii.gz")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(volumes.shutil, "copyfile", full)
    with pytest.raises(DatasetError, match=r"could not be written .*No space left.* run the same command again"):
        run(raw, source)
    assert images(raw) == []
    assert saved_report(raw)["rejected"] == {}
    monkeypatch.undo()
    assert run(raw, source).imported == 1


def test_channels_of_a_case_are_grouped_by_their_numbers(source, raw):
    for channel in range(2):
        make(source / "site" / f"p1_{channel:04d}.nii.gz", voxels(channel))
        make(source / "site" / f"p2_{channel:04d}.{'nrrd' if channel else 'mha'}", voxels(10 + channel))
    report = run(raw, source, channels=("T1", "T2"))
    assert (report.imported, report.rejected) == (2, {})
    assert images(raw) == [f"site_p{p}_000{c}.nii.gz" for p in (1, 2) for c in (0, 1)]
    for channel in range(2):
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(image_file(raw, "site_p2", channel))))
        assert np.array_equal(found, voxels(10 + channel))
    image, _ = SimpleITKIO().read_images([str(image_file(raw, "site_p1", channel)) for channel in (0, 1)])
    assert image.shape == (2, 5, 6, 7)


def test_one_given_channel_file_brings_the_others_of_its_case(source, raw):
    for channel in range(2):
        make(source / f"p1_{channel:04d}.nii.gz", voxels(channel))
        make(source / f"p2_{channel:04d}.nii.gz", voxels(channel))
    run(raw, source / "p1_0001.nii.gz", channels=("T1", "T2"))
    assert images(raw) == ["p1_0000.nii.gz", "p1_0001.nii.gz"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["p_0000.nii.gz"], "lacks the file of channel 0001"),
        (["p_0001.nii.gz"], "lacks the file of channel 0000"),
        (["p_0000.nii.gz", "p_0001.nii.gz", "p_0002.nii.gz"], "has 3 channel files but 2"),
        (["p_0000.nii.gz", "p_0001.nii.gz", "p_0001.nrrd"], "more than one file for a channel"),
        (["p.nii.gz"], "has no channel number"),
    ],
)
def test_incomplete_channel_groups_are_rejected(source, raw, names, expected):
    for name in names:
        make(source / name)
    report = run(raw, source, channels=("T1", "T2"))
    assert expected in the_reason(report)
    assert images(raw) == []


@pytest.mark.parametrize(
    ("options", "array", "expected"),
    [
        ({"spacing": (0.7, 0.8, 2.6)}, voxels(1), "spacing"),
        ({"origin": (-12.5, 33.5, 101.0)}, voxels(1), "origin"),
        ({"direction": LEFT_HANDED}, voxels(1), "direction"),
        ({}, voxels(1, (5, 6, 8)), "size"),
        ({}, with_value(np.nan), "NaN"),
    ],
)
def test_channels_must_lie_on_one_grid(source, raw, options, array, expected):
    make(source / "p_0000.nii.gz")
    make(source / "p_0001.nrrd", array, **options)
    report = run(raw, source, channels=("T1", "T2"))
    assert "channel 0001" in the_reason(report)
    assert expected in the_reason(report)
    assert images(raw) == []
    assert not list(report.folder.glob(".incomplete*"))


def test_small_deviations_between_channels_are_evened_out_for_nnunet(source, raw):
    make(source / "p_0000.nii.gz")
    make(source / "p_0001.nii.gz", voxels(1), spacing=(0.7001, 0.8, 2.5))
    assert run(raw, source, channels=("T1", "T2")).imported == 1
    found = sitk.ReadImage(str(image_file(raw, "p", 1)))
    assert np.array_equal(sitk.GetArrayFromImage(found), voxels(1))
    image, _ = SimpleITKIO().read_images([str(image_file(raw, "p", channel)) for channel in (0, 1)])
    assert image.shape == (2, 5, 6, 7)


def test_dicom_cannot_be_a_case_of_several_channels(source, raw):
    make_series(source / "ct", voxels(3, (4, 5, 6)), "1.2.3.4")
    assert "one channel" in the_reason(run(raw, source, channels=("T1", "T2")))


def test_numbers_at_the_end_of_names_with_one_channel(source, raw):
    make(source / "p_0000.nii.gz")
    make(source / "scan_0007.nii.gz", voxels(1))
    for number in range(2):
        make(source / f"q_{number:04d}.nii.gz")
    report = run(raw, source)
    assert images(raw) == ["p_0000.nii.gz", "scan_0007_0000.nii.gz"]
    assert list(report.rejected) == [str(source / "q_*")]
    assert "name every channel with --channels, or rename the files" in the_reason(report)
    found = get_filenames_of_train_images_and_targets(str(report.folder))
    assert {case: len(case_["images"]) for case, case_ in found.items()} == {"p": 1, "scan_0007": 1}
    (source / "q_0001.nii.gz").rename(source / "other.nii.gz")
    report = run(raw, source)
    assert (report.imported, report.already_there, report.rejected) == (2, 2, {})
    assert saved_report(raw)["rejected"] == {}


def test_one_channel_chosen_by_giving_its_files(source, raw):
    for number in range(2):
        make(source / f"q_{number:04d}.nii.gz", voxels(number))
    assert run(raw, source / "q_0000.nii.gz").imported == 1
    assert images(raw) == ["q_0000.nii.gz"]


def test_colliding_names_get_a_hash_and_stay_stable(tmp_path, source, raw):
    make(source / "a_b" / "C.nii.gz", voxels(1))
    make(source / "a" / "b_c.nii.gz", voxels(2))
    make(source / "A" / "b_c.nrrd", voxels(3))
    run(raw, source)
    first = images(raw)
    assert len(first) == 3
    assert len({name.lower() for name in first}) == 3
    assert sum(len(name) == len("a_b_c-12345678_0000.nii.gz") for name in first) == 2
    make(tmp_path / "earlier" / "a_b_c.nii.gz", voxels(4))
    report = run(raw, tmp_path / "earlier", source / "a", source / "a_b", source)
    assert (report.imported, report.already_there) == (1, 3)
    assert set(first) < set(images(raw))
    values = {
        int(sitk.GetArrayFromImage(sitk.ReadImage(str(p)))[0, 0, 0]) for p in image_file(raw, "x").parent.iterdir()
    }
    assert values == {int(voxels(seed)[0, 0, 0]) for seed in (1, 2, 3, 4)}


def test_names_too_long_for_file_systems_are_shortened(source, raw):
    make(source / ("x" * 120) / ("y" * 120) / "scan.nii.gz")
    make(source / ("x" * 120) / ("y" * 120) / "other.nii.gz")
    assert run(raw, source).imported == 2
    assert max(map(len, images(raw))) < 210


def snapshot(raw: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in image_file(raw, "x").parent.iterdir()}


def test_a_second_run_reads_and_writes_no_scan(source, raw, monkeypatch):
    make(source / "a.nii.gz")
    make(source / "b.nrrd")
    make_series(source / "ct", voxels(3, (4, 5, 6)), "1.2.3.4")
    (source / "bad.nii.gz").write_text("hello")
    first = run(raw, source)
    before = snapshot(raw)

    def never(*_):
        raise AssertionError("a finished scan was read")

    monkeypatch.setattr(volumes, "read_scan", never)
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
    monkeypatch.setattr(volumes.Journal, "save", lambda self: None)  # a kill gives no chance to save
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
    real, seen = volumes.read_scan, []

    def dying(paths):
        seen.append(paths[0].name)
        if paths[0].name == "c.nii.gz":
            raise KeyboardInterrupt
        return real(paths)

    monkeypatch.setattr(volumes, "read_scan", dying)
    with pytest.raises(KeyboardInterrupt):
        run(raw, source)
    assert list(saved_report(raw)["rejected"]) == [str(source / "b.nii.gz")]
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        run(raw, source)
    assert seen == ["c.nii.gz"]


def test_two_processes(source, raw):
    for number in range(3):
        make(source / f"s{number}.mha", voxels(number))
    (source / "bad.nii.gz").write_text("hello")
    report = run(raw, source, processes=2)
    assert report.imported == 3
    assert "no NIfTI" in the_reason(report)


def test_nnunet_accepts_the_dataset(source, raw):
    make(source / "a.nii.gz")
    make(source / "b.nrrd", voxels(1))
    report = run(raw, source)
    description = json.loads((report.folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "CT"}
    assert description["labels"] == {"background": 0}
    assert description["numTraining"] == 2
    assert description["file_ending"] == ".nii.gz"
    assert description["overwrite_image_reader_writer"] == "SimpleITKIO"
    assert "unlabeled" in description["description"].lower()
    found = get_filenames_of_train_images_and_targets(str(report.folder))
    assert sorted(found) == ["a", "b"]
    image, properties = SimpleITKIO().read_images(found["b"]["images"])
    assert np.array_equal(image[0], voxels(1))
    assert np.allclose(properties["spacing"], (2.5, 0.8, 0.7))


def test_dataset_json_keeps_what_was_added_by_hand(source, raw):
    make(source / "a.nii.gz")
    path = run(raw, source).folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "licence": "CC BY 4.0"}))
    make(source / "b.nii.gz")
    run(raw, source)
    description = json.loads(path.read_text())
    assert (description["licence"], description["numTraining"]) == ("CC BY 4.0", 2)


def test_the_dataset_itself_is_never_a_source(tmp_path, source, raw):
    make(source / "a.nii.gz")
    run(raw, tmp_path)
    assert run(raw, tmp_path).imported == 0
    assert images(raw) == ["scans_a_0000.nii.gz"]
    with pytest.raises(DatasetError, match="No scans found"):
        run(raw, image_file(raw, "scans_a"), image_file(raw, "scans_a").parent)


def test_nothing_to_import(source, raw):
    with pytest.raises(DatasetError, match=r"missing does not exist"):
        run(raw, source / "missing")
    (source / "notes.txt").write_text("not a scan")
    for given in (source, source / "notes.txt"):
        with pytest.raises(DatasetError, match=r"No scans found in .*scans.*\.nii\.gz, .*\.mhd and for DICOM series"):
            run(raw, given)
    assert not raw.exists()


@pytest.mark.parametrize(
    ("dataset_id", "name", "channels", "expected"),
    [
        (0, "Chest", ("CT",), "from 1 to 999, not 0"),
        (1000, "Chest", ("CT",), "from 1 to 999, not 1000"),
        (501, "Chest CT", ("CT",), "letters, digits"),
        (501, "a/b", ("CT",), "letters, digits"),
        (501, "", ("CT",), "letters, digits"),
        (501, "Chest", (), "Name the channels"),
        (501, "Chest", ("CT", " "), "Name the channels"),
        (501, "Chest", ("T1", "t1"), "must differ"),
    ],
)
def test_settings_nnunet_cannot_take(source, raw, dataset_id, name, channels, expected):
    make(source / "a.nii.gz")
    with pytest.raises(DatasetError, match=expected):
        import_scans([source], raw, dataset_id, name, channels, progress=False)
    assert not raw.exists()


def test_existing_datasets_that_do_not_fit(source, raw):
    make(source / "a.nii.gz")
    folder = run(raw, source).folder
    with pytest.raises(DatasetError, match="id 501 is used by Dataset501_Chest"):
        import_scans([source], raw, 501, "Other", ["CT"], progress=False)
    with pytest.raises(DatasetError, match=r"other channel_names: .*CT.* instead of .*MR"):
        run(raw, source, channels=("MR",))
    path = folder / "dataset.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps({**description, "labels": {"background": 0, "liver": 1}}))
    with pytest.raises(DatasetError, match="other labels"):
        run(raw, source)
    path.write_text(json.dumps(description))
    (folder / "labelsTr").mkdir()
    with pytest.raises(DatasetError, match="has labels"):
        run(raw, source)


def test_a_report_changed_by_hand_is_refused_with_advice(source, raw):
    make(source / "a.nii.gz")
    path = run(raw, source).folder / REPORT
    path.write_text('{"sources": {"x": {"colour": 1}}}')
    with pytest.raises(DatasetError, match="Delete it"):
        run(raw, source)
    path.unlink()
    assert run(raw, source).already_there == 1


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no sample scans in {REAL_DATA}")
def test_real_scans(source, raw):
    truncated = shutil.copyfile(REAL_DATA / "ct" / "totalseg_small.nii.gz", source / "truncated.nii.gz")
    cut(truncated)
    make(source / "four.nii.gz", voxels(0, (3, 5, 6, 7)))
    (source / "text.nii.gz").write_text("not an image")
    first = run(raw, REAL_DATA, source)
    assert first.imported == 15
    assert sorted(first.rejected) == [str(source / f"{name}.nii.gz") for name in ("four", "text", "truncated")]
    assert sum(name.startswith("dicom_Study") for name in images(raw)) == 3
    before = snapshot(raw)
    second = run(raw, REAL_DATA, source)
    assert (second.imported, second.already_there, second.rejected) == (0, 15, first.rejected)
    assert snapshot(raw) == before
    found = get_filenames_of_train_images_and_targets(str(first.folder))
    assert {len(case["images"]) for case in found.values()} == {1}
