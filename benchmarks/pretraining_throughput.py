"""Whether loading and corruption keep pace with the GPU: patches per second of the whole trainer, as a Markdown table.

    python benchmarks/pretraining_throughput.py --json throughput.json
    python benchmarks/pretraining_throughput.py -d 501 -c 3d_fullres -p nnUNetGenesisPlans     # your own dataset

A real nnUNetTrainerGenesisPretrain trains on a preprocessed dataset: one of yours, or a synthetic one that is written,
imported, planned and preprocessed in a temporary folder. Rows differ in the number of loading processes, which also
corrupt. The baseline, measured before and after them, trains on one batch that stays on the device:
nothing is loaded and nothing corrupted (as in nnU-Net's benchmark without data loading). Only training steps are
timed, no validation. On CUDA, "peak GB" is the most that tensors held, "taken GB" all of the device that was in use
(as nvidia-smi shows it). Before timing, every row trains on more batches than its loaders prefetch. Waiting is the time
in which the trainer had no batch.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch
from measuring import add_device, facts, machine, memory, size, smooth_volume, synchronize, table

from nnunet_genesis import cli
from nnunet_genesis.errors import GenesisError
from nnunet_genesis.files import write_json
from nnunet_genesis.nnunet_dataset import dataset_name, read_dataset_json, read_plans
from nnunet_genesis.planning import PLANS_NAME

SYNTHETIC = 999
PREFETCHED = 3
"""Batches that each loading process prepares ahead."""


def main() -> None:
    """Measure and print."""
    options = parse_options()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory(prefix="throughput_") as folder, contextlib.redirect_stdout(sys.stderr):
        os.environ["nnUNet_results"] = str(Path(folder) / "nnUNet_results")  # never among real results
        if options.d is None:
            options.d = make_dataset(Path(folder), options)
        if device.type == "cuda":  # as nnUNetv2_train does
            torch.set_num_threads(1)
            torch.backends.cudnn.benchmark = True
        trainer = make_trainer(options, device)
        results = measure(trainer, options)
    results = {"machine": machine(device)} | results
    report(results, device)
    if options.json:
        write_json(results, options.json)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-d", metavar="ID", help="preprocessed dataset, id or name (a synthetic one)")
    add("-c", default="3d_fullres", metavar="CONFIGURATION", help="%(default)s")
    add("-p", default=PLANS_NAME, metavar="PLANS", help="%(default)s")
    add_device(parser, "cpu")
    add("--workers", type=int, nargs="+", default=[0, 1, 2, 4, 8, 12], metavar="N", help="loading processes; numbers "
        "above that of the cores are left out, as nnU-Net would not start so many")  # fmt: skip
    add("--iterations", type=int, metavar="N", help="timed steps (100 on CUDA, 20 on the CPU)")
    add("--warm-up", type=int, default=10, metavar="N", help="least number of untimed steps before (%(default)s)")
    synthetic = parser.add_argument_group("synthetic dataset").add_argument
    synthetic("--template", metavar="NAME", help="plans (isotropic_1mm on CUDA, tiny on the CPU)")
    synthetic("--volumes", type=int, metavar="N", help="number of volumes (12 on CUDA, 4 on the CPU)")
    synthetic("--volume", type=int, nargs=3, metavar=("Z", "Y", "X"), help="their size (192 192 192 or 48 56 48)")
    add("--json", type=Path, metavar="FILE", help="write the results here, too")
    options = parser.parse_args()
    usual = {"cuda": (100, "isotropic_1mm", 12, [192] * 3), "cpu": (20, "tiny", 4, [48, 56, 48])}[options.device]
    for name, value in zip(("iterations", "template", "volumes", "volume"), usual, strict=True):
        setattr(options, name, getattr(options, name) or value)
    possible = [count for count in options.workers if count <= (os.cpu_count() or 1)]
    if len(possible) < len(options.workers):
        left_out = sorted(set(options.workers) - set(possible))
        print(f"Left out, there are {os.cpu_count()} cores: {left_out} loading processes", file=sys.stderr)
    options.workers = possible
    return options


def make_dataset(folder: Path, options: argparse.Namespace) -> str:
    """Write synthetic volumes below `folder`, make them a preprocessed dataset and return its id."""
    scans = folder / "scans"
    scans.mkdir()
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        (folder / name).mkdir()
        os.environ[name] = str(folder / name)
    for number in range(options.volumes):
        image = sitk.GetImageFromArray(smooth_volume(options.volume, number).numpy())
        sitk.WriteImage(image, str(scans / f"scan{number:03d}.nii.gz"))
    processes = min(4, os.cpu_count() or 1, options.volumes)
    genesis("import", "-d", SYNTHETIC, "-n", "Synthetic", "--channels", "MRI", "-np", processes, scans)
    genesis("plan", "-d", SYNTHETIC, "--template", options.template, "-p", options.p)
    genesis("preprocess", "-d", SYNTHETIC, "-c", options.c, "-p", options.p, "-np", processes)
    return str(SYNTHETIC)


def genesis(*words: Any) -> None:
    """Run a command of nnunet_genesis."""
    if code := cli.main([str(word) for word in words]):
        sys.exit(code)


def make_trainer(options: argparse.Namespace, device: torch.device) -> Any:
    """The trainer, ready for its first step, with its network on the device (compiled on a GPU, as nnU-Net does)."""
    from nnunet_genesis.pretraining.trainer import nnUNetTrainerGenesisPretrain

    name = dataset_name(options.d)
    plans = read_plans(name, options.p) | {"continue_training": False}
    dataset_json = read_dataset_json(name)
    trainer = nnUNetTrainerGenesisPretrain(plans, options.c, "all", dataset_json, device)
    trainer.initialize()
    trainer.dataset_class.unpack_dataset(trainer.preprocessed_dataset_folder, overwrite_existing=False)
    trainer.on_train_epoch_start()
    return trainer


def measure(trainer: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Baseline, all rows, baseline again."""
    batch = resident_batch(trainer)
    baseline = [baseline_run(trainer, batch, options)]
    rows = []
    for workers in options.workers:
        print(f"{workers} loading processes …", flush=True)
        rows.append(loaded_run(trainer, workers, options))
    baseline.append(baseline_run(trainer, batch, options))
    usual = sum(run["seconds"] for run in baseline) / len(baseline)
    for row in rows:
        row["ratio_to_baseline"] = row["seconds"] / usual
    return {
        "dataset": trainer.plans_manager.dataset_name,
        "configuration": trainer.configuration_name,
        "network": trainer.configuration_manager.network_arch_class_name,
        "patch_size": list(trainer.configuration_manager.patch_size),
        "batch_size": trainer.batch_size,
        "iterations": options.iterations,
        "baseline": baseline,
        "rows": rows,
    }


def resident_batch(trainer: Any) -> dict[str, torch.Tensor]:
    """One corrupted batch on the trainer's device."""
    training, _ = loaders(trainer, 0)
    batch = next(training)
    return {key: batch[key].to(trainer.device) for key in ("data", "target")}


def loaders(trainer: Any, workers: int) -> Any:
    """The trainer's batches to train and to validate on; their processes end when nothing refers to them any more."""
    os.environ["nnUNet_n_proc_DA"] = str(workers)
    return trainer.get_dataloaders()


def baseline_run(trainer: Any, batch: dict[str, torch.Tensor], options: argparse.Namespace) -> dict[str, float]:
    """Train on one batch again and again."""
    return timed_steps(trainer, itertools.repeat(batch), options.warm_up, options.iterations)


def loaded_run(trainer: Any, workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train as usual, with some loading processes; those for validation prefetch and then rest, as they do always."""
    training, _validation = loaders(trainer, workers)
    warm_up = max(options.warm_up, PREFETCHED * workers + 1)
    timed = timed_steps(trainer, training, warm_up, options.iterations)
    return {"workers": workers, **timed}


def timed_steps(trainer: Any, batches: Iterator[dict[str, Any]], warm_up: int, iterations: int) -> dict[str, float]:
    """Train; time the last `iterations` steps and the waiting for their batches."""
    for _ in range(warm_up):
        trainer.train_step(next(batches))
    synchronize(trainer.device)
    waited, began = 0.0, time.perf_counter()
    for _ in range(iterations):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        trainer.train_step(batch)
    synchronize(trainer.device)
    taken = time.perf_counter() - began
    patches = iterations * trainer.batch_size / taken
    return {"seconds": taken, "patches_per_s": patches, "waiting_share": waited / taken} | memory(trainer.device)


def report(results: dict[str, Any], device: torch.device) -> None:
    """Print the table."""
    runs = [{"workers": "none: always one batch"} | run for run in results["baseline"]]
    keys = ("workers", "patches_per_s", "seconds", "waiting_share", "ratio_to_baseline",
            "peak_gb", "taken_gb")  # fmt: skip
    header = ("loading processes", "patches/s", "seconds", "waiting", "time / baseline", "peak GB",
              "taken GB")  # fmt: skip
    rows = [run | {"waiting_share": f"{run['waiting_share']:.1%}"} for run in (*runs[:1], *results["rows"], *runs[1:])]
    print(table(header, (map(row.get, keys) for row in rows)))
    print(
        f"\n{results['iterations']} steps of {results['batch_size']} patches {size(results['patch_size'])}, "
        f"{results['network'].rsplit('.', 1)[-1]}, dataset {results['dataset']}, {results['configuration']}\n"
    )
    print(facts(device))


if __name__ == "__main__":
    try:
        main()
    except GenesisError as error:
        sys.exit(f"pretraining_throughput: {error}")
