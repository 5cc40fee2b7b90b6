"""A training that tests stop by signals, and processes that are forked: they import nothing anew."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_genesis.resources import trainers_folder
from tests.conftest import use_folders
from tests.trainers.conftest import PRETRAIN, edit_plans, pretraining_plans

DOCUMENT = Path(__file__).parents[2] / "docs" / "distributed.md"
SETTINGS = {"epochs": 4, "iterations": 5, "validation_iterations": 2, "save_every": 1, "plot_every": 100, "warmup": 1}
FRAGILE = '''
import os, signal
from pathlib import Path
from nnunet_genesis.finetuning import nnUNetTrainerGenesisFinetune
from nnunet_genesis.pretraining.trainer import nnUNetTrainerGenesisPretrain

class Signalled:
    """A file names a signal that a process gets, once, before a step of an epoch."""

    def train_step(self, batch):
        self.signalled("train")
        return super().train_step(batch)

    def validation_step(self, batch):
        self.signalled("validation")
        return super().validation_step(batch)

    def signalled(self, kind):
        mark = Path(self.output_folder) / "signal"
        here = [str(self.local_rank), str(self.current_epoch), str(len(self.losses)), kind]
        if mark.exists() and here == mark.read_text().split()[1:]:
            number = int(mark.read_text().split()[0])
            mark.unlink()
            os.kill(os.getpid(), number)

    def _save_debug_information(self):
        (Path(self.output_folder) / f"writes_{self.local_rank}").write_text(str(self.output_folder_base))

class nnUNetTrainerGenesisFragile(Signalled, nnUNetTrainerGenesisPretrain):
    """In double precision: AdamW makes steps of rounding errors. Without curves, which take longer than an epoch."""

    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.logger.local_logger.plot_progress_png = lambda folder: None

    @staticmethod
    def build_network_architecture(plans_manager, configuration_manager, *others):
        build = nnUNetTrainerGenesisPretrain.build_network_architecture
        network = build(plans_manager, configuration_manager, *others).double()
        network.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
        return network

class nnUNetTrainerGenesisFragileFinetune(Signalled, nnUNetTrainerGenesisFinetune):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_val_iterations_per_epoch = 1
        self.logger.local_logger.plot_progress_png = lambda folder: None

    def perform_actual_validation(self, save_probabilities=False):
        pass
'''
TRAINER = "nnUNetTrainerGenesisFragile"
ARGUMENTS = [str(word).replace("nnUNetTrainerGenesisPretrain", TRAINER) for word in PRETRAIN]


def prepare(ready_once: Path, base: Path, patch: pytest.MonkeyPatch) -> Path:
    """A copy to train in: batches of six patches, of which four processes get two, two, one and one."""
    use_folders(base, patch)
    shutil.copytree(ready_once, base, dirs_exist_ok=True)
    settings = {f"genesis__pretraining__{name}": value for name, value in SETTINGS.items()}
    edit_plans(pretraining_plans(base), configurations__3d_fullres__batch_size=6, **settings)
    (base / "trainers").mkdir()
    (base / "trainers" / f"{TRAINER}.py").write_text(FRAGILE)
    patch.setenv("nnUNet_extTrainer", f"{trainers_folder()}{os.pathsep}{base / 'trainers'}")
    export(patch)
    return base


def export(patch: pytest.MonkeyPatch) -> None:
    """Set what the document sets for several machines."""
    for name, value in re.findall(r"^export (TORCH\w+)=(\w+)$", DOCUMENT.read_text(), re.M):
        patch.setenv(name, value)


def output(base: Path, where: str = f"Dataset501_Scans/{TRAINER}__nnUNetGenesisPlans__3d_fullres/fold_all") -> Path:
    folder = base / "nnUNet_results" / where
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def checkpoint(folder: Path, name: str = "checkpoint_final.pth") -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / name, weights_only=True)
    return content


def forked(function: Callable[..., None], arguments: list[tuple[Any, ...]]) -> list[int | None]:
    """Exit codes of processes that call a function; they import nothing anew."""
    processes = [multiprocessing.get_context("fork").Process(target=function, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]
