"""Whatever stops a run, the next one does what is left; nothing is half-written."""

from __future__ import annotations

import os
import shutil

import pytest
from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_genesis import files
from nnunet_genesis.challenges import brats, lits, raw_dataset
from nnunet_genesis.challenges.case_log import REPORT
from nnunet_genesis.challenges.msd import find_download
from nnunet_genesis.challenges.raw_dataset import splits_by_patient
from nnunet_genesis.challenges.raw_dataset import write_dataset as write_dataset_of
from nnunet_genesis.errors import DatasetError
from tests.challenges.conftest import description, make, names
from tests.challenges.layouts import labels, voxels, write, write_brats21, write_brats23, write_lits, write_msd
from tests.conftest import run_genesis, write_dataset


def images_at(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}


def test_a_second_run_reads_no_image(source, raw, monkeypatch):
    download = find_download(write_msd(source, "Task05_Prostate"))
    first = make(download, raw)
    before = images_at(first.folder)

    def never(*_):
        raise AssertionError("a finished case was read")

    monkeypatch.setattr(raw_dataset, "write_case", never)
    second = make(download, raw)
    assert (first.written, first.already_there, second.written, second.already_there) == (4, 0, 0, 4)
    assert images_at(first.folder) == before


@pytest.mark.parametrize("task", ["Task03_Liver", "Task05_Prostate"])
def test_a_killed_run_leaves_whole_cases_and_the_next_one_finishes(source, raw, monkeypatch, task):
    download = find_download(write_msd(source, task))
    real, calls = os.replace, []

    def dying(start, end):
        if "images" in str(end):
            calls.append(end)
            if len(calls) == 2 * len(download.channels):  # the last file of the second case
                raise KeyboardInterrupt
        real(start, end)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            make(download, raw)
    folder = raw / f"Dataset003_{task.partition('_')[2]}"
    assert not (folder / "dataset.json").exists()
    (folder / ".incomplete_x").mkdir()  # a split image
    (folder / ".incomplete_x" / "part.nii.gz").write_bytes(b"half a file")
    report = make(download, raw)
    cases = len(download.training) + len(download.test)
    assert (report.written, report.already_there) == (cases - 1, 1)
    assert description(folder)["numTraining"] == 2
    assert not [name for name in names(folder) if name.startswith(".")]


def test_changed_deleted_and_added_files_are_done_again(source, raw):
    task = write_msd(source, cases=3)
    folder = make(find_download(task), raw).folder
    (folder / "labelsTr/liver_0.nii.gz").unlink()
    (task / "labelsTr/liver_1.nii.gz").unlink()
    write(voxels("new")[0], task / "imagesTs/liver_999.nii.gz")
    report = make(find_download(task), raw)
    assert (report.written, report.already_there) == (2, 4 - 0)
    assert names(folder / "labelsTr") == ["liver_0.nii.gz", "liver_301.nii.gz"]
    assert names(folder / "imagesTr") == ["liver_0_0000.nii.gz", "liver_301_0000.nii.gz"]
    assert description(folder)["numTraining"] == 2


def test_a_lost_report_leaves_no_temporary_files_beside_hard_links(source, raw):
    """A name is not replaced by another name of the same file: the old one must go first."""
    download = find_download(write_msd(source))
    folder = make(download, raw).folder
    (folder / REPORT).write_text('{"challenge": "msd Task03_Liver", "cases": {}}')
    assert make(download, raw).written == 5
    assert not [name for name in names(folder) if name.startswith(".")]


def test_files_of_another_file_system_are_copied(source, raw, monkeypatch):
    def refuse(*_, **__):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(raw_dataset.os, "link", refuse)
    task = write_msd(source)
    folder = make(find_download(task), raw).folder
    copy, original = folder / "imagesTr/liver_0_0000.nii.gz", task / "imagesTr/liver_0.nii.gz"
    assert not copy.samefile(original)
    assert copy.read_bytes() == original.read_bytes()


def test_linked_files_are_taken_over_not_their_links(source, raw, tmp_path):
    """A relative link would lead nowhere in another folder."""
    file = write_msd(source) / "imagesTr/liver_0.nii.gz"
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")
    copy = make(find_download(source / "Task03_Liver"), raw).folder / "imagesTr/liver_0_0000.nii.gz"
    assert not copy.is_symlink()
    assert copy.samefile(file)


def test_folders_of_others_and_damaged_reports_are_refused(source, raw, tmp_path):
    download = find_download(write_msd(source))
    write_dataset(tmp_path, 3, "Liver", 1)
    with pytest.raises(DatasetError, match="was not written by this command"):
        make(download, raw)
    with pytest.raises(DatasetError, match="id 3 is used"):
        make(find_download(write_msd(source, "Task09_Spleen")), raw)
    shutil.rmtree(raw / "Dataset003_Liver")
    folder = make(download, raw).folder
    for content, said in (('{"challenge": "lits"}', "holds cases of lits"), ('{"challenge": "msd Task03_Liver"}', "was changed"),
                          ('{"challenge": "msd Task03_Liver", "cases": {"x": {"state": 1}}}', "was changed")):  # fmt: skip
        (folder / REPORT).write_text(content)
        with pytest.raises(DatasetError, match=said):
            make(download, raw)


def test_without_a_usable_case_there_is_no_dataset_json(source, raw):
    task = write_msd(source)
    shutil.rmtree(task / "labelsTr")
    with pytest.raises(DatasetError, match="No case of msd could be used"):
        make(find_download(task), raw)
    assert not (raw / "Dataset003_Liver/dataset.json").exists()


@pytest.mark.parametrize("second", ["another task", "other years"])
def test_one_dataset_holds_cases_of_one_convention(source, raw, second):
    """Labels of BraTS 2021 and 2023 have the same values and other meanings."""
    if second == "another task":
        ours = [find_download(write_msd(source, task)) for task in ("Task03_Liver", "Task09_Spleen")]
    else:
        ours = [brats.find_download(write(source)) for write in (write_brats21, write_brats23)]
    folder = write_dataset_of(ours[0], raw, 3, "Mine", progress=False).folder
    before = names(folder / "imagesTr")
    with pytest.raises(DatasetError, match=f"holds cases of {ours[0].origin}, not of {ours[1].origin}"):
        write_dataset_of(ours[1], raw, 3, "Mine", progress=False)
    assert names(folder / "imagesTr") == before


def test_splits_of_an_earlier_run_go_with_its_patients(source, raw):
    folder = write_brats23(
        source, [f"BraTS-GLI-0000{patient}-00{scan}" for patient in range(2) for scan in range(2)], ()
    )
    made = make(brats.find_download(folder), raw).folder
    assert "splits_final.json" in names(made)
    for case in ("BraTS-GLI-00000-001", "BraTS-GLI-00001-001"):
        next(folder.rglob(f"{case}-t1n.nii.gz")).unlink()
    assert make(brats.find_download(folder), raw).splits == 0
    assert "splits_final.json" not in names(made)


def test_linked_folders_are_searched_once_and_circles_end(source, tmp_path):
    shelf = write_lits(tmp_path / "shelf", training=(0, 1))
    source.mkdir()
    for link in ("a", "b"):
        (source / link).symlink_to(shelf / "Training_Batch1")
    (shelf / "Training_Batch1/circle").symlink_to(source)
    assert [case.name for case in lits.find_download(source).training] == ["volume-0", "volume-1"]


def test_a_folder_that_cannot_be_opened_is_no_empty_one(source, monkeypatch):
    folder, real = write_lits(source, training=(0, 28)), os.scandir

    def closed(path):
        if str(path).endswith("Training_Batch2"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DatasetError, match=r"Training_Batch2 cannot be opened \(Permission denied\)"):
        lits.find_download(folder)


def test_endings_in_capitals_are_read(source, raw):
    folder, task = write_lits(source, training=(0,)), write_msd(source)
    (folder / "Training_Batch1/volume-0.nii").rename(folder / "Training_Batch1/Volume-0.NII")
    assert make(lits.find_download(folder), raw, 4).left_out == {}
    (task / "imagesTr/liver_0.nii.gz").rename(task / "imagesTr/liver_0.NII.GZ")
    assert make(find_download(task), raw).left_out == {}
    shutil.copy(task / "imagesTr/liver_0.NII.GZ", task / "imagesTr/liver_0.nii.gz")
    with pytest.raises(DatasetError, match="are the same case"):
        find_download(task)


def test_labels_whose_spacing_nnunet_would_not_take_are_laid_on_their_image(source, raw):
    task = write_msd(source)
    write(labels([1, 2]), task / "labelsTr/liver_0.nii.gz", spacing=(0.7, 0.8, 2.501))
    report = make(find_download(task), raw)
    assert report.left_out == {}
    image, label = (str(report.folder / part) for part in ("imagesTr/liver_0_0000.nii.gz", "labelsTr/liver_0.nii.gz"))
    assert check_cases([image], label, 1, SimpleITKIO)


def test_cases_of_a_patient_share_their_folds():
    cases = [f"p{patient}-{scan}" for patient in range(7) for scan in range(2)] + ["alone"]
    patients = {case: case.partition("-")[0] for case in cases}
    splits = splits_by_patient(cases, patients)
    assert len(splits) == 5
    assert sorted(case for fold in splits for case in fold["val"]) == sorted(cases)
    for fold in splits:
        assert sorted(fold["train"] + fold["val"]) == sorted(cases)
        assert not {patients[case] for case in fold["train"]} & {patients[case] for case in fold["val"]}
    assert splits_by_patient(cases, {}) == []
    assert splits_by_patient(["a-0", "a-1"], {"a-0": "a", "a-1": "a"}) == []
    assert len(splits_by_patient(["a-0", "a-1", "b"], {"a-0": "a", "a-1": "a"})) == 2


def test_the_command_says_what_became_of_the_cases(source, nnunet, capsys):
    task = write_msd(source)
    (task / "labelsTr/liver_1.nii.gz").unlink()
    assert run_genesis("dataset", "msd", task, "-d", 7, "-n", "Mine", "-np", 1) == 2
    out, err = capsys.readouterr()
    assert "4 cases written to" in out
    assert "LiTS is the same data" in out
    assert "liver_1: its label is missing" in err
    assert description(nnunet / "nnUNet_raw/Dataset007_Mine")["numTraining"] == 1
    assert run_genesis("dataset", "msd", source, "-d", 7, "-np", 1) == 1
