"""BraTS of all years → a raw dataset of nnU-Net."""

from __future__ import annotations

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_genesis.challenges import msd
from nnunet_genesis.challenges.brats import CORE, EDITIONS, ENHANCING, OEDEMA, described, find_download
from nnunet_genesis.errors import DatasetError
from nnunet_genesis.transfer.channels import channel_mixture
from tests.challenges.conftest import description, make, names, read
from tests.challenges.layouts import labels, voxels, write, write_brats21, write_brats23, write_msd
from tests.conftest import run_genesis


def test_labels_of_2021_become_those_of_nnunets_own_script(source, raw):
    folder = write_brats21(source)
    report = make(find_download(folder), raw)
    theirs = labels([1, 2, 4])
    ours = read(report.folder / "labelsTr/BraTS2021_00000.nii.gz")
    for theirs_value, ours_value in ((0, 0), (1, 2), (2, 1), (4, 3)):  # Dataset137_BraTS21.py
        assert np.array_equal(ours == ours_value, theirs == theirs_value)
    content = description(report.folder)
    assert content["labels"] == {"background": 0, OEDEMA: 1, CORE: 2, ENHANCING: 3}
    assert list(content["channel_names"].values()) == ["T1w", "t1gd", "T2w", "FLAIR"]
    assert names(report.folder / "imagesTs") == [
        f"BraTS2021_{c}_{n:04d}.nii.gz" for c in ("00001", "00013") for n in range(4)
    ]
    for number, channel in enumerate(voxels("BraTS2021_00002", 4)):
        assert np.array_equal(read(report.folder / f"imagesTr/BraTS2021_00002_{number:04d}.nii.gz"), channel)
    assert report.left_out == {}
    assert report.splits == 0


def test_channels_have_the_names_of_the_decathlons_in_another_order(source):
    ours, theirs = find_download(write_brats21(source)), msd.find_download(write_msd(source, "Task01_BrainTumour"))
    assert sorted(ours.channels) == sorted(theirs.channels)
    assert ours.channels != theirs.channels
    mixture = channel_mixture(ours.channels, theirs.channels)
    order = mixture.matrix.argmax(1)
    assert [ours.channels[position] for position in order] == list(theirs.channels)


def test_labels_and_files_of_2023_stay_as_they_are(source, raw):
    folder = write_brats23(source)
    made = make(find_download(folder), raw).folder
    case = "BraTS-GLI-00000-000"
    original = folder / f"ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData/{case}"
    assert (original / f"{case}-seg.nii.gz").samefile(made / f"labelsTr/{case}.nii.gz")
    for number, part in enumerate(("t1n", "t1c", "t2w", "t2f")):
        assert (original / f"{case}-{part}.nii.gz").samefile(made / f"imagesTr/{case}_{number:04d}.nii.gz")
    assert description(made)["labels"] == {"background": 0, CORE: 1, OEDEMA: 2, ENHANCING: 3}


def test_time_points_tell_2024_which_has_a_fourth_label(source, raw):
    folder = write_brats23(source, ("BraTS-GLI-02062-100",), (), values=(1, 2, 3, 4))
    download = find_download(folder)
    assert download.labels["resection cavity"] == 4
    assert make(download, raw).left_out == {}


def test_a_label_of_another_year_is_not_taken_for_something_else(source, raw):
    folder = write_brats23(source, values=(1, 2, 4))
    with pytest.raises(DatasetError, match="No case of brats could be used"):
        make(find_download(folder), raw)
    folder = write_brats21(source)
    case = folder / "BraTS2021_Training_Data/BraTS2021_00000/BraTS2021_00000_seg.nii.gz"
    write(labels([1, 2, 3]), case, spacing=(1, 1, 1), origin=(0.0, -239.0, 0.0))
    assert (
        "holds 3, but the labels of the challenge are 0, 1, 2, 4"
        in make(find_download(folder), raw, 4).left_out["BraTS2021_00000"]
    )


@pytest.mark.parametrize("years", EDITIONS)
def test_regions_are_those_that_nnunet_writes_back_to_labels(years):
    edition = EDITIONS[years]
    regions, order = described(edition, regions=True)
    manager = LabelManager(regions, order)
    assert manager.has_regions
    assert list(regions)[:4] == ["background", "whole tumor", "tumor core", "enhancing tumor"]
    truth = np.array([0, *edition.labels.values()])
    maps = np.stack([np.isin(truth, region) for region in manager.foreground_regions]).astype(np.float32)
    segmented = manager.convert_probabilities_to_segmentation(maps[:, :, None, None])
    assert np.array_equal(np.asarray(segmented).ravel(), truth)


def test_regions_of_the_command_reach_dataset_json(source, nnunet, capsys):
    assert run_genesis("dataset", "brats", write_brats21(source), "-d", 137, "--regions", "-np", 1) == 0
    content = description(nnunet / "nnUNet_raw/Dataset137_BraTS2021")
    assert content["labels"] == {
        "background": 0,
        "whole tumor": [1, 2, 3],
        "tumor core": [2, 3],
        "enhancing tumor": [3],
    }
    assert content["regions_class_order"] == [1, 2, 3]
    out = capsys.readouterr().out
    assert "2 cases have a label, 2 have none" in out
    assert "Task01_BrainTumour of the Decathlon has cases of BraTS" in out
    assert "Task01_BrainTumour has FLAIR first" in out


def test_scans_of_a_patient_share_their_folds(source, raw):
    cases = [f"BraTS-GLI-0000{patient}-00{scan}" for patient in range(3) for scan in range(2)]
    report = make(find_download(write_brats23(source, cases, ())), raw)
    splits = (report.folder / "splits_final.json").read_text()
    assert report.splits == 3
    assert all(splits.count(case) == 3 for case in cases)


def test_folders_by_grade_and_the_stray_label_of_2020_are_taken(source, raw):
    for grade, case in (("HGG", "Brats18_TCIA_203_1"), ("LGG", "BraTS20_Training_355")):
        for part, array in zip(("t1", "t1ce", "t2", "flair"), voxels(case, 4), strict=True):
            write(array, source / grade / case / f"{case}_{part}.nii")
    write(labels([1, 2, 4]), source / "HGG/Brats18_TCIA_203_1/Brats18_TCIA_203_1_seg.nii")
    write(labels([1, 2, 4]), source / "LGG/BraTS20_Training_355/W39_1998.09.19_Segm.nii")
    report = make(find_download(source), raw)
    assert names(report.folder / "labelsTr") == ["BraTS20_Training_355.nii.gz", "Brats18_TCIA_203_1.nii.gz"]
    assert set(np.unique(read(report.folder / "labelsTr/BraTS20_Training_355.nii.gz"))) == {0, 1, 2, 3}


def test_the_non_enhancing_core_of_2013_is_united_with_the_necrosis(source, raw):
    for scan in ("0001", "0100"):
        case = f"brats_tcia_pat105_{scan}"
        for number, part in enumerate(("MR_T1", "MR_T1c", "MR_T2", "MR_Flair", "OT")):
            more = "_3more" if part == "OT" else ""
            name = f"VSD.Brain{more}.XX.O.{part}.{number}"
            array = labels([1, 2, 3, 4]) if part == "OT" else voxels(case, 4)[number]
            write(array, source / "HGG" / case / name / f"{name}.mha")
    download = find_download(source)
    folder = make(download, raw).folder
    theirs, ours = labels([1, 2, 3, 4]), read(folder / "labelsTr/brats_tcia_pat105_0001.nii.gz")
    assert np.array_equal(ours == 2, np.isin(theirs, [1, 3]))
    assert np.array_equal(ours == 3, theirs == 4)
    assert set(download.patients.values()) == {"brats_tcia_pat105"}
    assert np.array_equal(
        read(folder / "imagesTr/brats_tcia_pat105_0001_0001.nii.gz"), voxels("brats_tcia_pat105_0001", 4)[1]
    )


def test_missing_channels_other_tasks_and_mixed_years(source, raw):
    folder = write_brats23(source)
    case = folder / "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData/BraTS-GLI-00000-000"
    (case / "BraTS-GLI-00000-000-t2w.nii.gz").unlink()
    write(voxels("x")[0], folder / "BraTS-PED-00001-000/BraTS-PED-00001-000-t1n.nii.gz")
    download = find_download(folder)
    assert make(download, raw).left_out == {"BraTS-GLI-00000-000": "its image t2w is missing"}
    assert any("PED" in note for note in download.notes)
    with pytest.raises(DatasetError, match=r"other tasks of BraTS \(PED\)"):
        find_download(folder / "BraTS-PED-00001-000")
    write_brats21(source)
    with pytest.raises(DatasetError, match="cases with different labels"):
        find_download(source)
    with pytest.raises(DatasetError, match="no files named like those of BraTS"):
        find_download(write_msd(source / "other"))
