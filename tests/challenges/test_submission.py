"""Predictions → archives that challenges take, or all that is wrong with them."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_genesis.challenges import archive as archives
from nnunet_genesis.challenges import brats, lits, msd
from nnunet_genesis.challenges.archive import check_archive
from nnunet_genesis.errors import DatasetError
from tests.challenges.conftest import attempt, make, predict_msd, read
from tests.challenges.layouts import (
    MSD,
    ORIGIN,
    SPACING,
    labels,
    write,
    write_brats21,
    write_brats23,
    write_lits,
    write_msd,
)
from tests.conftest import run_genesis

BRATS_SPACE = {"spacing": (1.0, 1.0, 1.0), "origin": (0.0, -239.0, 0.0)}


def members(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as opened:
        return opened.namelist()


def member(archive: Path, name: str, folder: Path) -> sitk.Image:
    with zipfile.ZipFile(archive) as opened:
        (folder / Path(name).name).write_bytes(opened.read(name))
    return sitk.ReadImage(str(folder / Path(name).name))


def test_ten_tasks_become_one_archive(tmp_path):
    for task in MSD:
        write_msd(tmp_path / "MSD", task)
        predict_msd(tmp_path / "predictions", task)
    archive = tmp_path / "all.zip"
    assert attempt(msd.plan_submission, tmp_path / "predictions", tmp_path / "MSD", archive, partial=False) == []
    excluded = {"liver_141", "hepaticvessel_247"}
    assert members(archive) == sorted(
        f"{task}/{case}.nii.gz" for task in MSD for case in MSD[task][3] if case not in excluded
    )
    image = member(archive, "Task01_BrainTumour/BRATS_485.nii.gz", tmp_path)
    assert image.GetPixelID() == sitk.sitkUInt8
    assert np.allclose(image.GetSpacing(), SPACING)  # the first three of four dimensions
    assert np.array_equal(sitk.GetArrayFromImage(image), labels([1, 2, 3]))
    assert check_archive(msd.plan_submission(None, tmp_path / "MSD"), archive, progress=False) == []
    shutil.rmtree(tmp_path / "predictions/Task05_Prostate")
    shutil.rmtree(tmp_path / "MSD/Task06_Lung")
    wrong = attempt(msd.plan_submission, tmp_path / "predictions", tmp_path / "MSD", tmp_path / "no.zip", partial=False)
    assert [line.partition(":")[0] for line in wrong[:2]] == ["Task05_Prostate", "Task06_Lung"]
    assert not (tmp_path / "no.zip").exists()


def test_one_wrong_spacing_one_label_4_one_missing_case_one_extra_file(tmp_path, capsys):
    task, predictions = write_msd(tmp_path / "MSD", cases=2), tmp_path / "predictions"
    for name in ("liver_133", "liver_134"):
        shutil.copy(task / "imagesTs/liver_132.nii.gz", task / f"imagesTs/{name}.nii.gz")
    write(labels([1, 2]), predictions / "Task03_Liver/liver_132.nii.gz", spacing=(0.7, 0.8, 2.4))
    write(labels([1, 4]), predictions / "Task03_Liver/liver_133.nii.gz")
    write(labels([1, 2]), predictions / "Task03_Liver/liver_134.nii.gz")
    write(labels([1, 2]), predictions / "Task03_Liver/liver_999.nii.gz")
    archive = tmp_path / "submission.zip"
    assert (
        run_genesis(
            "submission", "msd", predictions, "--images", tmp_path / "MSD", "-o", archive, "--partial", "-np", 1
        )
        == 1
    )
    err = capsys.readouterr().err
    for line in ("liver_132.nii.gz: its spacing is 0.7, 0.8, 2.4, that of the test image 0.7, 0.8, 2.5",
                 "liver_133.nii.gz: it holds the label 4; there are 0, 1, 2", "liver_200.nii.gz: missing",
                 "liver_999.nii.gz: surplus", "4 findings: no archive was written"):  # fmt: skip
        assert line in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MSD", "predictions"]


def test_the_command_writes_and_checks(liver, tmp_path, capsys):
    task, predictions, archive = liver
    where = ("--images", task, "--partial", "-np", 1)
    assert run_genesis("submission", "msd", predictions / "Task03_Liver", *where, "-o", archive) == 0
    out = capsys.readouterr().out
    assert "Left out, as the challenge asks: liver_141." in out
    assert "2 segmentations" in out
    assert members(archive) == ["Task03_Liver/liver_132.nii.gz", "Task03_Liver/liver_200.nii.gz"]
    assert run_genesis("submission", "msd", "--check", archive, *where) == 0
    assert run_genesis("submission", "msd", predictions, *where, "--check", archive) == 1
    assert run_genesis("submission", "msd", *where, "-o", archive) == 1


@pytest.mark.parametrize("name", ["missing/submission.zip", "."])
def test_an_archive_is_a_file_in_a_folder(liver, name):
    download, predictions, archive = liver
    with pytest.raises(DatasetError, match="name a file"):
        attempt(msd.plan_submission, predictions, download.parent, archive.parent / name)


def test_the_same_predictions_give_the_same_bytes(liver, tmp_path):
    task, predictions, archive = liver
    assert attempt(msd.plan_submission, predictions, task, archive) == []
    shutil.copytree(predictions, tmp_path / "again")
    assert attempt(msd.plan_submission, tmp_path / "again", task, tmp_path / "again.zip") == []
    assert archive.read_bytes() == (tmp_path / "again.zip").read_bytes()
    with zipfile.ZipFile(archive) as opened:
        assert {entry.date_time for entry in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_datasets_of_nnunet_stand_for_the_download(liver, raw):
    task, predictions, archive = liver
    folder = make(msd.find_download(task), raw).folder
    for images in (raw, folder, folder / "imagesTs"):
        plan = msd.plan_submission(predictions, images, True)
        assert [wanted.member for wanted in plan.wanted] == [
            "Task03_Liver/liver_132.nii.gz",
            "Task03_Liver/liver_200.nii.gz",
        ]
        assert plan.wanted[0].values == {0: 0, 1: 1, 2: 2}
    assert attempt(msd.plan_submission, predictions, raw, archive) == []


def test_a_test_image_that_is_listed_but_missing_is_named(liver):
    task, predictions, archive = liver
    (task / "imagesTs/liver_200.nii.gz").unlink()
    assert attempt(msd.plan_submission, predictions, task, archive) == [
        "Task03_Liver/liver_200.nii.gz: its test image is missing"
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"origin": (0.0, 33.25, 101.0)}, "its origin is 0, 33.25, 101"),
        ({"direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}, "its direction is 1, 0, 0"),
        ({"spacing": (0.7, 0.8, 2.6), "origin": (0.0, 0.0, 0.0)}, "its origin"),
    ],
)
def test_geometry_must_be_that_of_the_test_image(liver, change, said):
    task, predictions, archive = liver
    write(labels([1, 2]), predictions / "Task03_Liver/liver_132.nii.gz", **change)
    wrong = attempt(msd.plan_submission, predictions, task, archive)
    assert len(wrong) == len(change)
    assert said in wrong[-1]


def test_sizes_fractions_and_damaged_predictions_are_named(liver):
    task, predictions, archive = liver
    file = predictions / "Task03_Liver/liver_132.nii.gz"
    for content, said in ((labels([1, 2], (7, 8, 8)), "its size is 8 x 8 x 7, that of the test image 8 x 8 x 8"),
                          (labels([1, 2]) * 0.5, "it holds the label 0.5")):  # fmt: skip
        write(content, file)
        (wrong,) = attempt(msd.plan_submission, predictions, task, archive)
        assert said in wrong
    file.write_bytes(file.read_bytes()[:-50])
    assert "damaged or incomplete" in attempt(msd.plan_submission, predictions, task, archive)[0]
    write(labels([1, 2]).astype(np.int16), file)
    assert attempt(msd.plan_submission, predictions, task, archive) == []


def test_lits_is_uncompressed_at_the_root_under_other_names(tmp_path, raw):
    download = write_lits(tmp_path)
    folder = make(lits.find_download(download), raw).folder
    for number in range(2):
        write(labels([1, 2]), tmp_path / f"predictions/test-volume-{number}.nii.gz")
    archive = tmp_path / "lits.zip"
    for images in (download, folder / "imagesTs"):
        assert attempt(lits.plan_submission, tmp_path / "predictions", images, archive) == []
        assert members(archive) == ["test-segmentation-0.nii", "test-segmentation-1.nii"]
    image = member(archive, "test-segmentation-1.nii", tmp_path)
    assert (tmp_path / "test-segmentation-1.nii").read_bytes()[:4] == struct.pack("<i", 348)
    assert np.allclose(image.GetOrigin(), ORIGIN)
    assert image.GetPixelID() == sitk.sitkUInt8
    wrong = attempt(lits.plan_submission, tmp_path / "predictions", download, archive, partial=False)
    assert len(wrong) == 68
    assert wrong[-1] == "test-segmentation-69.nii: its test image is missing"
    inner = tmp_path / "inner.zip"
    with zipfile.ZipFile(inner, "w") as opened:
        opened.writestr("LiTS/test-segmentation-1.nii", (tmp_path / "test-segmentation-1.nii").read_bytes())
    assert check_archive(lits.plan_submission(None, download, True), inner, progress=False) == [
        "LiTS/test-segmentation-1.nii: surplus", "test-segmentation-0.nii: missing", "test-segmentation-1.nii: missing"]  # fmt: skip


def predict_brats(download: Path, folder: Path, raw: Path, cases: list[str], regions: bool = False) -> Path:
    """Predictions with labels 1, 2, 3 of the dataset, and its dataset.json, as nnU-Net leaves them."""
    dataset = make(brats.find_download(download, regions), raw).folder
    for case in cases:
        write(labels([1, 2, 3]), folder / f"{case}.nii.gz", **BRATS_SPACE)
    shutil.copy(dataset / "dataset.json", folder)
    return folder


@pytest.mark.parametrize("regions", [False, True])
def test_labels_of_brats_21_go_there_and_back(tmp_path, raw, regions):
    download = write_brats21(tmp_path)
    predictions = predict_brats(download, tmp_path / "p", raw, ["BraTS2021_00001", "BraTS2021_00013"], regions)
    archive = tmp_path / "brats.zip"
    for images in (download, raw):
        assert attempt(brats.plan_submission, predictions, images, archive) == []
        assert members(archive) == ["BraTS2021_00001.nii.gz", "BraTS2021_00013.nii.gz"]
    theirs = sitk.GetArrayFromImage(member(archive, "BraTS2021_00001.nii.gz", tmp_path))
    assert np.array_equal(theirs, np.array([0, 2, 1, 4])[labels([1, 2, 3])])
    training = read(raw / "Dataset003_BraTS2021/labelsTr/BraTS2021_00000.nii.gz")
    to_challenge = brats.plan_submission(predictions, download).wanted[0].values
    assert np.array_equal(np.vectorize(to_challenge.get)(training), labels([1, 2, 4]))


def test_a_test_case_that_was_left_out_of_the_dataset_is_missed(tmp_path, raw):
    download = write_brats21(tmp_path)
    next(download.rglob("BraTS2021_00013_t1ce.nii.gz")).write_bytes(b"no image")
    predictions = predict_brats(download, tmp_path / "p", raw, ["BraTS2021_00001"])
    (line,) = attempt(brats.plan_submission, predictions, raw, tmp_path / "brats.zip", partial=False)
    assert line.startswith("BraTS2021_00013.nii.gz: left out of Dataset003_BraTS2021 (")
    plan = brats.plan_submission(predictions, raw, partial=True)
    assert [wanted.member for wanted in plan.wanted] == ["BraTS2021_00001.nii.gz"]
    assert plan.missing == ()


def test_labels_are_those_of_the_year_of_the_test_cases(tmp_path, raw):
    """A model of 2021 on cases of 2023."""
    predictions = predict_brats(
        write_brats21(tmp_path), tmp_path / "p", raw, ["BraTS-GLI-00001-000", "BraTS-GLI-00001-001"]
    )
    images, archive = write_brats23(tmp_path), tmp_path / "brats.zip"
    assert attempt(brats.plan_submission, predictions, images, archive) == []
    theirs = sitk.GetArrayFromImage(member(archive, "BraTS-GLI-00001-001.nii.gz", tmp_path))
    assert np.array_equal(theirs, np.array([0, 2, 1, 3])[labels([1, 2, 3])])
    assert check_archive(brats.plan_submission(None, images), archive, progress=False) == []
    content = json.loads((predictions / "dataset.json").read_text())
    content["challenge"]["meaning"]["resection cavity"] = 4  # a model of 2024; 2023 has no value for it
    (predictions / "dataset.json").write_text(json.dumps(content))
    write(labels([4]), predictions / "BraTS-GLI-00001-000.nii.gz", **BRATS_SPACE)
    assert "it holds the label 4" in attempt(brats.plan_submission, predictions, images, archive)[0]


def test_labels_of_brats_without_a_meaning_are_not_guessed(tmp_path, raw):
    download = write_brats21(tmp_path)
    predictions = predict_brats(download, tmp_path / "p", raw, ["BraTS2021_00001"])
    content = json.loads((predictions / "dataset.json").read_text())
    for wrong in ({}, {"challenge": {"name": "brats", "meaning": {"tumor": 1}}}, {"challenge": {"name": "msd"}},
                  {"challenge": {"name": "brats", "meaning": {"edema": 300}}}):  # fmt: skip
        (predictions / "dataset.json").write_text(json.dumps({"labels": content["labels"]} | wrong))
        with pytest.raises(DatasetError, match="does not say which labels"):
            brats.plan_submission(predictions, download)
    (predictions / "dataset.json").unlink()
    with pytest.raises(DatasetError, match="nnUNetv2_predict writes it"):
        brats.plan_submission(predictions, download)
    with pytest.raises(DatasetError, match="no case of BraTS from 2017 on"):
        brats.plan_submission(None, download / "BraTS2021_Training_Data")


def test_test_images_that_could_not_be_used_are_still_wanted(liver, raw, tmp_path):
    """Neither a damaged test image nor one without its first channel makes an archive complete that lacks it."""
    task, predictions, archive = liver
    (task / "imagesTs/liver_200.nii.gz").write_bytes(b"damaged")
    folder = make(msd.find_download(task), raw).folder
    (predictions / "Task03_Liver/liver_200.nii.gz").unlink()
    assert attempt(msd.plan_submission, predictions, folder, archive) == [
        "Task03_Liver/liver_200.nii.gz: its test image is missing"
    ]
    content = json.loads((folder / "dataset.json").read_text())
    content["challenge"]["test"] = ["../../x"]
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match='"test" must be a list of names of cases'):
        msd.plan_submission(predictions, folder, True)
    cases = write_brats21(tmp_path)
    next(cases.rglob("BraTS2021_00013_t1.nii.gz")).unlink()
    plan = brats.plan_submission(None, cases)
    assert [(wanted.member, wanted.image is None) for wanted in plan.wanted] == [
        ("BraTS2021_00001.nii.gz", False), ("BraTS2021_00013.nii.gz", True)
    ]  # fmt: skip


def test_an_archive_is_checked_before_it_gets_its_name(liver, monkeypatch):
    """By the rules for any: here what is written has 16 bits."""
    task, predictions, archive = liver
    monkeypatch.setattr(archives, "write_final", lambda *rest: write(labels([1, 2]).astype(np.int16), rest[-1]))
    with pytest.raises(DatasetError, match="does not hold what was put in: .*16-bit"):
        attempt(msd.plan_submission, predictions, task, archive)
    assert not archive.exists()
