"""Trainings by several processes: they learn what one process learns; what stops them, and what they refuse."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.parallel import DistributedDataParallel

from nnunet_genesis import distributed, interruption
from nnunet_genesis.errors import GenesisError
from nnunet_genesis.pretraining.loss import RestorationLoss
from nnunet_genesis.ranks import UNFINISHED
from nnunet_genesis.resources import trainers_folder
from tests.conftest import run_stock, threads_for_processes, use_folders
from tests.trainers.conftest import FINETUNE, PRETRAIN, edit_plans, pretraining_plans, results

SETTINGS = {"epochs": 4, "iterations": 5, "validation_iterations": 2, "save_every": 1, "plot_every": 100}
FRAGILE = '''
import os, signal
from pathlib import Path
from nnunet_genesis.pretraining.restoration_log import RestorationLog
from nnunet_genesis.pretraining.trainer import nnUNetTrainerGenesisPretrain

RestorationLog.plot_progress_png = lambda self, folder: None  # takes longer than an epoch

class nnUNetTrainerGenesisFragile(nnUNetTrainerGenesisPretrain):
    """In double precision, for AdamW makes steps of rounding errors; in the third epoch process 3 is killed, once."""

    @staticmethod
    def build_network_architecture(plans_manager, configuration_manager, *others):
        build = nnUNetTrainerGenesisPretrain.build_network_architecture
        network = build(plans_manager, configuration_manager, *others).double()
        network.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
        return network

    def train_step(self, batch):
        here = (self.local_rank, self.current_epoch, len(self.losses))
        mark = Path(self.output_folder) / "signal"
        if mark.exists() and here == tuple(map(int, mark.read_text().split()[1:])):
            number = int(mark.read_text().split()[0])
            mark.unlink()
            os.kill(os.getpid(), number)
        return super().train_step(batch)
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
    patch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    return base


def output(base: Path) -> Path:
    where = "nnUNet_results/Dataset501_Scans/nnUNetTrainerGenesisFragile__nnUNetGenesisPlans__3d_fullres/fold_all"
    (base / where).mkdir(parents=True, exist_ok=True)
    return base / where


@pytest.fixture(scope="module")
def alone(ready_once: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint of one process."""
    with pytest.MonkeyPatch.context() as patch:
        base = prepare(ready_once, tmp_path_factory.mktemp("alone"), patch)
        run_stock(patch, "nnUNetv2_train", *ARGUMENTS)
        return checkpoint(output(base))


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


def forked(function: Callable[..., None], arguments: list[tuple[Any, ...]]) -> list[int | None]:
    """Exit codes of processes that call a function; they import nothing anew."""
    processes = [multiprocessing.get_context("fork").Process(target=function, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def train(*arguments: str) -> None:
    """What torchrun starts as `-m nnunet_genesis.distributed` and some arguments."""
    sys.argv = ["nnunet_genesis.distributed", *arguments]
    with pytest.MonkeyPatch.context() as patch:
        threads_for_processes(patch)
        distributed.main()


def agent(port: int, processes: int, arguments: list[str]) -> None:
    """What torchrun is on one of two machines, but that its processes are forked."""
    config = LaunchConfig(2, 2, processes, run_id="1", rdzv_endpoint=f"localhost:{port}", rdzv_backend="c10d",
                          max_restarts=1, start_method="fork", monitor_interval=0.1)  # fmt: skip
    elastic_launch(config, train)(*arguments)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Curves and weights to 1e-5, over 20 steps."""
    for name, values in expected["logging"].items():
        if "timestamps" not in name:
            assert found["logging"][name] == pytest.approx(values, rel=1e-5), name
    for name, tensor in expected["network_weights"].items():
        torch.testing.assert_close(found["network_weights"][name], tensor, rtol=1e-5, atol=1e-5)


def test_two_machines_of_which_one_loses_a_process_train_like_one_process(base: Path, alone):
    """Two agents with two processes each; that one of these is killed in the third epoch costs a restart of all."""
    (output(base) / "signal").write_text(f"{signal.SIGKILL} 3 2 3")
    port = free_port()
    assert forked(agent, [(port, 2, ARGUMENTS)] * 2) == [0, 0]
    assert not (output(base) / "signal").exists()
    assert_same(checkpoint(output(base)), alone)
    logs = sorted(output(base).glob("training_log_*.txt"))
    assert "Going on after 0 steps of epoch 2" in "".join(log.read_text() for log in logs)
