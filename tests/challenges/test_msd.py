"""A task of the Decathlon → a raw dataset of nnU-Net."""

from __future__ import annotations

import gzip
import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases, verify_labels
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_genesis.challenges.msd import find_download
from nnunet_genesis.errors import DatasetError
from tests.challenges.conftest import description, make, names, read
from tests.challenges.layouts import DIRECTION, MSD, ORIGIN, SPACING, labels, voxels, write, write_msd


@pytest.mark.parametrize("task", MSD)
def test_a_task_becomes_a_dataset_that_nnunet_takes(source, raw, task):
    folder = make(find_download(write_msd(source, task)), raw).folder
    channels, labeled, training, tests = MSD[task]
    content = description(folder)
    assert folder.name == f"Dataset003_{task.partition('_')[2]}"
    assert list(content["channel_names"].values()) == list(channels)
    assert content["labels"] == {"background": 0} | {name: value for value, name in enumerate(labeled, start=1)}
    assert LabelManager(content["labels"], None).foreground_labels == list(range(1, len(labeled) + 1))
    assert content["numTraining"] == len(training)
    assert content["release"] == "1.0 04/05/2018"
    assert "relase" not in content
    assert names(folder / "labelsTr") == [f"{case}.nii.gz" for case in training]
    for part, cases in (("imagesTr", training), ("imagesTs", tests)):
        assert names(folder / part) == [f"{case}_{n:04d}.nii.gz" for case in cases for n in range(len(channels))]
        for case in cases:
            for number, channel in enumerate(voxels(case, len(channels))):
                image = sitk.ReadImage(str(folder / part / f"{case}_{number:04d}.nii.gz"))
                assert np.array_equal(sitk.GetArrayFromImage(image), channel)
                for told, meant in (
                    (image.GetSpacing(), SPACING),
                    (image.GetOrigin(), ORIGIN),
                    (image.GetDirection(), DIRECTION),
                ):
                    assert np.allclose(told, meant)
    for case in training:  # what nnU-Net's --verify_dataset_integrity looks at
        images = [str(folder / f"imagesTr/{case}_{n:04d}.nii.gz") for n in range(len(channels))]
        label = str(folder / f"labelsTr/{case}.nii.gz")
        assert check_cases(images, label, len(channels), SimpleITKIO)
        assert verify_labels(label, SimpleITKIO, list(range(len(labeled) + 1)))


def test_files_that_nnunet_reads_as_they_are_take_no_space(source, raw):
    task = write_msd(source)
    folder = make(find_download(task), raw).folder
    assert (task / "imagesTr/liver_0.nii.gz").samefile(folder / "imagesTr/liver_0_0000.nii.gz")
    assert (task / "labelsTr/liver_0.nii.gz").samefile(folder / "labelsTr/liver_0.nii.gz")


def test_names_with_two_underscores_and_no_test_cases_are_taken(source, raw):
    """nnU-Net's own converter fails at both."""
    task = write_msd(source).rename(source / "Task11_Two_Words")
    shutil.rmtree(task / "imagesTs")
    content = json.loads((task / "dataset.json").read_text())
    del content["test"]
    (task / "dataset.json").write_text(json.dumps(content))
    folder = make(find_download(task), raw).folder
    assert folder.name == "Dataset003_Two_Words"
    assert names(folder) == ["challenge_report.json", "dataset.json", "imagesTr", "labelsTr"]


def test_cases_that_cannot_be_used_are_named_and_stop_nothing(source, raw):
    task = write_msd(source, cases=7)
    (task / "labelsTr/liver_1.nii.gz").unlink()
    (task / "imagesTr/liver_301.nii.gz").unlink()
    write(labels([1, 2, 3]), task / "labelsTr/liver_302.nii.gz")
    write(labels([1, 2], (7, 8, 8)), task / "labelsTr/liver_303.nii.gz")
    damaged = (task / "imagesTr/liver_304.nii.gz").read_bytes()
    (task / "imagesTr/liver_304.nii.gz").write_bytes(damaged[:-100])
    (task / "imagesTs/liver_200.nii.gz").unlink()
    report = make(find_download(task), raw)
    reasons = {"liver_1": "its label is missing", "liver_301": "its image is missing", "liver_302": "its label holds 3,",
               "liver_303": "its label has another size", "liver_304": "damaged or incomplete",
               "liver_200": "its image is missing"}  # fmt: skip
    assert report.left_out.keys() == reasons.keys()
    for case, reason in reasons.items():
        assert reason in report.left_out[case]
    assert description(report.folder)["numTraining"] == 2
    assert names(report.folder / "labelsTr") == ["liver_0.nii.gz", "liver_305.nii.gz"]
    assert names(report.folder / "imagesTr") == ["liver_0_0000.nii.gz", "liver_305_0000.nii.gz"]


def test_a_four_dimensional_image_with_other_channels_is_left_out(source, raw):
    task = write_msd(source, "Task05_Prostate")
    write(voxels("x", 3), task / "imagesTr/prostate_00.nii.gz")
    write(voxels("x")[0], task / "imagesTs/prostate_03.nii.gz")
    left_out = make(find_download(task), raw).left_out
    assert left_out.keys() == {"prostate_00", "prostate_03"}
    assert all("2 channels" in reason for reason in left_out.values())


def test_a_four_dimensional_image_that_is_cut_off_is_left_out(source, raw):
    """SimpleITK reads it without complaint."""
    task = write_msd(source, "Task05_Prostate")
    file = task / "imagesTr/prostate_00.nii.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-600]))
    assert "is incomplete" in make(find_download(task), raw).left_out["prostate_00"]


def test_a_label_that_lies_elsewhere_is_laid_on_its_image(source, raw):
    task = write_msd(source)
    write(labels([1, 2]), task / "labelsTr/liver_0.nii.gz", origin=(0.0, 0.0, 0.0))
    report = make(find_download(task), raw)
    assert list(report.mended) == ["liver_0"]
    label = sitk.ReadImage(str(report.folder / "labelsTr/liver_0.nii.gz"))
    assert np.allclose(label.GetOrigin(), ORIGIN)
    assert np.array_equal(sitk.GetArrayFromImage(label), labels([1, 2]))
    assert np.array_equal(read(task / "labelsTr/liver_0.nii.gz"), labels([1, 2]))


@pytest.mark.parametrize(
    ("key", "value"),
    [("labels", {"0": "background", "2": "liver"}), ("labels", ["liver"]), ("labels", {"0": "background", "1": "background"}),
     ("modality", {"0": "CT", "2": "MRI"}), ("modality", None), ("modality", {"x": "CT"}), ("training", {"a": 1}),
     ("training", [{"image": "../../passwd"}]), ("test", [1]), ("test", ["./imagesTs/../../x y.nii.gz"])],
)  # fmt: skip
def test_another_dataset_json_is_refused(source, key, value):
    task = write_msd(source)
    content = json.loads((task / "dataset.json").read_text())
    (task / "dataset.json").write_text(json.dumps(content | {key: value}))
    with pytest.raises(DatasetError, match=key):
        find_download(task)


def test_paths_in_dataset_json_lead_nowhere(source, raw, tmp_path):
    task = write_msd(source)
    write(voxels("secret")[0], tmp_path / "liver_9.nii.gz")
    content = json.loads((task / "dataset.json").read_text())
    content["test"].append("../../liver_9.nii.gz")
    (task / "dataset.json").write_text(json.dumps(content))
    assert make(find_download(task), raw).left_out == {"liver_9": "its image is missing"}


def test_archives_and_other_folders_are_refused_with_what_to_do(source, tmp_path):
    (tmp_path / "Task03_Liver.tar").write_bytes(b"")
    for wrong, said in ((tmp_path / "Task03_Liver.tar", "tar -xf"), (tmp_path / "Task04_Gone", "Check the path"),
                        (tmp_path, "Name that folder")):  # fmt: skip
        with pytest.raises(DatasetError, match=said):
            find_download(wrong)


@pytest.mark.parametrize(("task", "other"), [("Task01_BrainTumour", "BraTS"), ("Task03_Liver", "LiTS")])
def test_overlaps_with_other_challenges_are_stated(source, task, other):
    (note,) = find_download(write_msd(source, task)).notes
    assert other in note
    assert find_download(write_msd(source, "Task04_Hippocampus")).notes == ()
