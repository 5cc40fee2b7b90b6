"""The same pre-training by one process and by several, started by torchrun: how far the losses of its steps differ.

    python benchmarks/processes.py --json processes.json

A tiny pre-training of 20 steps in 4 epochs on CPUs, gloo on loopback: nnUNetv2_train, then `torchrun -m
nnunet_genesis.distributed` as one and as two machines, one of them with a process that is killed in the third epoch.
In double precision and in float32, with AdamW and with SGD, which does not divide gradients by their size. The loss of
a step is the mean of the processes' own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from measuring import facts, table
from nnunetv2.run import run_training as stock
from pretraining_throughput import SYNTHETIC, make_dataset
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from nnunet_genesis import distributed
from nnunet_genesis.files import read_json, write_json
from nnunet_genesis.nnunet_dataset import dataset_name, preprocessed_folder
from nnunet_genesis.resources import trainers_folder

TRAINER = "nnUNetTrainerGenesisMeasured"
SOURCE = f'''
import json, os, signal
from pathlib import Path
import torch
from nnunet_genesis.pretraining.trainer import nnUNetTrainerGenesisPretrain

PRECISION, OPTIMISER, KILLED = os.environ["MEASURED"].split()

class {TRAINER}(nnUNetTrainerGenesisPretrain):
    """Notes the loss of each step; precision and optimiser are those that the environment names."""

    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.logger.local_logger.plot_progress_png = lambda folder: None

    @staticmethod
    def build_network_architecture(plans_manager, configuration, *others):
        network = nnUNetTrainerGenesisPretrain.build_network_architecture(plans_manager, configuration, *others)
        dtype = getattr(torch, PRECISION)
        network.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(dtype),))
        return network.to(dtype)

    def configure_optimizers(self):
        optimizer, schedule = super().configure_optimizers()
        if OPTIMISER == "SGD":
            optimizer = torch.optim.SGD(self.network.parameters(), 0.01, momentum=0.99, nesterov=True)
            schedule.optimizer = optimizer
        return optimizer, schedule

    def train_step(self, batch):
        mark = Path(self.output_folder) / "killed"
        if (self.local_rank, self.current_epoch, len(self.losses)) == (3, 2, 3) and KILLED == "1" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batch)

    def on_train_epoch_end(self, outputs):
        losses = [sum(step) / len(step) for step in zip(*self.gathered(self.losses))]
        if not self.local_rank:
            (Path(self.output_folder) / f"losses_{{self.current_epoch}}.json").write_text(json.dumps(losses))
        super().on_train_epoch_end(outputs)
'''
EPOCHS, STEPS = 4, 5
LAYOUTS = {"1": (0, 1, ""), "1 x 2": (1, 2, "c10d"), "1 x 4": (1, 4, "c10d"), "2 x 2": (2, 2, "c10d"),
           "2 x 2, one killed": (2, 2, "c10d"), "2 x 2, static": (2, 2, "static")}  # fmt: skip
"""Machines (0: nnUNetv2_train), processes on each, how they find each other."""
KINDS = (("float64", "AdamW"), ("float32", "AdamW"), ("float32", "SGD"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="(all; 1 is compared to)")
    parser.add_argument("--kinds", nargs="+", type=int, default=list(range(len(KINDS))), help=f"numbers of {KINDS}")
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="processes_") as folder:
        results = list(runs(Path(folder), options))
    header = ("precision, optimiser", "machines x processes", "first step", "20 steps", "weights", "epochs", "s")
    print(table(header, [list(one.values()) for one in results]), facts(None), sep="\n\n")
    if options.json:
        write_json(results, options.json)


def prepare(base: Path) -> None:
    """Tiny volumes, and plans for batches of six patches, of which four processes get two, two, one and one."""
    sizes = SimpleNamespace(volumes=6, volume=(24, 24, 24), template="tiny", p="nnUNetGenesisPlans", c="3d_fullres")
    make_dataset(base, sizes)  # type: ignore[arg-type]
    path = preprocessed_folder(dataset_name(str(SYNTHETIC))) / f"{sizes.p}.json"
    plans = read_json(path, "The plans", "")
    configuration = plans["configurations"][sizes.c]
    configuration |= {"batch_size": 6, "patch_size": [16, 16, 16]}
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 6, 8]
    plans["genesis"]["pretraining"] |= {"epochs": EPOCHS, "iterations": STEPS, "validation_iterations": 2,
                                        "save_every": 1, "plot_every": 100}  # fmt: skip
    write_json(plans, path)
    (base / "trainers").mkdir()
    (base / "trainers" / f"{TRAINER}.py").write_text(SOURCE)
    os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "0", "OMP_NUM_THREADS": "1"}
    os.environ["nnUNet_extTrainer"] = f"{trainers_folder()}{os.pathsep}{base / 'trainers'}"
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"


def runs(base: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each kind in each layout, compared to one process."""
    prepare(base)
    for precision, optimiser in (KINDS[number] for number in options.kinds):
        alone: dict[str, torch.Tensor] = {}
        for layout in dict.fromkeys(["1", *options.layouts]):
            if "killed" in layout and optimiser == "SGD":
                continue  # the trainer resumes states of AdamW only
            began = time.monotonic()
            os.environ["MEASURED"] = f"{precision} {optimiser} {int('killed' in layout)}"
            os.environ["nnUNet_results"] = str(base / f"{precision}_{optimiser}_{layout}".replace(" ", "_"))
            start(*LAYOUTS[layout])
            found = outcome(Path(os.environ["nnUNet_results"]))
            alone = alone or found
            losses = found["losses"] / alone["losses"] - 1
            result = {"kind": f"{precision}, {optimiser}", "layout": layout, "first": f"{abs(losses[0]):.0e}",
                      "largest": f"{losses.abs().max():.0e}",
                      "weights": f"{(found['weights'] - alone['weights']).abs().max():.0e}",
                      "epochs": int(found["epochs"]), "seconds": round(time.monotonic() - began)}  # fmt: skip
            print(*result.values(), sep=" | ", flush=True)
            yield result


def start(machines: int, processes: int, rendezvous: str) -> None:
    """Train, and wait for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    jobs: list[Any] = [multiprocessing.get_context("fork").Process(target=train, args=(port,))]
    if machines:
        jobs = [multiprocessing.get_context("fork").Process(target=torchrun, args=(machines, processes, words))
                for words in rendezvous_of(machines, rendezvous, port)]  # fmt: skip
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(900)
        if job.exitcode:
            raise SystemExit(f"It ended with {job.exitcode}.")


def rendezvous_of(machines: int, rendezvous: str, port: str) -> list[list[str]]:
    """Arguments of torchrun, for each machine."""
    if rendezvous == "static":
        return [["--node-rank", str(number), "--master-addr", "127.0.0.1", "--master-port", port]
                for number in range(machines)]  # fmt: skip
    return [["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "1"]] * machines


def torchrun(machines: int, processes: int, words: list[str]) -> None:
    """What the command torchrun does, but that its processes are forked and so need not import everything anew."""
    restarts = "0" if "--node-rank" in words else "1"
    numbers = ["--nnodes", str(machines), "--nproc-per-node", str(processes), "--max-restarts", restarts]
    config, _, _ = config_from_args(parse_args([*numbers, "--monitor-interval", "0.2", *words, "train"]))
    config.start_method = "fork"
    elastic_launch(config, train)("")


def train(port: str) -> None:
    """One of the processes; the only one, by nnU-Net's own command, if a port is given."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    plans = ["-p", "nnUNetGenesisPlans", "-device", "cpu"]
    sys.argv = ["train", str(SYNTHETIC), "3d_fullres", "all", "-tr", TRAINER, *plans]
    if port:
        stock.run_training_entry()
    else:
        distributed.main()


def outcome(results: Path) -> dict[str, torch.Tensor]:
    """Losses of all steps, weights one after the other, and how many epochs were trained."""
    (folder,) = results.glob("*/*/fold_all")
    losses = [json.loads((folder / f"losses_{epoch}.json").read_text()) for epoch in range(EPOCHS)]
    final = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    return {"losses": torch.tensor(losses, dtype=torch.float64).flatten(),
            "weights": torch.cat([tensor.double().flatten() for tensor in final["network_weights"].values()]),
            "epochs": torch.tensor(len(final["logging"]["train_losses"]))}  # fmt: skip


if __name__ == "__main__":
    main()
