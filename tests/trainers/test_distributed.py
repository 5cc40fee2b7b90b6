"""Trainings by several processes: they learn what one process learns, also where they are stopped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args
from torch.nn.parallel import DistributedDataParallel

from nnunet_genesis import distributed
from nnunet_genesis.interruption import unwatch
from nnunet_genesis.pretraining.loss import RestorationLoss
from nnunet_genesis.ranks import UNFINISHED
from tests.conftest import run_stock, threads_for_processes
from tests.trainers.conftest import FINETUNE
from tests.trainers.fragile import ARGUMENTS, checkpoint, export, forked, output, prepare


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def train(*arguments: str) -> None:
    """What torchrun starts as `-m nnunet_genesis.distributed` and some arguments."""
    unwatch()  # a fork has the agent's handler of SIGTERM, which a process that waits for others never calls
    sys.argv = ["nnunet_genesis.distributed", *arguments]
    with pytest.MonkeyPatch.context() as patch:
        threads_for_processes(patch)
        distributed.main()
    assert not dist.is_initialized()


def agent(words: list[str], arguments: list[str], process: Callable[..., None] = train) -> None:
    """What torchrun is on one of two machines, but that its processes are forked."""
    usual = ["--nnodes", "2", "--monitor-interval", "0.1"]
    config, _, _ = config_from_args(parse_args([*usual, *words, "-m", "nnunet_genesis.distributed"]))
    config.start_method = "fork"
    elastic_launch(config, process)(*arguments)


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
    (output(base) / "signal").write_text(f"{signal.SIGKILL:d} 3 2 3 train")
    endpoint = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", "1"]
    words = ["--nproc-per-node", "2", "--max-restarts", "1", *endpoint]
    assert forked(agent, [(words, ARGUMENTS)] * 2) == [0, 0]
    assert not (output(base) / "signal").exists()
    assert_same(checkpoint(output(base)), alone)
    logs = sorted(output(base).glob("training_log_*.txt"))
    assert "Going on after 0 steps of epoch 2" in "".join(log.read_text() for log in logs)
    writers = [Path((output(base) / f"writes_{rank}").read_text()) for rank in range(4)]
    assert writers[0] == output(base).parent
    assert not set(writers[1:]) & {writers[0]}


def meet() -> None:
    unwatch()
    distributed.join(torch.device("cpu"))
    dist.barrier()
    dist.destroy_process_group()


def one_of_three(number: int, met: Path, port: int) -> None:
    """The first machine, one that is lost as soon as it has met the first, or the one that is started in its place."""
    rendezvous = DynamicRendezvousHandler.next_rendezvous

    def lost(self: DynamicRendezvousHandler) -> None:
        rendezvous(self)
        met.touch()
        os._exit(9)

    if number == 1:
        DynamicRendezvousHandler.next_rendezvous = lost  # type: ignore[assignment, method-assign]
    while number == 2 and not met.exists():
        time.sleep(0.02)
    quick = f"is_host={int(number == 0)},keep_alive_interval=1,read_timeout=10"
    words = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "1", "--rdzv-conf", quick]
    agent(words, [], meet)


def test_a_machine_that_is_lost_as_soon_as_all_have_met_is_replaced(tmp_path: Path, monkeypatch):
    """With the settings of the docs the first agent has nothing to wait for that only the lost one could say."""
    export(monkeypatch)
    port = free_port()
    assert forked(one_of_three, [(number, tmp_path / "met", port) for number in range(3)]) == [0, 9, 0]


def test_machines_that_are_numbered_train_like_one_process(base: Path, alone):
    """torchrun without c10d: each machine is told its number, and the address of the first one."""
    words = ["--nproc-per-node", "1", "--master-addr", "localhost", "--master-port", str(free_port())]
    assert forked(agent, [([*words, "--node-rank", str(number)], ARGUMENTS) for number in range(2)]) == [0, 0]
    assert_same(checkpoint(output(base)), alone)


def test_four_processes_on_one_machine_train_like_one_process(base: Path, alone):
    assert together(4, ARGUMENTS) == [0] * 4
    assert_same(checkpoint(output(base)), alone)


def test_a_signal_to_one_process_stops_all_after_the_step_and_costs_nothing(base: Path, alone):
    """It comes in the validation of the second epoch, which is done again."""
    (output(base) / "signal").write_text(f"{signal.SIGUSR1:d} 1 1 5 validation")
    assert together(2, ARGUMENTS) == [128 + signal.SIGUSR1] * 2
    stopped = checkpoint(output(base), "checkpoint_latest.pth")
    assert stopped["current_epoch"] == 1
    assert len(stopped["genesis"][UNFINISHED]) == 5
    assert together(2, ARGUMENTS) == [0, 0]
    assert_same(checkpoint(output(base)), alone)
    assert UNFINISHED not in checkpoint(output(base))["genesis"]


def test_a_fine_tuning_goes_on_within_the_epoch(base: Path, genesis):
    """Two processes, by SGD with momentum, from a control arm's plans; stopped before and after its encoder thaws."""
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
    for moment in ("1 0 3 validation", "0 1 1 train"):
        (folder / "signal").write_text(f"{signal.SIGTERM:d} {moment}")
        assert together(2, arguments) == [143, 143]
    assert together(2, arguments) == [0, 0]
    assert_same(checkpoint(folder), whole)
    assert together(1, [*arguments, "--val"]) == [0]


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
