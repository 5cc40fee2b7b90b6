"""Which fine-tuning keeps what pre-training learned? Trains every arm several times, reports Dice on fold 0.

    python benchmarks/fine_tuning.py CHECKPOINT -d 4 -p nnUNetPlans --epochs 8 --iterations 75 --repeats 3 \
        --arms scratch '{}' '{"encoder_rate": 0.1}' '{"frozen_encoder": 2}' '{"learning_rate": 0.001}'

An arm is `scratch`, or a block of fine-tuning settings on top of the common ones. Data, folds and validation are
nnU-Net's; its training is not seeded, so the repeats differ in initial heads, patches and augmentation. The dataset
must be planned and preprocessed. Results go to a temporary folder; plans named BENCHMARK_… are left in the dataset.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import add_device

from nnunet_genesis.checkpoint import versions
from nnunet_genesis.datasets import dataset_name
from nnunet_genesis.files import read_json, write_json
from nnunet_genesis.locations import trainers_folder
from nnunet_genesis.transferring import transfer

TRAINER = "nnUNetTrainerGenesisFinetune"


def dice_of(chosen: argparse.Namespace, arm: str, plans: str) -> float:
    """Transfer, train, and read the mean Dice of nnU-Net's final validation."""
    schedule = {"epochs": chosen.epochs, "iterations": chosen.iterations, "warmup": chosen.warmup}
    checkpoint = None if arm == "scratch" else chosen.checkpoint
    settings = {} if arm == "scratch" else json.loads(arm)
    transfer(checkpoint, dataset_name(chosen.d), chosen.p, chosen.c, plans, schedule | settings)
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"nnUNet_results": folder, "nnUNet_extTrainer": str(trainers_folder())}
        command = ["nnUNetv2_train", chosen.d, chosen.c, "0", "-tr", TRAINER, "-p", plans, "-device", chosen.device]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if run.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
        (summary,) = Path(folder).glob("*/*/fold_0/validation/summary.json")
        return float(read_json(summary, "The validation", "")["foreground_mean"]["Dice"])


def table(results: dict[str, list[float]]) -> str:
    """Mean and standard deviation per arm, with every run, as Markdown."""
    lines = ["| fine-tuning | mean Dice | runs |", "|---|---|---|"]
    for arm, runs in results.items():
        spread = f" ± {statistics.stdev(runs):.3f}" if len(runs) > 1 else ""
        lines.append(f"| `{arm}` | {statistics.mean(runs):.3f}{spread} | {', '.join(f'{run:.3f}' for run in runs)} |")
    return "\n".join(lines)


def main() -> None:
    """Train all arms, one repeat after the other, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-d", required=True, metavar="ID", help="target dataset, id or name")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS")
    parser.add_argument("--arms", nargs="+", default=["scratch", "{}"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=75)
    parser.add_argument("--warmup", type=int, default=1)
    add_device(parser, "cpu")
    parser.add_argument("--json", type=Path, help="file for all results")
    chosen = parser.parse_args()
    results: dict[str, list[float]] = {}
    for _ in range(chosen.repeats):
        for number, arm in enumerate(chosen.arms):
            results.setdefault(arm, []).append(dice_of(chosen, arm, f"BENCHMARK_{os.getpid()}_{number}"))
            print(table(results) + "\n", flush=True)
            if chosen.json:
                facts: dict[str, Any] = {name: str(value) for name, value in vars(chosen).items()}
                write_json({"arguments": facts, "versions": versions(), "dice": results}, chosen.json)


if __name__ == "__main__":
    main()
