"""A Primus through the real commands: plan, pre-train, fine-tune, predict, export, and nnU-Net without this package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args

from tests.conftest import run_genesis, run_stock, use_folders, write_dataset
from tests.test_export import alone, label_map

RESULTS = "nnUNet_results/Dataset004_Target"
TARGET = "nnUNet_preprocessed/Dataset004_Target"
PLANS = "nnUNetPrimusPlans"
FINETUNE = ("nnUNetv2_train", 4, "3d_fullres", 0, "-tr", "nnUNetTrainerGenesisFinetune", "-device", "cpu", "-p")
AT_ONCE = ("-device", "cpu", "-f", 0, "-npp", 0, "-nps", 0, "--disable_tta")


def change_plans(path: Path, patch: list[int], **arguments: Any) -> None:
    """Another patch, and other arguments of the network."""
    plans = json.loads(path.read_text())
    block = plans["configurations"]["3d_fullres"]
    block["patch_size"] = patch
    block["architecture"]["arch_kwargs"] |= {"input_shape": patch} | arguments
    path.write_text(json.dumps(plans))


@pytest.fixture(scope="module")
def planned_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset 4 with volumes, plans of a U-Net and of a Primus-S that share them; do not change it."""
    with pytest.MonkeyPatch.context() as patch:
        base = use_folders(tmp_path_factory.mktemp("planned"), patch)
        write_dataset(base, 4, "Target", 5)
        assert run_genesis("plan", "-d", 4, "--template", "tiny", "-p", "nnUNetPlans") == 0
        run_stock(patch, "nnUNetv2_preprocess", "-d", 4, "-plans_name", "nnUNetPlans", "-c", "3d_fullres", "-np", 1)
        assert run_genesis("plan", "-d", 4, "--like", 4, "-p", PLANS, "--network", "primus_s") == 0
        change_plans(base / TARGET / f"{PLANS}.json", [16, 16, 16])
    return base


@pytest.fixture
def planned(planned_once: Path, nnunet: Path) -> Path:
    shutil.copytree(planned_once, nnunet, dirs_exist_ok=True)
    return nnunet


def predict(base: Path, stock: Any, plans: str) -> np.ndarray:
    images = base / "images"
    images.mkdir()
    shutil.copy(base / "nnUNet_raw/Dataset004_Target/imagesTr/case0_0000.nii.gz", images)
    stock("nnUNetv2_predict", "-d", 4, "-c", "3d_fullres", "-tr", "nnUNetTrainerGenesisFinetune", "-p", plans, "-i",
          images, "-o", base / "ours", *AT_ONCE)  # fmt: skip
    return label_map(base / "ours/case0.nii.gz")


def test_primus_s_is_fine_tuned_and_predicts_after_export_without_the_package(planned, genesis, stock, capsys):
    schedule = ("--epochs", 1, "--iterations", 2, "--lr", 0.001)
    assert genesis("transfer", "--from-scratch", "-d", 4, "-c", "3d_fullres", "-p", PLANS, *schedule) == 0
    stock(*FINETUNE, f"{PLANS}_scratch")
    expected = predict(planned, stock, f"{PLANS}_scratch")
    capsys.readouterr()
    assert genesis("export", planned / RESULTS / f"nnUNetTrainerGenesisFinetune__{PLANS}_scratch__3d_fullres") == 0
    told = capsys.readouterr().out
    assert "bit for bit, on patches of case0, case1, fold by fold" in told
    command = told.splitlines()[-1].split()
    assert "-tr nnUNet_Primus_S_Trainer" in " ".join(command)
    exported = planned / RESULTS / f"nnUNet_Primus_S_Trainer__{PLANS}_scratch__3d_fullres"
    assert "nnunet_genesis" not in (exported / "plans.json").read_text()
    shutil.rmtree(planned / "nnUNet_preprocessed")
    shutil.rmtree(planned / RESULTS / f"nnUNetTrainerGenesisFinetune__{PLANS}_scratch__3d_fullres")
    words = [{"IN": planned / "images", "OUT": planned / "stock"}.get(word, word) for word in command[1:]]
    at_once = AT_ONCE[:2] + AT_ONCE[4:]
    alone(planned, "nnunetv2.inference.predict_from_raw_data:predict_entry_point", *words, *at_once)
    np.testing.assert_array_equal(label_map(planned / "stock/case0.nii.gz"), expected)
    assert len(np.unique(expected)) > 1


STARTS = """
import sys
sys.modules["nnunet_genesis"] = None
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.run.run_training import get_trainer_from_args

trainer = get_trainer_from_args("4", "3d_fullres", 0, "nnUNet_Primus_S_Trainer", sys.argv[1], device=torch.device("cpu"))
trainer.initialize()
load_pretrained_weights(trainer.network, sys.argv[2])
weights = torch.load(sys.argv[2], weights_only=True)["network_weights"]
loaded = trainer.network.state_dict()
assert loaded.keys() == weights.keys()
assert all(torch.equal(loaded[name], weights[name]) for name in weights)
print("started")
"""


def pretrained_network(base: Path, plans: str) -> Path:
    """A checkpoint of the pre-training's fresh network."""
    arguments = ("4", "3d_fullres", "all", "nnUNetTrainerGenesisPretrain", plans)
    trainer = get_trainer_from_args(*arguments, device=torch.device("cpu"))
    trainer.initialize()
    trainer.save_checkpoint(str(base / "pretrained.pth"))
    return base / "pretrained.pth"


def test_nnunets_own_trainer_starts_from_transferred_weights_without_the_package(planned, genesis):
    """Plans that name our class do not stop it, and every tensor arrives."""
    checkpoint = pretrained_network(planned, PLANS)
    assert genesis("transfer", checkpoint, "-d", 4, "-c", "3d_fullres", "-p", PLANS) == 0
    file = planned / TARGET / f"{PLANS}_genesis_3d_fullres.pth"
    source, ours = (torch.load(path, weights_only=True)["network_weights"] for path in (checkpoint, file))
    assert all(torch.equal(ours[name], source[name]) for name in ours if name.startswith(("eva.", "down_projection.")))
    (planned / "starts.py").write_text(STARTS)
    environment = {name: value for name, value in os.environ.items() if name != "nnUNet_extTrainer"}
    done = subprocess.run([sys.executable, "starts.py", f"{PLANS}_genesis", str(file)], env=environment, cwd=planned,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.stdout.endswith("started\n"), done.stderr[-2000:]


@pytest.mark.parametrize("recipe", ["paper", "mae"])
def test_a_small_primus_is_pre_trained_on_the_targets_own_cases_without_a_fold(recipe, planned, genesis, stock, capsys):
    """Self pre-training: the fold's validation cases stay out; then fine-tuned; export says why it cannot."""
    change_plans(planned / TARGET / f"{PLANS}.json", [16, 24, 16], embed_dim=48, eva_depth=2, eva_numheads=2)
    lengths = ("--epochs", 1, "--iterations", 2, "--validation-iterations", 1, "--plot-every", 100)
    like = ("--like", 4, "--like-plans", PLANS, "--fold", 0, "--recipe", recipe)
    assert genesis("plan", "-d", 4, *like, "-p", "Genesis_fold0", *lengths) == 0
    block = json.loads((planned / TARGET / "Genesis_fold0.json").read_text())
    assert block["configurations"]["3d_fullres"]["data_identifier"] == "nnUNetPlans_3d_fullres"
    stock("nnUNetv2_train", 4, "3d_fullres", "all", "-tr", "nnUNetTrainerGenesisPretrain", "-p", "Genesis_fold0",
          "-device", "cpu")  # fmt: skip
    run = planned / RESULTS / "nnUNetTrainerGenesisPretrain__Genesis_fold0__3d_fullres/fold_all"
    content = torch.load(run / "checkpoint_final.pth", weights_only=True)
    found = content["network_weights"].items()
    (positions,) = (tensor for name, tensor in found if name.endswith("eva.pos_embed"))  # mae: within another network
    assert positions.shape == (1, 2 * 3 * 2, 48)

    schedule = ("--epochs", 1, "--iterations", 1, "--layer-lr-decay", 0.75, "--fold", 0)
    transfer = ("transfer", run / "checkpoint_final.pth", "-d", 4, "-c", "3d_fullres", "-p", PLANS)
    assert genesis(*transfer, *schedule) == 0
    weights = torch.load(planned / TARGET / f"{PLANS}_genesis_3d_fullres.pth", weights_only=True)["network_weights"]
    assert torch.equal(weights["eva.pos_embed"], positions)
    stock(*FINETUNE, f"{PLANS}_genesis")
    (held_out, *_) = json.loads((planned / TARGET / "splits_final.json").read_text())
    assert content["genesis"]["settings"]["exclude"] == held_out["val"]
    assert predict(planned, stock, f"{PLANS}_genesis").shape == (20, 24, 22)
    capsys.readouterr()
    assert genesis("export", planned / RESULTS / f"nnUNetTrainerGenesisFinetune__{PLANS}_genesis__3d_fullres") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "nnU-Net has no trainer that builds a Primus of this size" in error
