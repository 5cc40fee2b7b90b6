"""Which fine-tuning keeps what pre-training learned? Trains every arm with several seeds, reports Dice on fold 0.

    python benchmarks/fine_tuning.py CHECKPOINT -d 4 -p nnUNetPlans --epochs 10 --iterations 100 --seeds 0 1 2 \
        --arms '{"scratch": true}' '{}' '{"encoder_lr_scale": 0.1}' '{"freeze_epochs": 2}' '{"learning_rate": 0.003}'

An arm is a block of fine-tuning settings on top of the common ones, with `"scratch": true` for random initial weights.
The folds are nnU-Net's (`splits_final.json`), and so are training and final validation, but for two savings: two
validation steps per epoch, and no mirroring in the final validation. A seed sets initial weights, patches and
augmentation, the same in every arm. The dataset must be planned and preprocessed; plans named BENCHMARK_… are left in
it, models in a temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import add_device

from nnunet_genesis.checkpoints.saving import versions
from nnunet_genesis.files import read_json, write_json
from nnunet_genesis.nnunet_dataset import dataset_name
from nnunet_genesis.resources import trainers_folder
from nnunet_genesis.transfer.into_plans import transfer

TRAINER = "nnUNetTrainerGenesisFinetune"


def seed_all(seed: int) -> None:
    """nnU-Net's augmentation draws from the global generators."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002


def plans_of(chosen: argparse.Namespace, arm: str, seed: int) -> str:
    """Transfer, and the name of the plans written."""
    seed_all(seed)
    settings = {"epochs": chosen.epochs, "iterations": chosen.iterations, "warmup": chosen.warmup} | json.loads(arm)
    checkpoint = None if settings.pop("scratch", False) else chosen.checkpoint
    name = f"BENCHMARK_{chosen.arms.index(arm)}_{seed}"
    transfer(checkpoint, dataset_name(chosen.d), chosen.p, chosen.c, name, settings)
    return name


def dice_of(dataset: str, configuration: str, plans: str, device: str, seed: int) -> float:
    """Train, and the mean Dice of nnU-Net's final validation; in a process that trains with one thread."""
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.set_num_threads(1)
    seed_all(seed)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        trainer = get_trainer_from_args(dataset, configuration, 0, TRAINER, plans, device=torch.device(device))
        trainer.num_val_iterations_per_epoch = 2
        trainer.run_training()
        trainer.inference_allowed_mirroring_axes = None
        trainer.perform_actual_validation()
    summary = Path(trainer.output_folder) / "validation/summary.json"
    return float(read_json(summary, "The validation", "")["foreground_mean"]["Dice"])


def table(results: dict[str, dict[int, float]]) -> str:
    """Mean and standard deviation per arm, with every run, as Markdown."""
    lines = ["| fine-tuning | mean Dice | by seed |", "|---|---|---|"]
    for arm, by_seed in results.items():
        runs = [by_seed[seed] for seed in sorted(by_seed)]
        if runs:
            spread = f" ± {statistics.stdev(runs):.3f}" if len(runs) > 1 else ""
            each = ", ".join(f"{run:.3f}" for run in runs)
            lines.append(f"| `{arm}` | {statistics.mean(runs):.3f}{spread} | {each} |")
    return "\n".join(lines)


def main() -> None:
    """Train all arms, seed by seed, and print the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-d", required=True, metavar="ID", help="target dataset, id or name")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS")
    parser.add_argument("--arms", nargs="+", default=['{"scratch": true}', "{}"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    add_device(parser, "cpu")
    parser.add_argument("--json", type=Path, help="file for all results")
    chosen = parser.parse_args()
    facts: dict[str, Any] = {name: str(value) for name, value in vars(chosen).items()}
    results: dict[str, dict[int, float]] = {arm: {} for arm in chosen.arms}
    with tempfile.TemporaryDirectory() as folder:
        # nnU-Net reads its settings on import: the processes are started with these.
        os.environ |= {"nnUNet_results": folder, "nnUNet_extTrainer": str(trainers_folder())}
        os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
        with ProcessPoolExecutor(chosen.jobs, mp_context=get_context("spawn")) as pool:
            running = {}
            for seed, arm in product(chosen.seeds, chosen.arms):
                plans = plans_of(chosen, arm, seed)
                running[pool.submit(dice_of, chosen.d, chosen.c, plans, chosen.device, seed)] = arm, seed
            for training in as_completed(running):
                arm, seed = running[training]
                results[arm][seed] = training.result()
                print(table(results) + "\n", flush=True)
                if chosen.json:
                    write_json({"arguments": facts, "versions": versions(), "dice": results}, chosen.json)


if __name__ == "__main__":
    main()
