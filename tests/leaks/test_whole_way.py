"""From two raw datasets that share images to a refusal: pre-training, leaks, transfer and study plan."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch

from nnunet_genesis.checkpoints.reading import read_checkpoint
from nnunet_genesis.leaks.case_record import record_in
from nnunet_genesis.study.arms import parse_arm
from nnunet_genesis.study.design import read_study
from nnunet_genesis.study.outline import Wish, plan_study
from tests.conftest import run_genesis, run_stock, shrink_plans, use_folders
from tests.leaks.images import resampled, scan

SHARED = ("renamed", "respaced", "b_scan")
"""Cases of the labeled dataset that are in the pre-training: under another name and in another format, then also with
another spacing; and a case that shares its name alone."""
NEW = ("new0", "new1", "new2")
PRETRAIN = (501, "3d_fullres", "all", "-tr", "nnUNetTrainerGenesisPretrain", "-p", "nnUNetGenesisPlans", "-device",
            "cpu")  # fmt: skip
STUDY = ("-d", 4, "-c", "3d_fullres", "--labels", 1, "--seeds", 1, "--epochs", 2, "--iterations", 1,
         "--validation-iterations", 1, "--no-mirroring", "--device", "cpu", "--arm", "scratch")  # fmt: skip


def write_raw(folder: Path, images: dict[str, sitk.Image], ending: str, labeled: bool) -> None:
    (folder / "imagesTr").mkdir(parents=True)
    for case, image in images.items():
        sitk.WriteImage(image, str(folder / "imagesTr" / f"{case}_0000{ending}"))
        if labeled:
            (folder / "labelsTr").mkdir(exist_ok=True)
            half = sitk.Cast(image > 450, sitk.sitkUInt8)
            sitk.WriteImage(half, str(folder / "labelsTr" / f"{case}{ending}"))
    labels = {"background": 0, "organ": 1} if labeled else {"background": 0}
    description = {"channel_names": {"0": "T1"}, "labels": labels, "numTraining": len(images), "file_ending": ending,
                   "overwrite_image_reader_writer": "SimpleITKIO"}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(description))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Dataset 501 pre-trained on for a moment, dataset 4 labeled, half of it the same images."""
    with pytest.MonkeyPatch.context() as patch:
        base = use_folders(tmp_path_factory.mktemp("leaks"), patch)
        image = sitk.GetImageFromArray
        scans = {f"{letter}_scan": image(scan(seed)) for seed, letter in enumerate("abcd")}
        write_raw(base / "nnUNet_raw/Dataset501_Scans", scans, ".nii.gz", labeled=False)
        labeled = {case: image(scan(50 + seed)) for seed, case in enumerate(NEW)}
        labeled |= {"renamed": image(scan(2)), "respaced": resampled(scan(3), 1.4), "b_scan": image(scan(60))}
        write_raw(base / "nnUNet_raw/Dataset004_Target", labeled, ".nrrd", labeled=True)
        assert run_genesis("plan", "-d", 4, "--template", "tiny", "-p", "nnUNetPlans") == 0
        shrink_plans(base / "nnUNet_preprocessed/Dataset004_Target/nnUNetPlans.json")
        run_stock(patch, "nnUNetv2_preprocess", "-d", 4, "-plans_name", "nnUNetPlans", "-c", "3d_fullres", "-np", 1)
        pretrain(patch)
        yield base


def pretrain(patch: pytest.MonkeyPatch, *flags: object) -> None:
    lengths = ("--epochs", 1, "--iterations", 1, "--validation-iterations", 1)
    assert run_genesis("plan", "-d", 501, "--like", 4, *lengths, *flags) == 0
    assert run_genesis("preprocess", "-d", 501, "-c", "3d_fullres", "-np", 1) == 0
    run_stock(patch, "nnUNetv2_train", *PRETRAIN)


@pytest.fixture(scope="module")
def checkpoint(place) -> Path:
    (found,) = place.glob("nnUNet_results/Dataset501_Scans/*/fold_all/checkpoint_final.pth")
    return found.rename(place / "pretrained.pth")


@pytest.fixture(scope="module")
def silent(checkpoint) -> Path:
    """A checkpoint without a record, as those of earlier versions are."""
    content = read_checkpoint(checkpoint)
    del content["genesis"]["cases"]
    torch.save(content, checkpoint.with_name("silent.pth"))
    return checkpoint.with_name("silent.pth")


def test_the_checkpoint_names_what_it_saw_in_a_few_bytes(checkpoint):
    record = record_in(checkpoint)
    assert sorted(record.names) == ["a_scan", "b_scan", "c_scan", "d_scan"]  # those held out chose the best checkpoint
    assert record.digests.nbytes + record.signatures.nbytes == 4 * (16 + 4096)


def test_a_case_is_found_under_another_name_in_another_format_and_spacing(place, checkpoint, capsys):
    assert run_genesis("leaks", checkpoint, "-d", 4) == 1
    shown = capsys.readouterr()
    rows = {line.split()[0]: line for line in shown.out.splitlines()[1:]}
    assert set(rows) == set(SHARED)
    assert "identical voxels" in rows["renamed"]
    assert "c_scan" in rows["renamed"]
    assert "same image" in rows["respaced"]
    assert "d_scan" in rows["respaced"]
    assert float(rows["respaced"].split()[-1]) > 0.85
    assert "same name" in rows["b_scan"]
    assert shown.err.count("\n") == 1
    assert all(case in shown.err for case in SHARED)
    assert run_genesis("leaks", checkpoint, "-d", 4, "--cases", *NEW) == 0
    assert "None of 3 cases" in capsys.readouterr().out
    assert run_genesis("leaks", checkpoint, "-d", 4, "--cases", "new0", "renamed") == 1
    assert run_genesis("leaks", checkpoint, "-d", 4, "--cases", "strange") == 1
    assert "strange is no preprocessed case" in capsys.readouterr().err
    (place / "cases.txt").write_text("new0\nnew0\n")
    assert run_genesis("leaks", checkpoint, "-d", 4, "--cases", "new0", place / "cases.txt") == 0
    assert "None of 1 cases" in capsys.readouterr().out
    (place / "cases.txt").write_text("\n")
    assert run_genesis("leaks", checkpoint, "-d", 4, "--cases", place / "cases.txt") == 1
    assert "cases.txt is empty" in capsys.readouterr().err


def test_a_checkpoint_without_a_record_is_not_called_clean(silent, capsys):
    assert run_genesis("leaks", silent, "-d", 4, "--cases", *NEW) == 1
    shown = capsys.readouterr()
    assert "does not say which cases it was pre-trained on" in shown.err
    assert "None of" not in shown.out


def test_a_study_refuses_each_of_them_and_can_be_told_to_go_on(place, checkpoint, capsys):
    arm = ("--arm", f"genesis={checkpoint}")
    for case in SHARED:
        assert run_genesis("study", "plan", place / "refused", *STUDY, *arm, "--test", "new0", case) == 1
        assert f"pre-trained on 1 of 2 test cases: {case} (" in capsys.readouterr().err
        assert not (place / "refused").exists()
    test = ("--test", "new0", *SHARED)
    assert run_genesis("study", "plan", place / "allowed", *STUDY, *arm, *test, "--allow-leaks") == 0
    written = json.loads((place / "allowed/study.json").read_text())["leaks"]
    assert list(written) == ["genesis"]
    assert len(written["genesis"]) == 3
    assert "WARNING: arm genesis: " in capsys.readouterr().out


def test_a_study_without_leaks_says_nothing(place, checkpoint, silent):
    def leaks_of(arm: str, *test: str) -> dict[str, list[str]]:
        wish = Wish("Dataset004_Target", "nnUNetPlans", "3d_fullres", [parse_arm("scratch"), parse_arm(arm)], [1], 1,
                    test, [], {"epochs": 2, "iterations": 1}, 1, False, 1.0)  # fmt: skip
        plan_study(wish, folder := place / f"study_of_{arm.split('=')[0]}")
        return read_study(folder).leaks

    assert leaks_of(f"genesis={checkpoint}", "new0", "new1") == {}
    assert leaks_of(f"old={silent}", "new0", "renamed") == {
        "old": ["silent.pth does not say which cases it was pre-trained on: a leak cannot be excluded"]
    }


def test_transfer_looks_at_the_fold_that_is_to_be_trained(place, checkpoint, silent, capsys):
    folder = place / "nnUNet_preprocessed/Dataset004_Target"
    splits = [{"train": list(NEW), "val": ["renamed", "respaced"]}, {"train": ["renamed"], "val": list(NEW)}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    command = ("-d", 4, "-c", "3d_fullres", "--epochs", 2)
    try:
        assert run_genesis("transfer", checkpoint, *command, "--fold", 0) == 1
        said = capsys.readouterr().err
        assert "2 of 2 validation cases of fold 0" in said
        assert "renamed" in said
        assert "respaced" in said
        assert not (folder / "transfer_report.json").exists()

        def report(source: Path, *flags: object) -> dict:
            assert run_genesis("transfer", source, *command, *flags) == 0
            return json.loads((folder / "transfer_report.json").read_text())["nnUNetPlans_genesis_3d_fullres.pth"]

        assert len(report(checkpoint, "--fold", 0, "--allow-leaks")["leaks"]) == 2
        assert run_genesis("transfer", checkpoint, *command, "--allow-leaks") == 1
        assert "--allow-leaks needs --fold" in capsys.readouterr().err
        assert report(checkpoint, "--fold", 1)["leaks"] == []
        assert "cannot be excluded" in report(silent, "--fold", 1)["leaks"][0]
        assert "leaks" not in report(checkpoint)
        assert record_in(folder / "nnUNetPlans_genesis_3d_fullres.pth").names == record_in(checkpoint).names
        assert run_genesis("leaks", folder / "nnUNetPlans_genesis_3d_fullres.pth", "-d", 4, "--fold", 0) == 1
        assert run_genesis("leaks", checkpoint, "-d", 4, "--fold", 1) == 0
    finally:
        (folder / "splits_final.json").unlink()


def test_excluded_cases_are_in_neither_part_nor_record(place, checkpoint, monkeypatch):
    pretrain(monkeypatch, "--exclude", "c_scan", "d_scan")
    (found,) = place.glob("nnUNet_results/Dataset501_Scans/*/fold_all/checkpoint_final.pth")
    assert set(record_in(found).names) == {"a_scan", "b_scan"}
    assert run_genesis("leaks", found, "-d", 4, "--cases", "renamed", "respaced", *NEW) == 0
    assert read_checkpoint(found)["genesis"]["settings"]["exclude"] == ["c_scan", "d_scan"]
    found.unlink()


def test_a_resumed_training_keeps_what_was_seen_before(place, checkpoint, silent, monkeypatch):
    """Also cases that are excluded from then on; and what is unknown once stays unknown."""
    lengths = ("--epochs", 2, "--iterations", 1, "--validation-iterations", 1)
    assert run_genesis("plan", "-d", 501, "--like", 4, *lengths, "--exclude", "d_scan") == 0
    (folder,) = place.glob("nnUNet_results/Dataset501_Scans/*/fold_all")
    final = folder / "checkpoint_final.pth"
    for source, names in ((checkpoint, ["a_scan", "b_scan", "c_scan", "d_scan"]), (silent, None)):
        shutil.copyfile(source, folder / "checkpoint_latest.pth")
        run_stock(monkeypatch, "nnUNetv2_train", *PRETRAIN, "--c")
        record = record_in(final)
        assert (record and sorted(record.names)) == names
        logs = sorted(folder.glob("training_log*.txt"), key=lambda log: log.stat().st_mtime)
        assert ("does not say which cases it saw" in logs[-1].read_text()) == (names is None)
        assert ("saw before: 1 not trained on any more (d_scan). It goes on" in logs[-1].read_text()) == bool(names)
        final.unlink()
