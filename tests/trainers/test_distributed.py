"""Trainings by several processes, which see, learn and write what one process does; what stops them, and what they refuse."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_genesis import distributed, interruption
from nnunet_genesis.pretraining.trainer import nnUNetTrainerGenesisPretrain
from nnunet_genesis.ranks import UNFINISHED
from nnunet_genesis.resources import trainers_folder
from tests.conftest import run_stock, use_folders
from tests.trainers.conftest import FINETUNE, PRETRAIN, edit_plans, pretraining_plans, results

SETTINGS = {"epochs": 4, "iterations": 5, "validation_iterations": 2, "save_every": 1, "learning_rate": 1e-3}
TRAINER = "nnUNetTrainerGenesisPretrain"
FRAGILE = '''
import os, signal
from pathlib import Path
from nnunet_genesis.pretraining.trainer import nnUNetTrainerGenesisPretrain

class nnUNetTrainerGenesisFragile(nnUNetTrainerGenesisPretrain):
    """The last process is killed in the middle of the third epoch, once."""

    def train_step(self, batch):
        again = Path(self.output_folder) / "killed"
        if self.local_rank == 3 and self.current_epoch == 2 and len(self.losses) == 3 and not again.exists():
            again.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batch)
'''


def prepare(ready_once: Path, base: Path, patch: pytest.MonkeyPatch) -> Path:
    """A copy to train in: batches of six patches, of which four processes get two, two, one and one."""
    use_folders(base, patch)
    shutil.copytree(ready_once, base, dirs_exist_ok=True)
    settings = {f"genesis__pretraining__{name}": value for name, value in SETTINGS.items()}
    edit_plans(pretraining_plans(base), configurations__3d_fullres__batch_size=6, **settings)
    return base


@pytest.fixture(scope="module")
def alone(ready_once: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint of one process."""
    with pytest.MonkeyPatch.context() as patch:
        base = prepare(ready_once, tmp_path_factory.mktemp("alone"), patch)
        run_stock(patch, "nnUNetv2_train", *PRETRAIN)
        return checkpoint(results(base, TRAINER))


@pytest.fixture
def base(ready_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return prepare(ready_once, tmp_path, monkeypatch)


def checkpoint(folder: Path, name: str = "checkpoint_final.pth") -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / name, weights_only=True)
    return content


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Curves to 1e-5, over 20 steps."""
    for name, values in expected["logging"].items():
        if "timestamps" not in name:
            assert found["logging"][name] == pytest.approx(values, rel=1e-5), name
    for name, tensor in expected["network_weights"].items():
        torch.testing.assert_close(found["network_weights"][name], tensor, rtol=1e-3, atol=1e-4)


def test_two_machines_of_which_one_loses_a_process_train_like_one_process(base: Path, alone):
    """Two agents of torchrun with two processes each; the killed process costs a restart of all, and nothing else."""
    own = base / "trainers"
    own.mkdir()
    (own / "nnUNetTrainerGenesisFragile.py").write_text(FRAGILE)
    environment = os.environ | {"nnUNet_extTrainer": f"{trainers_folder()}{os.pathsep}{own}"}
    arguments = [str(word).replace(TRAINER, "nnUNetTrainerGenesisFragile") for word in PRETRAIN]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", "1"]
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2", *rendezvous,
             "--max-restarts", "1", "-m", "nnunet_genesis.distributed", *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    shown = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(shown)
    folder = results(base, "nnUNetTrainerGenesisFragile")
    assert (folder / "killed").exists()
    assert_same(checkpoint(folder), alone)
    assert "after 0 steps of epoch 2" in "".join(shown)
