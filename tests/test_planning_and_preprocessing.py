"""Plans of the target for unlabeled scans; volumes that nnU-Net itself can read; kill and go on."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_genesis import preprocessing
from nnunet_genesis.errors import DatasetError
from nnunet_genesis.preprocessing import ENDINGS, preprocess


@pytest.fixture
def planned(nnunet: Path, make_dataset, genesis) -> Path:
    """Target dataset 4 with plans, and unlabeled dataset 501 of four cases; the folder of both."""
    make_dataset(4, "Target", 2)
    make_dataset(501, "Scans", 4, labeled=False)
    assert genesis("plan", "-d", 4, "--template", "tiny", "-p", "nnUNetPlans") == 0
    return nnunet


@pytest.mark.parametrize(("ratio", "range_"), [([0.6], [0.6, 0.6]), ([0.6, 0.9], [0.6, 0.9])])
@pytest.mark.parametrize(("cells", "edges"), [([0], 0), ([2, 4, 4], [2, 4, 4])])
def test_masking_takes_one_number_or_several(planned: Path, genesis, ratio, range_, cells, edges):
    flags = ("--recipe", "masking", "--masking-ratio", *ratio, "--masking-cell-size", *cells)
    assert genesis("plan", "-d", 501, "--like", 4, *flags) == 0
    plans = json.loads((planned / "nnUNet_preprocessed/Dataset501_Scans/nnUNetGenesisPlans.json").read_text())
    masking = plans["genesis"]["pretraining"]["recipe"]["masking"]
    assert masking == {"probability": 1.0, "ratio": range_, "cell_size": edges, "masked_as": "zeros"}


def test_plans_are_the_targets_but_for_names_and_settings(planned: Path, genesis):
    assert genesis("plan", "-d", 501, "--like", "Dataset004_Target", "--epochs", 7, "--loss", "l1", "--lr", 0.01,
                   "--recipe", "released", "--shuffling-windows", 5, "--cutout-outer-window-size", 0.2, 0.3) == 0  # fmt: skip
    folder = planned / "nnUNet_preprocessed"
    target = json.loads((folder / "Dataset004_Target" / "nnUNetPlans.json").read_text())
    ours = json.loads((folder / "Dataset501_Scans" / "nnUNetGenesisPlans.json").read_text())
    settings = ours.pop("genesis")["pretraining"]
    assert (settings["epochs"], settings["loss"], settings["learning_rate"]) == (7, "l1", 0.01)
    assert settings["recipe"]["shuffling"]["windows"] == 5
    assert settings["recipe"]["cutout"]["outer_window_size"] == [0.2, 0.3]
    assert settings["recipe"]["cutout"]["max_replaced"] == 1.0  # the released recipe's
    assert (ours.pop("dataset_name"), ours.pop("plans_name")) == ("Dataset501_Scans", "nnUNetGenesisPlans")
    for configuration in ours["configurations"]:
        assert ours["configurations"][configuration].pop("data_identifier") == f"nnUNetGenesisPlans_{configuration}"
        target["configurations"][configuration].pop("data_identifier")
    for plans in (ours, target):
        for key in ("dataset_name", "plans_name", "genesis"):
            plans.pop(key, None)
    assert ours == target
    for name in ("dataset.json", "dataset_fingerprint.json"):
        assert (folder / "Dataset501_Scans" / name).is_file()


def test_pretraining_on_the_targets_own_volumes_reuses_them(planned: Path, genesis, capsys):
    assert genesis("plan", "-d", 4, "--like", 4) == 0
    plans = json.loads((planned / "nnUNet_preprocessed/Dataset004_Target/nnUNetGenesisPlans.json").read_text())
    assert plans["configurations"]["3d_fullres"]["data_identifier"] == "nnUNetPlans_3d_fullres"
    assert genesis("preprocess", "-d", 4, "-c", "3d_fullres", "-np", 1) == 1
    assert "Run: nnUNetv2_preprocess -d 4 -plans_name nnUNetPlans -c 3d_fullres" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "-d", 501, "--like", 9), "No dataset 9 in nnUNet_raw or nnUNet_preprocessed .*Check the id, or import it"),
        (("plan", "-d", "scans", "--like", 4), "-d takes a dataset id"),
        (("plan", "-d", 501, "--like", 4, "--like-plans", "nnUNetResEncUNetLPlans"), "Plans of this dataset: nnUNetPlans"),
        (("plan", "-d", 501, "--like", 4, "--epochs", 0), '"epochs" must be at least 1, not 0'),
        (("plan", "-d", 501, "--template", "huge"), "Templates: .*tiny"),
        (("plan", "-d", 502, "--like", 4), "channels of Dataset502_Other are CT, those of Dataset004_Target are T1"),
        (("plan", "-d", 502, "--template", "tiny"), "no intensity statistics for the CT channel 0"),
        (("plan", "-d", 4, "--like", 4, "-p", "nnUNetPlans"), "nnUNetPlans of Dataset004_Target"),
        (("preprocess", "-d", 501, "-c", "3d_fullres"), "nnUNetGenesisPlans.json does not exist"),
        (("preprocess", "-d", 4, "-c", "3d_giant", "-p", "nnUNetPlans"), "no configuration 3d_giant; they have 2d, 3d_fullres"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_exit_code_1(planned: Path, make_dataset, genesis, capsys, arguments, message):
    make_dataset(502, "Other", 1, ("CT",), labeled=False)
    capsys.readouterr()
    assert genesis(*arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)


def test_an_unset_folder_is_named(planned: Path, genesis, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed")
    assert genesis("preprocess", "-d", 501, "-c", "3d_fullres") == 1
    assert "The environment variable nnUNet_preprocessed is not set" in capsys.readouterr().err


def test_volumes_equal_those_of_nnunet(planned: Path, genesis, stock):
    """The target's images, preprocessed with and without labels, are the same volumes in the same files."""
    stock("nnUNetv2_preprocess", "-d", 4, "-plans_name", "nnUNetPlans", "-c", "3d_fullres", "-np", 1)
    assert genesis("plan", "-d", 4, "--template", "tiny", "-p", "Ours") == 0
    (planned / "nnUNet_raw/Dataset004_Target/labelsTr").rename(planned / "labels")
    (planned / "nnUNet_preprocessed/Dataset004_Target/gt_segmentations").rename(planned / "more_labels")
    assert genesis("preprocess", "-d", 4, "-c", "3d_fullres", "-p", "Ours", "-np", 1) == 0
    base = planned / "nnUNet_preprocessed" / "Dataset004_Target"
    for case in ("case0", "case1"):
        stocks, ours = (base / f"{name}_3d_fullres" / case for name in ("nnUNetPlans", "Ours"))
        theirs, mine = blosc2.open(f"{stocks}.b2nd", mode="r"), blosc2.open(f"{ours}.b2nd", mode="r")
        assert np.array_equal(theirs[:], mine[:])
        assert (theirs.chunks, theirs.blocks, theirs.dtype) == (mine.chunks, mine.blocks, mine.dtype)
        segmentation = blosc2.open(f"{ours}_seg.b2nd", mode="r")[:]
        assert set(np.unique(segmentation)) <= {-1, 0}
        properties = pickle.loads(Path(f"{ours}.pkl").read_bytes())
        expected = pickle.loads(Path(f"{stocks}.pkl").read_bytes())
        assert properties["class_locations"] == {}
        assert properties.keys() == expected.keys()
    assert len(list((base / "Ours_3d_fullres").iterdir())) == 6


def test_a_bad_case_stops_nothing_and_a_second_run_does_what_is_left(planned: Path, genesis, capsys):
    images = planned / "nnUNet_raw" / "Dataset501_Scans" / "imagesTr"
    good = (images / "case2_0000.nii.gz").read_bytes()
    (images / "case2_0000.nii.gz").write_bytes(good[:500])
    holey = sitk.ReadImage(str(images / "case3_0000.nii.gz"))
    holey[3, 3, 3] = float("nan")
    sitk.WriteImage(holey, str(images / "case3_0000.nii.gz"))
    assert genesis("plan", "-d", 501, "--like", 4) == 0
    assert genesis("preprocess", "-d", 501, "-c", "3d_fullres", "-np", 1) == 2
    printed = capsys.readouterr()
    assert "2 cases written" in printed.out
    assert "case3: holds voxels that are NaN or infinite" in printed.err
    folder = planned / "nnUNet_preprocessed" / "Dataset501_Scans" / "nnUNetGenesisPlans_3d_fullres"
    record = json.loads(folder.with_name(f"{folder.name}_preprocessing.json").read_text())
    assert set(record["failed"]) == {"case2", "case3"}
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 6

    (images / "case2_0000.nii.gz").write_bytes(good)
    assert genesis("preprocess", "-d", 501, "-c", "3d_fullres", "-np", 2) == 2
    assert "1 cases written" in capsys.readouterr().out
    assert len(list(folder.iterdir())) == 9
    assert all((folder / name).stat().st_mtime_ns == then for name, then in before.items())


def test_volumes_of_other_plans_are_not_mixed(planned: Path, genesis, capsys):
    assert genesis("plan", "-d", 501, "--like", 4) == 0
    assert genesis("preprocess", "-d", 501, "-c", "3d_fullres", "-np", 1) == 0
    path = planned / "nnUNet_preprocessed" / "Dataset501_Scans" / "nnUNetGenesisPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.0, 1.0]
    path.write_text(json.dumps(plans))
    assert genesis("preprocess", "-d", 501, "-c", "3d_fullres", "-np", 1) == 1
    assert "were preprocessed with other plans (spacing changed)" in capsys.readouterr().err


def test_a_cascade_is_refused_with_the_reason(planned: Path, genesis, capsys):
    path = planned / "nnUNet_preprocessed" / "Dataset004_Target" / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_fullres"}
    plans["configurations"]["3d_cascade_fullres"] = cascade
    path.write_text(json.dumps(plans))
    assert genesis("plan", "-d", 501, "--like", 4) == 0
    assert genesis("preprocess", "-d", 501, "-c", "3d_cascade_fullres") == 1
    assert "second stage of a cascade" in capsys.readouterr().err


@pytest.mark.parametrize("place", ENDINGS)
def test_an_interruption_anywhere_leaves_no_half_case(planned: Path, genesis, monkeypatch, place):
    """Stop right before one of a case's files gets its name: what is listed afterwards is complete."""
    assert genesis("plan", "-d", 501, "--like", 4) == 0
    folder = planned / "nnUNet_preprocessed" / "Dataset501_Scans" / "nnUNetGenesisPlans_3d_fullres"
    replace, seen = os.replace, []

    def interrupted(source: str, target: str) -> None:
        if str(target).endswith(place) and "case1" in str(target) and not (place == ".b2nd" and "_seg" in str(target)):
            seen.append(target)
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(preprocessing.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        preprocess("Dataset501_Scans", "nnUNetGenesisPlans", "3d_fullres", progress=False)
    assert seen
    assert (folder / "case0.b2nd").is_file()
    assert not (folder / "case1.b2nd").is_file()
    for listed in folder.glob("*.b2nd"):
        case = listed.name.removesuffix(".b2nd").removesuffix("_seg")
        if (folder / f"{case}.b2nd").is_file():
            assert all((folder / f"{case}{ending}").is_file() for ending in ENDINGS)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_kill_and_go_on(planned: Path, make_dataset, genesis, processes):
    """kill -9 in the middle, then the same command: the finished cases stay, all volumes can be read."""
    make_dataset(503, "Many", 16, labeled=False)
    assert genesis("plan", "-d", 503, "--like", 4) == 0
    folder = planned / "nnUNet_preprocessed" / "Dataset503_Many" / "nnUNetGenesisPlans_3d_fullres"
    command = [sys.executable, "-m", "nnunet_genesis.cli", "preprocess", "-d", "503", "-c", "3d_fullres", "-np",
               processes]  # fmt: skip
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 60
    while len(list(folder.glob("*.pkl"))) < 3 and time.time() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    time.sleep(1)  # workers end with the process that started them
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.b2nd") if preprocessing.is_finished(
        folder, path.name.removesuffix(".b2nd").removesuffix("_seg"))}  # fmt: skip
    assert 2 <= len(finished) < 32
    report = preprocess("Dataset503_Many", "nnUNetGenesisPlans", "3d_fullres", progress=False)
    assert report.written + report.already_there == 16
    assert report.already_there >= len(finished) // 2
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items())
    volumes = [blosc2.open(str(path), mode="r")[:] for path in folder.glob("*.b2nd")]
    assert len(volumes) == 32
    assert not list(folder.parent.glob("*_unfinished"))


def test_plans_of_others_are_never_overwritten(planned: Path, genesis, capsys):
    path = planned / "nnUNet_preprocessed" / "Dataset004_Target" / "nnUNetResEncUNetLPlans.json"
    path.write_text('{"configurations": {}}')
    assert genesis("plan", "-d", 4, "--like", 4, "-p", path.stem) == 1
    assert "nnUNetResEncUNetLPlans of Dataset004_Target exist and would be overwritten" in capsys.readouterr().err
    assert genesis("transfer", "--from-scratch", "-d", 4, "-c", "3d_fullres", "--to", path.stem) == 1
    assert path.read_text() == '{"configurations": {}}'


def test_a_damaged_image_does_not_stop_planning(planned: Path, genesis):
    (planned / "nnUNet_raw" / "Dataset501_Scans" / "imagesTr" / "case0_0000.nii.gz").write_bytes(b"nothing")
    assert genesis("plan", "-d", 501, "--like", 4) == 0
    fingerprint = json.loads((planned / "nnUNet_preprocessed/Dataset501_Scans/dataset_fingerprint.json").read_text())
    assert len(fingerprint["spacings"]) == 3


def test_a_folder_that_cannot_be_made_is_one_line(planned: Path, genesis, capsys, monkeypatch):
    (planned / "file").write_text("")
    monkeypatch.setenv("nnUNet_preprocessed", str(planned / "file"))
    assert genesis("plan", "-d", 501, "--template", "tiny") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("nnunet_genesis plan: ")


def test_a_missing_raw_dataset_is_named(planned: Path, genesis):
    assert genesis("plan", "-d", 501, "--like", 4) == 0
    (planned / "nnUNet_raw" / "Dataset501_Scans" / "imagesTr").rename(planned / "elsewhere")
    with pytest.raises(DatasetError, match="imagesTr does not exist. Import the images first"):
        preprocess("Dataset501_Scans", "nnUNetGenesisPlans", "3d_fullres")


def test_an_image_that_would_grow_without_bounds_is_left_out(planned: Path, genesis, capsys):
    """A header in metres in place of millimetres must not fill the memory."""
    image = planned / "nnUNet_raw/Dataset501_Scans/imagesTr/case1_0000.nii.gz"
    scan = sitk.ReadImage(str(image))
    scan.SetSpacing([20.0, 20.0, 20.0])
    sitk.WriteImage(scan, str(image))
    assert genesis("plan", "-d", 501, "--like", 4) == 0
    assert genesis("preprocess", "-d", 501, "-c", "2d", "-np", 1) == 0  # 20 * 20 in the plane
    capsys.readouterr()
    assert genesis("preprocess", "-d", 501, "-c", "3d_fullres", "-np", 1) == 2
    assert "case1: would become 8.45e+07 voxels: its spacing is 20, 20, 20 mm" in capsys.readouterr().err


def test_a_record_changed_by_hand_is_named(planned: Path, genesis, capsys):
    assert genesis("plan", "-d", 501, "--like", 4) == 0
    assert genesis("preprocess", "-d", 501, "-c", "3d_fullres", "-np", 1) == 0
    folder = planned / "nnUNet_preprocessed/Dataset501_Scans"
    (folder / "nnUNetGenesisPlans_3d_fullres_preprocessing.json").write_text('{"made_by": [1]}')
    capsys.readouterr()
    assert genesis("preprocess", "-d", 501, "-c", "3d_fullres", "-np", 1) == 1
    assert 'was changed: "made_by" is no block in braces. Delete' in capsys.readouterr().err
