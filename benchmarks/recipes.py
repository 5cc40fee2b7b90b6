"""Which recipe teaches a network most? Pre-trains once per recipe and seed, tests each network on every corruption.

    python benchmarks/recipes.py -d 501 -p nnUNetGenesisPlans --epochs 12 --iterations 60 --lr 0.003 \
        --recipes paper released 'released+{"flip_probability": 0}' --seeds 0 1

A recipe is a name, or a name and a block that changes it. The dataset must be preprocessed; crops, corruptions,
initial weights and the volumes held out follow from the seed. Networks are tested on held-out patches that are the
same for all recipes: each corruption alone in the sizes of "paper" and of "released", and both mixtures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import add_device

from nnunet_genesis.checkpoints.saving import versions
from nnunet_genesis.corruption import RECIPES, Recipe
from nnunet_genesis.files import write_json
from nnunet_genesis.nnunet_dataset import dataset_name, read_dataset_json, read_plans


def recipe_of(text: str) -> Recipe:
    """`released+{"flip_probability": 0}` → that recipe."""
    name, _, block = text.partition("+")
    return RECIPES[name].updated(json.loads(block or "{}"), text)


def tests() -> dict[str, Recipe]:
    """What every network is tested on."""
    chosen = {}
    for name in ("paper", "released"):
        still = RECIPES[name].updated({"flip_probability": 0}, name)
        chosen[f"{name}: mixture"] = still
        chosen |= {f"{name}: {single}": recipe for single, recipe in still.alone().items()}
    return chosen


def pretrained(chosen: argparse.Namespace, recipe: Recipe, seed: int) -> dict[str, dict[str, float]]:
    """Errors of one network on every test."""
    from nnunet_genesis.pretraining.trainer import nnUNetTrainerGenesisPretrain

    dataset = dataset_name(chosen.d)
    plans = read_plans(dataset, chosen.p)
    plans["continue_training"] = False  # as nnU-Net's own command sets it
    plans["genesis"] = {
        "pretraining": {
            "epochs": chosen.epochs, "iterations": chosen.iterations, "validation_iterations": chosen.validation,
            "learning_rate": chosen.lr, "seed": seed, "recipe": recipe.block(), "plot_every": chosen.epochs,
        }
    }  # fmt: skip
    trainer = nnUNetTrainerGenesisPretrain(
        plans, chosen.c, "all", read_dataset_json(dataset), torch.device(chosen.device)
    )
    trainer.run_training()
    trainer.network.eval()
    return {name: trainer.errors_on_held_out(test) for name, test in tests().items()}


def table(results: dict[str, list[dict[str, dict[str, float]]]]) -> str:
    """Mean MSE over the seeds as Markdown: a row per test, a column per recipe, and both baselines."""
    runs = [run for of_recipe in results.values() for run in of_recipe]
    lines = [f"| held-out MSE | {' | '.join(results)} | copying | patch mean |", "|---" * (len(results) + 3) + "|"]
    for test in runs[0]:
        cells = []
        for of_recipe in results.values():
            values = [run[test]["mse"] for run in of_recipe]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        cells += [
            f"{statistics.mean(run[test][baseline] for run in runs):.3f}" for baseline in ("copy_mse", "mean_mse")
        ]
        lines.append(f"| {test} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train, test, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, metavar="ID", help="preprocessed dataset, id or name")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION")
    parser.add_argument("-p", default="nnUNetGenesisPlans", metavar="PLANS")
    parser.add_argument("--recipes", nargs="+", default=["paper", "released"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--validation", type=int, default=15, help="batches of held-out patches per test")
    parser.add_argument("--lr", type=float, default=0.003)
    add_device(parser, "cpu")
    parser.add_argument("--json", type=Path, help="file for all errors")
    chosen = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in chosen.seeds:
        for text in chosen.recipes:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["nnUNet_results"] = folder
                results.setdefault(text, []).append(pretrained(chosen, recipe_of(text), seed))
            print(table(results), flush=True)
            if chosen.json:
                facts = {"arguments": vars(chosen) | {"json": str(chosen.json)}, "versions": versions()}
                write_json(facts | {"results": results}, chosen.json)


if __name__ == "__main__":
    main()
