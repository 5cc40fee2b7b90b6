"""The validation cases of a fold are those that nnU-Net validates on."""

from __future__ import annotations

import json
import shutil

import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_genesis.errors import DatasetError, SettingsError
from nnunet_genesis.folds import preprocessed_cases, validation_cases
from nnunet_genesis.nnunet_dataset import read_plans
from nnunet_genesis.settings import PretrainingSettings
from tests.conftest import run_genesis


@pytest.fixture
def plans(ready_once, nnunet):
    """Of the labeled dataset 4, with five preprocessed cases."""
    shutil.copytree(ready_once, nnunet, dirs_exist_ok=True)
    return read_plans("Dataset004_Target", "nnUNetPlans")


def splits_file(nnunet):
    return nnunet / "nnUNet_preprocessed/Dataset004_Target/splits_final.json"


def excluded(nnunet, dataset="Dataset004_Target"):
    path = nnunet / "nnUNet_preprocessed" / dataset / "nnUNetGenesisPlans.json"
    return json.loads(path.read_text())["genesis"]["pretraining"]["exclude"]


def test_the_default_split_is_that_of_nnunet(plans):
    cases = preprocessed_cases(plans, "3d_fullres")
    assert cases == [f"case{i}" for i in range(5)]
    for fold, split in enumerate(generate_crossval_split(cases, seed=12345, n_splits=5)):
        assert validation_cases(plans, fold) == split["val"]


def test_any_configuration_that_is_preprocessed_tells_the_cases(plans, nnunet):
    expected = validation_cases(plans, 3)
    volumes = nnunet / "nnUNet_preprocessed/Dataset004_Target/nnUNetPlans_3d_fullres"
    for order in (["2d", "3d_fullres"], ["3d_fullres", "2d"], ["3d_fullres"]):
        configurations = {name: plans["configurations"][name] for name in order}
        assert validation_cases(plans | {"configurations": configurations}, 3) == expected
    shutil.rmtree(volumes)
    with pytest.raises(DatasetError, match="nnUNetv2_preprocess -d 4"):
        validation_cases(plans, 3)


def test_a_file_of_splits_decides(plans, nnunet):
    splits_file(nnunet).write_text(json.dumps([{"train": ["case0"], "val": ["case3", "case1"]}]))
    assert validation_cases(plans, 0) == ["case3", "case1"]
    for fold in (1, -1):
        with pytest.raises(DatasetError, match=rf"has 1 folds, 0 to 0, and no fold {fold}\."):
            validation_cases(plans, fold)


@pytest.mark.parametrize("content", ["", "[", "[1]", "{}", "7", '[{"train": []}]', '[{"val": "case0"}]',
                                     '[{"val": ["../x"]}]', '[{"val": [1]}]', "[" * 100_000, "\ud800"])  # fmt: skip
def test_files_that_hold_no_splits(plans, nnunet, content):
    splits_file(nnunet).write_text(content, errors="surrogatepass")
    with pytest.raises(DatasetError, match="splits|folds"):
        validation_cases(plans, 0)


def test_plan_leaves_out_a_fold_of_the_target(plans, nnunet, capsys):
    assert run_genesis("plan", "-d", 4, "--like", 4, "--fold", 2) == 0
    assert excluded(nnunet) == validation_cases(plans, 2)
    assert f"1 cases will be left out of the pre-training: {validation_cases(plans, 2)[0]}" in capsys.readouterr().out
    splits_file(nnunet).write_text(json.dumps([{"train": [], "val": ["case1", "case4"]}, {"train": [], "val": ["z"]}]))
    assert run_genesis("plan", "-d", 501, "--like", 4, "--fold", 0, "--exclude", "case0") == 0  # 501 has no case4
    assert excluded(nnunet, "Dataset501_Scans") == ["case0", "case1"]
    assert (
        "WARNING: Dataset501_Scans has no case of the name of 1 of 2 validation cases (case4)"
        in capsys.readouterr().out
    )
    assert run_genesis("plan", "-d", 501, "--like", 4, "--fold", 1) == 1
    assert "there is nothing to leave out by name" in capsys.readouterr().err
    assert run_genesis("plan", "-d", 501, "--template", "tiny", "--fold", 1) == 1
    assert "--fold needs --like" in capsys.readouterr().err


def test_plan_leaves_out_cases_by_name(plans, nnunet, tmp_path, capsys):
    (tmp_path / "cases.txt").write_text("case2\ncase0\n")
    assert run_genesis("plan", "-d", 4, "--like", 4, "--exclude", tmp_path / "cases.txt", "case0") == 0
    assert excluded(nnunet) == ["case0", "case2"]
    assert run_genesis("plan", "-d", 4, "--like", 4, "--exclude", "case9") == 1
    assert "has no case case9, which is to be excluded" in capsys.readouterr().err
    shutil.rmtree(nnunet / "nnUNet_raw/Dataset004_Target/imagesTr")  # names of preprocessed cases serve alike
    assert run_genesis("plan", "-d", 4, "--like", 4, "--exclude", "case4") == 0
    assert excluded(nnunet) == ["case4"]


@pytest.mark.parametrize("value", ["case0", [1], [""], ["a", "a"], {"a": 1}, 3, None])
def test_what_cannot_be_a_list_of_names(value):
    with pytest.raises(SettingsError, match='"exclude" must be a list of different names'):
        PretrainingSettings.of_plans({"genesis": {"pretraining": {"exclude": value}}})
    held = PretrainingSettings.of_plans({"genesis": {"pretraining": {"exclude": ["b", "a"]}}})
    assert held.block()["exclude"] == ["b", "a"]
