"""Every format becomes a case that keeps values and geometry."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_genesis.importing.read import Geometry
from tests.importing.conftest import (
    LEFT_HANDED,
    OBLIQUE,
    image_file,
    images,
    make,
    make_series,
    run,
    voxels,
)


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
