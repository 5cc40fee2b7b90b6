"""Trainings by several processes: they learn what one process learns; what stops them, and what they refuse."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from nnunetv2.run.run_training import get_trainer_from_args
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.parallel import DistributedDataParallel

from nnunet_genesis import distributed, interruption
from nnunet_genesis.errors import GenesisError
from nnunet_genesis.pretraining.loss import RestorationLoss
from nnunet_genesis.ranks import UNFINISHED, RankedTrainer
from nnunet_genesis.resources import trainers_folder
from tests.conftest import run_stock, threads_for_processes, use_folders
from tests.trainers.conftest import CPU, FINETUNE, PRETRAIN, edit_plans, pretraining_plans

SETTINGS = {"epochs": 4, "iterations": 5, "validation_iterations": 2, "save_every": 1, "plot_every": 100}
FRAGILE = '''
import os, signal
from pathlib import Path
from nnunet_genesis.finetuning import nnUNetTrainerGenesisFinetune
from nnunet_genesis.pretraining.trainer import nnUNetTrainerGenesisPretrain

class Signalled:
    """A file names a signal that a process gets, once, before a step of an epoch."""

    def train_step(self, batch):
        mark = Path(self.output_folder) / "signal"
        here = (self.local_rank, self.current_epoch, len(self.losses))
        if mark.exists() and here == tuple(map(int, mark.read_text().split()[1:])):
            number = int(mark.read_text().split()[0])
            mark.unlink()
            os.kill(os.getpid(), number)
        return super().train_step(batch)

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
    patch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    return base


def output(base: Path, where: str = f"Dataset501_Scans/{TRAINER}__nnUNetGenesisPlans__3d_fullres/fold_all") -> Path:
    folder = base / "nnUNet_results" / where
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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


def process(rank: int, processes: int, port: int, arguments: list[str]) -> None:
    """One of some processes on this machine."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="localhost",
                      MASTER_PORT=str(port))  # fmt: skip
    train(*arguments)


def together(processes: int, arguments: list[str]) -> list[int | None]:
    port = free_port()
    return forked(process, [(rank, processes, port, arguments) for rank in range(processes)])


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Curves and weights to 1e-5."""
    curves = [{name: torch.tensor(values, dtype=torch.float64) for name, values in each["logging"].items()
               if "timestamps" not in name} for each in (found, expected)]  # fmt: skip
    torch.testing.assert_close(*curves, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(dict(found["network_weights"]), dict(expected["network_weights"]), rtol=1e-5, atol=1e-5)


def test_two_machines_of_which_one_loses_a_process_train_like_one_process(base: Path, alone):
    """Two agents, two processes each, 20 steps; that one is killed in the third epoch costs a restart of all."""
    (output(base) / "signal").write_text(f"{signal.SIGKILL} 3 2 3")
    port = free_port()
    assert forked(agent, [(port, 2, ARGUMENTS)] * 2) == [0, 0]
    assert not (output(base) / "signal").exists()
    assert_same(checkpoint(output(base)), alone)
    logs = sorted(output(base).glob("training_log_*.txt"))
    assert "Going on after 0 steps of epoch 2" in "".join(log.read_text() for log in logs)
    writers = [Path((output(base) / f"writes_{rank}").read_text()) for rank in range(4)]
    assert writers[0] == output(base).parent
    assert not set(writers[1:]) & {writers[0]}


def test_a_signal_to_one_process_stops_all_after_the_step_and_costs_nothing(base: Path, alone):
    """It comes in the last step of the second epoch, of which only the validation is left."""
    (output(base) / "signal").write_text(f"{signal.SIGUSR1:d} 1 1 4")
    assert together(2, ARGUMENTS) == [128 + signal.SIGUSR1] * 2
    stopped = checkpoint(output(base), "checkpoint_latest.pth")
    assert stopped["current_epoch"] == 1
    assert len(stopped["genesis"][UNFINISHED]) == 5
    assert together(2, ARGUMENTS) == [0, 0]
    assert_same(checkpoint(output(base)), alone)
    assert UNFINISHED not in checkpoint(output(base))["genesis"]


def test_a_fine_tuning_goes_on_within_the_epoch(base: Path, genesis):
    """Two processes, by SGD with momentum, from a control arm's plans; its encoder thaws in the epoch that is stopped."""
    control = ("--from-scratch", "--epochs", 3, "--iterations", 3, "--freeze-epochs", 1)
    assert genesis("transfer", *control, "-d", 4, "-c", "3d_fullres") == 0
    trainer = "nnUNetTrainerGenesisFragileFinetune"
    arguments = [str(word).replace("nnUNetTrainerGenesisFinetune", trainer).replace("_genesis", "_scratch")
                 for word in FINETUNE]  # fmt: skip
    folder = output(base, f"Dataset004_Target/{trainer}__nnUNetPlans_scratch__3d_fullres/fold_0")
    assert together(2, arguments) == [0, 0]
    whole = checkpoint(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "signal").write_text(f"{signal.SIGTERM:d} 0 1 1")
    assert together(2, arguments) == [143, 143]
    assert together(2, arguments) == [0, 0]
    assert_same(checkpoint(folder), whole)


def gradients(rank: int, ranks: int, folder: Path) -> None:
    """Of three patches, by one process or by two, with two of them and one."""
    shares = [slice(None)] if ranks == 1 else [slice(0, 2), slice(2, 3)]
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{ranks}", rank=rank, world_size=ranks)
    seeded = torch.Generator().manual_seed(0)
    image, target = torch.randn(2, 3, 1, 8, 8, 8, generator=seeded, dtype=torch.float64)
    target[0, :, :5] = target[2, :, 2:3] = torch.nan
    found = []
    for kind in ("mse", "l1", "ssim"):
        layer = torch.nn.Conv3d(1, 1, 3, padding=1).double()
        for parameter in layer.parameters():
            torch.nn.init.constant_(parameter, 0.1)
        network = DistributedDataParallel(layer)
        RestorationLoss(kind)(network(image[shares[rank]]), target[shares[rank]]).backward()
        found += [parameter.grad.float() for parameter in layer.parameters()]
    if rank == 0:
        torch.save(found, folder / f"{ranks}.pt")
    dist.destroy_process_group()


def test_gradients_of_unequal_shares_are_those_of_one_process(tmp_path: Path):
    """Patches and finite voxels of two processes differ in number."""
    assert forked(gradients, [(0, 1, tmp_path)]) == [0]
    assert forked(gradients, [(rank, 2, tmp_path) for rank in range(2)]) == [0, 0]
    torch.testing.assert_close(torch.load(tmp_path / "1.pt"), torch.load(tmp_path / "2.pt"))


NAMES = {"num_gpus": 1, "pretrained_weights": None, "device": torch.device("cpu"), "trainer_class_name": TRAINER}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, None),
        ({"num_gpus": 2}, "-num_gpus is for nnUNetv2_train"),
        ({"pretrained_weights": "a.pth"}, "-pretrained_weights is for nnUNetv2_train"),
        ({"trainer_class_name": "nnUNetTrainer"}, "The trainer nnUNetTrainer is nnU-Net's"),
        ({"device": torch.device("cuda")}, "There is no GPU for process 3 of this machine. Use --nproc-per-node 2"),
    ],
)
def test_what_processes_of_torchrun_refuse(base: Path, monkeypatch, wrong, message):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if message is None:
        distributed.check(NAMES)
    else:
        with pytest.raises(GenesisError, match=message):
            distributed.check(NAMES | wrong)


def test_without_torchrun_there_is_one_line(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit, match="RANK is not set. Start all processes by torchrun"):
        distributed.main()


def trainer_of(base: Path, **settings: object) -> Any:
    edit_plans(pretraining_plans(base), **{f"genesis__pretraining__{name}": each for name, each in settings.items()})
    return get_trainer_from_args("501", "3d_fullres", "all", TRAINER, "nnUNetGenesisPlans", device=CPU)


def test_a_batch_per_device_makes_the_batch_of_all(base: Path, monkeypatch):
    monkeypatch.setattr(RankedTrainer, "processes", 3)
    trainer = trainer_of(base, batch_per_device=4)
    assert trainer.configuration_manager.batch_size == 12
    assert trainer.my_init_kwargs["plans"]["configurations"]["3d_fullres"]["batch_size"] == 6


def test_processes_without_a_patch_or_with_different_checkpoints_are_refused(base: Path, monkeypatch):
    trainer = trainer_of(base)
    monkeypatch.setattr(RankedTrainer, "gathered", lambda self, own: [own, (1, 2)])
    with pytest.raises(SystemExit, match="different epochs .0, 1.: they do not see the same checkpoint"):
        trainer.on_train_start()
    monkeypatch.setattr(RankedTrainer, "processes", 7)
    with pytest.raises(SystemExit, match="7 processes cannot share batches of 6 patches"):
        trainer.initialize()


def test_signals_are_noted_only_while_they_are_watched_and_loading_processes_ignore_them():
    assert not interruption.watched()
    interruption.watch()
    try:
        assert interruption.received() == 0
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interruption.received() == signal.SIGUSR1
        interruption.ignore(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.received() == signal.SIGUSR1
    finally:
        interruption.unwatch()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
