"""LUNA16 and ChestX-ray14: what a pre-training may see is imported, and nothing that is held out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_genesis.challenges.chestxray import FINDINGS, find_images_of, findings, images_below, official_split
from nnunet_genesis.challenges.luna16 import SPLITS, find_scans_of
from nnunet_genesis.challenges.unlabeled import cases_in, import_selection
from nnunet_genesis.errors import DatasetError
from nnunet_genesis.importing.into_dataset import ImportReport
from tests.challenges.conftest import description
from tests.challenges.layouts import voxels
from tests.challenges.unlabeled_layouts import PICTURES, uid, write_chestxray, write_luna16
from tests.conftest import run_genesis


def make_luna(source: Path, raw: Path, training, validation=()) -> ImportReport:
    return import_selection(find_scans_of(source, training, validation), raw, 516, progress=False)


@pytest.mark.parametrize(("split", "scans"), [("genesis2019", 7), ("genesis2021", 8), ("released", 8)])
def test_the_papers_splits_of_luna16(source, raw, split, scans):
    training, validation = SPLITS[split]
    report = make_luna(write_luna16(source), raw, training, validation)
    assert report.rejected == {}
    assert report.imported == scans
    allowed = {uid(subset, number) for subset in (*training, *validation) for number in range(2)}
    assert cases_in(report.folder) <= allowed
    assert description(report.folder)["channel_names"] == {"0": "CT"}
    assert description(report.folder)["challenge"]["subsets"]["training"] == list(training)
    found = sitk.ReadImage(str(report.folder / "imagesTr" / f"{uid(3)}_0000.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(found), voxels(uid(3))[0])
    if split == "released":
        (fold,) = json.loads((report.folder / "splits_final.json").read_text())
        assert fold["val"] == [uid(5), uid(6)]
        assert fold["train"] == sorted([uid(0), uid(0, 1), *map(uid, range(1, 5))])
    else:
        assert not (report.folder / "splits_final.json").exists()
    assert make_luna(source, raw, training, validation).already_there == scans


def test_shards_leave_the_folds_to_the_run_that_completes_the_dataset(source, raw, monkeypatch, capsys):
    """A dataset without its folds would be split at random."""
    write_luna16(source)
    monkeypatch.setenv("nnUNet_raw", str(raw))
    words = ("dataset", "luna16", source, "-d", 516, "-np", 1, "--split", "released")
    for number in (2, 1):
        assert run_genesis(*words, "--shard", f"{number}/2") == 0
        assert [path.name for path in (raw / "Dataset516_LUNA16").glob("*.json")] == ["import_report.json"]
    assert "4 cases imported" in (printed := capsys.readouterr().out)
    assert "run the same command without --shard" in printed
    assert "fold 0 trains" not in printed
    assert run_genesis(*words) == 0
    assert "0 cases imported" in capsys.readouterr().out
    (fold,) = json.loads((raw / "Dataset516_LUNA16" / "splits_final.json").read_text())
    assert fold["val"] == [uid(5), uid(6)]
    assert description(raw / "Dataset516_LUNA16")["challenge"]["subsets"]["training"] == [0, 1, 2, 3, 4]


def test_a_dataset_with_scans_that_are_to_be_held_out_is_refused(source, raw):
    write_luna16(source)
    make_luna(source, raw, [8, 9])
    with pytest.raises(DatasetError, match="has 2 cases that this choice leaves out.*Choose another id"):
        make_luna(source, raw, *SPLITS["genesis2021"])
    assert len(cases_in(raw / "Dataset516_LUNA16")) == 2


@pytest.mark.parametrize(
    ("training", "validation", "expected"),
    [
        ([7], [], r"no scans in subset7. Unpack subset7\.zip"),
        ([10], [], "numbers from 0 to 9"),
        ([], [], "at least one"),
        ([0, 0], [], "each named once"),
        ([0], [0], "each named once"),
    ],
)
def test_subsets_that_are_not_there(source, training, validation, expected):
    write_luna16(source, range(3))
    with pytest.raises(DatasetError, match=expected):
        find_scans_of(source, training, validation)


def test_the_same_scan_in_two_subsets_is_refused(source):
    write_luna16(source)
    for file in (source / "subset8").glob("[!.]*"):
        shutil.copy(file, source / "subset1")
    with pytest.raises(DatasetError, match="are the same case"):
        find_scans_of(source, [0, 1])


def test_raw_files_that_are_missing_or_lie_elsewhere_are_named(source, raw):
    write_luna16(source)
    (source / "subset1" / f"{uid(1)}.raw").unlink()
    header = source / "subset2" / f"{uid(2)}.mhd"
    header.write_text(header.read_text().replace(f"{uid(2)}.raw", f"../subset9/{uid(9)}.raw"))
    report = make_luna(source, raw, range(4))
    reasons = {Path(where).stem: why for where, why in report.rejected.items()}
    assert report.imported == 3
    assert reasons[uid(1)] == f"its data file {uid(1)}.raw is missing"
    assert f"its data file ../subset9/{uid(9)}.raw lies outside its folder" in reasons[uid(2)]


def test_a_validation_scan_that_cannot_be_used_is_named_and_in_no_fold(source, raw):
    write_luna16(source)
    (source / "subset5" / f"{uid(5)}.raw").unlink()
    (source / "subset4" / f"{uid(4)}.mhd").rename(source / "subset4" / f"{uid(4)}.MHD")
    report = make_luna(source, raw, *SPLITS["released"])
    assert report.imported == 6
    assert {Path(where).name for where in report.rejected} == {f"{uid(5)}.mhd", f"{uid(4)}.MHD"}  # ITK reads no .MHD
    (fold,) = json.loads((report.folder / "splits_final.json").read_text())
    assert fold["val"] == [uid(6)]
    assert sorted(fold["train"] + fold["val"]) == sorted(cases_in(report.folder))


def test_the_official_split_of_chestxray14(source, raw):
    selection = find_images_of(write_chestxray(source))
    report = import_selection(selection, raw, 514, progress=False)
    assert (report.imported, report.rejected) == (3, {})
    assert cases_in(report.folder) == {name[:-4] for name in PICTURES[:3]}
    assert description(report.folder)["overwrite_image_reader_writer"] == "NaturalImage2DIO"
    assert selection.held_out == 2
    assert import_selection(selection, raw, 514, progress=False).already_there == 3


def test_images_of_the_test_list_s_patients_and_of_no_list_are_kept_out(source):
    write_chestxray(source)
    (source / "train_val_list.txt").write_text("\n".join([*PICTURES[1:4], "00000009_000.png"]))
    (source / "test_list.txt").write_text(PICTURES[4])
    selection = find_images_of(source)
    assert [file.name for file in selection.files] == PICTURES[1:3]
    assert selection.held_out == 3
    assert "1 of the 4 images" in selection.notes[0]


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("test_list.txt", None, "cannot be read.*without it test images cannot be kept out"),
        ("train_val_list.txt", "../../etc/passwd", "names ../../etc/passwd, no image"),
        ("train_val_list.txt", "00000003_000.png", "both name 00000003_000.png"),
        ("train_val_list.txt", "00000009_000.png", "has no image that train_val_list.txt names"),
        ("train_val_list.txt", b"\xff\xfe", "is no text"),
    ],
)
def test_lists_that_protect_nothing_are_refused(source, file, content, expected):
    write_chestxray(source)
    (source / file).unlink()
    if content is not None:
        (source / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DatasetError, match=expected):
        find_images_of(source)


def test_an_image_that_is_there_twice_is_refused(source):
    write_chestxray(source)
    image = images_below(source)[PICTURES[0]]
    (source / "copies").mkdir()
    (source / "copies" / image.name).write_bytes(image.read_bytes())
    with pytest.raises(DatasetError, match=f"{PICTURES[0]} and .* are the same case"):
        find_images_of(source)


def test_findings_are_those_of_the_table(source):
    write_chestxray(source)
    found = findings(source)
    assert found["00000001_000.png"] == {"Cardiomegaly", "Emphysema"}
    assert found["00000001_001.png"] == frozenset()
    assert len(FINDINGS) == 14
    assert set(images_below(source)) == set(PICTURES)
    assert official_split(source) == (PICTURES[:3], PICTURES[3:])
    (source / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels\na.png,Gout\n")
    with pytest.raises(DatasetError, match="Finding Labels.*Download it again"):
        findings(source)
    (source / "Data_Entry_2017.csv").unlink()
    with pytest.raises(DatasetError, match="Data_Entry_2017.csv cannot be read"):
        findings(source)


def test_the_commands_and_the_fold_that_plan_takes_over(nnunet, tmp_path, capsys):
    luna, xray = write_luna16(tmp_path / "luna"), write_chestxray(tmp_path / "cxr")
    assert run_genesis("dataset", "luna16", luna, "-d", 516, "--split", "released", "-np", 1) == 0
    shown = capsys.readouterr().out
    assert "8 cases imported" in shown
    assert "3 other scans of the download are held out" in shown
    assert "fold 0" in shown
    assert "subset0 2, subset1 1" in shown
    assert run_genesis("dataset", "chestxray", xray, "-d", 514, "-n", "CXR", "-np", 1) == 0
    assert "3 cases imported" in capsys.readouterr().out
    assert run_genesis("plan", "-d", 514, "--template", "tiny") == 0
    plans = json.loads((nnunet / "nnUNet_preprocessed/Dataset514_CXR/nnUNetGenesisPlans.json").read_text())
    assert plans["image_reader_writer"] == "NaturalImage2DIO"
    assert run_genesis("plan", "-d", 516, "--template", "genesis_chest_ct") == 0
    raw, planned = (
        nnunet / folder / "Dataset516_LUNA16" / "splits_final.json" for folder in ("nnUNet_raw", "nnUNet_preprocessed")
    )
    assert planned.read_text() == raw.read_text()
    with pytest.raises(SystemExit):
        run_genesis("dataset", "luna16", luna, "-d", 517)
    assert run_genesis("dataset", "luna16", luna, "-d", 517, "--subsets", "0,3", "-np", 1) == 0
