"""Channels of a case, and names of cases."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from tests.importing.conftest import (
    LEFT_HANDED,
    image_file,
    images,
    make,
    make_series,
    run,
    saved_report,
    the_reason,
    voxels,
    with_value,
)


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
