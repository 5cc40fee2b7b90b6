"""Datasets ready to train on, and what the tests of both trainers share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from torch import nn

from nnunet_genesis.pretraining.restoration_log import RestorationLog

CPU = torch.device("cpu")


@pytest.fixture
def ready(ready_once: Path, nnunet: Path) -> Path:
    """Dataset 501 ready to pre-train on, dataset 4 ready to fine-tune on; a fresh copy for each test."""
    shutil.copytree(ready_once, nnunet, dirs_exist_ok=True)
    return nnunet


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than an epoch here; test_pretraining_outputs.py draws them."""
    monkeypatch.setattr(RestorationLog, "plot_progress_png", lambda self, folder: None)


PRETRAIN = (501, "3d_fullres", "all", "-tr", "nnUNetTrainerGenesisPretrain", "-p", "nnUNetGenesisPlans", "-device",
            "cpu")  # fmt: skip
FINETUNE = (4, "3d_fullres", 0, "-tr", "nnUNetTrainerGenesisFinetune", "-p", "nnUNetPlans_genesis", "-device", "cpu")


def results(folder: Path, trainer: str) -> Path:
    (found,) = folder.glob(f"nnUNet_results/*/{trainer}__*/fold_*")
    return found


def pretraining_plans(folder: Path) -> Path:
    return folder / "nnUNet_preprocessed/Dataset501_Scans/nnUNetGenesisPlans.json"


def edit_plans(path: Path, **changes) -> None:
    plans = json.loads(path.read_text())
    for key, value in changes.items():
        block = plans
        *where, last = key.split("__")
        for step in where:
            block = block[step]
        block[last] = value
    path.write_text(json.dumps(plans))


@pytest.fixture
def transferred(ready: Path, genesis) -> Path:
    """Weights of a fresh pre-training network transferred into dataset 4; the folder of its plans."""
    trainer = get_trainer_from_args("501", "3d_fullres", "all", "nnUNetTrainerGenesisPretrain", "nnUNetGenesisPlans",
                                    device=CPU)  # fmt: skip
    trainer.initialize()
    trainer.save_checkpoint(str(ready / "pretrained.pth"))
    schedule = ("--epochs", 2, "--iterations", 1)
    assert genesis("transfer", ready / "pretrained.pth", "-d", 4, "-c", "3d_fullres", *schedule) == 0
    return ready / "nnUNet_preprocessed" / "Dataset004_Target"


def start_finetuning() -> nn.Module:
    trainer = get_trainer_from_args(
        "4", "3d_fullres", 0, "nnUNetTrainerGenesisFinetune", "nnUNetPlans_genesis", device=CPU
    )
    trainer.on_train_start()
    return trainer
