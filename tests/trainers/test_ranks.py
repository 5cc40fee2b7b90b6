"""What a trainer does as one of several processes, piece by piece; what is refused; signals."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from nnunetv2.run import run_training
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.logging import nnunet_logger

from nnunet_genesis import distributed, interruption
from nnunet_genesis.errors import GenesisError
from nnunet_genesis.ranks import RankedTrainer
from tests.trainers.conftest import CPU, edit_plans, pretraining_plans
from tests.trainers.fragile import TRAINER, forked, output, prepare


@pytest.fixture
def base(ready_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return prepare(ready_once, tmp_path, monkeypatch)


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


@pytest.mark.parametrize(("restarts", "shared"), [("0", "True"), ("3", "False"), ("3", "True")])
def test_restarts_are_refused_where_processes_would_look_for_those_before(base: Path, monkeypatch, restarts, shared):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    refused = pytest.raises(GenesisError, match="export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1")
    with refused if (restarts, shared) == ("3", "True") else nullcontext():
        distributed.check(NAMES)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_without_torchrun_there_is_one_line(monkeypatch, name):
    for each in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(each, "0")
    monkeypatch.delenv(name)
    with pytest.raises(SystemExit, match=f"variable {name} is not set. Start all processes by torchrun"):
        distributed.main()


@pytest.fixture
def as_the_only_one(monkeypatch) -> None:
    """What torchrun tells the only process that it starts."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        monkeypatch.setenv("MASTER_PORT", str(probe.getsockname()[1]))
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)


def test_a_refused_training_does_not_begin_and_leaves_nnunets_command_as_it_was(as_the_only_one, monkeypatch):
    train = run_training.run_training
    monkeypatch.setattr("sys.argv", ["", "501", "3d_fullres", "all", "-num_gpus", "2", "-device", "cpu"])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    with pytest.raises(SystemExit, match="-num_gpus is for nnUNetv2_train"):
        distributed.main()
    assert run_training.run_training is train
    assert not dist.is_initialized()


def test_processes_wait_for_the_first_one_as_long_as_a_final_validation_may_take(as_the_only_one):
    distributed.join(CPU)
    try:
        assert interruption.watched()
        assert dist.group.WORLD._get_backend(CPU).options._timeout == distributed.PATIENCE
    finally:
        interruption.unwatch()
        dist.destroy_process_group()


def trainer_of(base: Path, **settings: object) -> Any:
    if settings:
        changes = {f"genesis__pretraining__{name}": each for name, each in settings.items()}
        edit_plans(pretraining_plans(base), **changes)
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
    monkeypatch.setattr(RankedTrainer, "processes", 6)
    trainer.initialize()


@pytest.fixture
def watching() -> Iterator[None]:
    interruption.watch()
    yield
    interruption.unwatch()


def test_a_signal_after_the_last_step_stops_before_the_final_validation(base: Path, watching):
    trainer = trainer_of(base)
    trainer.initialize()
    trainer.on_train_end()
    assert not interruption.watched()
    interruption.watch()
    os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(SystemExit) as ended:
        trainer.on_train_end()
    assert ended.value.code == 128 + signal.SIGUSR1
    assert (output(base) / "checkpoint_final.pth").is_file()


def as_one_of_two(check: Callable[[int], None], folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    check(rank)
    dist.destroy_process_group()


def two(check: Callable[[int], None], folder: Path) -> None:
    """Check something in each of two processes."""
    assert forked(as_one_of_two, [(check, folder, rank) for rank in range(2)]) == [0, 0]


def test_the_others_wait_for_the_first_process(tmp_path: Path):
    def check(rank: int) -> None:
        if rank == 0:
            time.sleep(0.3)
        with RankedTrainer.first_alone(SimpleNamespace(is_ddp=True, local_rank=rank)):  # type: ignore[arg-type]
            assert (tmp_path / "first").exists() == bool(rank)
            (tmp_path / "first").touch()

    two(check, tmp_path)


def test_one_process_reports_to_wandb(base: Path, monkeypatch):
    monkeypatch.setattr(nnunet_logger, "wandb", None)  # as where it is not installed, which nnU-Net says
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")

    def check(rank: int) -> None:
        with nullcontext() if rank else pytest.raises(RuntimeError, match="W&B is not installed"):
            trainer_of(base)

    two(check, base)


def test_batch_normalisation_is_over_all_processes(base: Path):
    """PyTorch has that for GPUs only."""
    layer = "torch.nn.modules.batchnorm.BatchNorm3d"
    edit_plans(pretraining_plans(base), configurations__3d_fullres__architecture__arch_kwargs__norm_op=layer)

    def check(rank: int) -> None:
        with pytest.raises(ValueError, match="SyncBatchNorm layers only work with GPU"):
            trainer_of(base).initialize()

    two(check, base)


def test_signals_are_noted_only_while_they_are_watched_and_loading_processes_ignore_them():
    assert not interruption.watched()
    interruption.watch()
    try:
        assert interruption.received() == 0
        for number in (signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
            assert interruption.received() == number
        interruption.ignore(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.received() == signal.SIGUSR1
        interruption.watch()
        assert interruption.received() == 0
    finally:
        interruption.unwatch()
    assert {signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)} == {signal.SIG_DFL}
