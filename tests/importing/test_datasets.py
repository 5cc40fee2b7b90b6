"""The dataset as nnU-Net sees it, and requests that are refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_genesis.errors import DatasetError
from nnunet_genesis.importing.into_dataset import import_scans
from nnunet_genesis.importing.journal import REPORT
from tests.importing.conftest import (
    REAL_DATA,
    cut,
    image_file,
    images,
    make,
    run,
    snapshot,
    the_reason,
    voxels,
)


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
