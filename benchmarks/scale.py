"""100,000 volumes against 100: start, memory of a loading process, patches per second, size of a checkpoint.

    python benchmarks/scale.py --folder /somewhere/large --json scale.json

A few synthetic volumes are preprocessed, and linked (hard links, a few MB in all) under many names into datasets of
each size. Each measurement is the start of a real nnUNetTrainerGenesisPretrain in a process of its own: from the start
of the process to the first batch, then batches that are taken as fast as loading processes make them, nothing trained.
Memory is that of the loading processes after these batches (/proc/PID/smaps_rollup, Linux): private to one ("USS"), and
with its share of what is shared ("PSS"); of the trainer's own process, what is private and no page of a file. Sizes
take turns, `--repeat` times; medians are shown. The index of links is that of the few volumes, row by row; how long it takes
to compute is measured on the few.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import facts, table
from pretraining_throughput import SYNTHETIC, make_dataset

from nnunet_genesis.files import write_json
from nnunet_genesis.nnunet_dataset import dataset_name, read_dataset_json, read_plans
from nnunet_genesis.planning import PLANS_NAME
from nnunet_genesis.volume_index import VolumeIndex, _store, index_file, index_of

CONFIGURATION = "3d_fullres"
CPU = torch.device("cpu")


def main() -> None:
    """Measure and print."""
    options = parse_options()
    if options.measure:
        print(json.dumps(measured(options.measure, options.crops, options)))
        return
    with tempfile.TemporaryDirectory(prefix="scale_", dir=options.folder) as base:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[name] = str(Path(base) / name)
        with contextlib.redirect_stdout(sys.stderr):
            results = {"index": few(Path(base), options)}
            results["runs"] = list(runs(options))
    report(results, options)
    if options.json:
        write_json(results, options.json)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cases", type=int, nargs="+", default=[100, 100_000], metavar="N", help="sizes (100 100000)")
    add("--crops", type=int, nargs="+", default=[1, 4], metavar="N", help="crops of an opened volume (1 4)")
    add("--volumes", type=int, default=8, metavar="N", help="volumes that are linked (%(default)s)")
    add("--volume", type=int, nargs=3, default=[48, 56, 48], metavar=("Z", "Y", "X"), help="their size (48 56 48)")
    add("--template", default="tiny", help="plans (%(default)s)")
    add("--workers", type=int, default=2, metavar="N", help="loading processes (%(default)s)")
    add("--batches", type=int, default=400, metavar="N", help="batches that are timed (%(default)s)")
    add("--repeat", type=int, default=3, metavar="N", help="measurements of each size (%(default)s)")
    add(
        "--folder",
        type=Path,
        metavar="FOLDER",
        help="where the links are made, and removed again",
    )
    add("--json", type=Path, metavar="FILE", help="write the results here, too")
    add("--measure", metavar="DATASET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.p = PLANS_NAME
    options.c = CONFIGURATION
    return options


def few(base: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Preprocess the few volumes and link them; seconds that an index takes for each volume, and bytes."""
    make_dataset(base, options)
    source = folder_of(dataset_name(str(SYNTHETIC)))
    index_file(source).unlink(missing_ok=True)
    began = time.perf_counter()
    index = index_of(source)
    taken = time.perf_counter() - began
    sizes = []
    for number, cases in enumerate(options.cases):
        sizes.append({"cases": cases, "bytes": index_file(linked(index, cases, SYNTHETIC - 1 - number)).stat().st_size})
    return {"seconds_per_volume": taken / len(index), "sizes": sizes}


def folder_of(dataset: str) -> Path:
    """Where the volumes of a dataset lie."""
    return Path(os.environ["nnUNet_preprocessed"]) / dataset / f"{PLANS_NAME}_{CONFIGURATION}"


def linked(index: VolumeIndex, cases: int, number: int) -> Path:
    """Link the volumes of an index as a dataset of many cases, with its index; the folder of the links."""
    name, source = f"Dataset{number:03d}_Linked", index.folder
    folder = folder_of(name)
    folder.mkdir(parents=True)
    originals = index.readable()
    for case in range(cases):
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            os.link(source / f"{originals[case % len(originals)]}{ending}", folder / f"case{case:07d}{ending}")
    for file in ("dataset.json", "dataset_fingerprint.json", f"{PLANS_NAME}.json"):
        content = json.loads((source.parent / file).read_text())
        write_json(content | ({"dataset_name": name} if "configurations" in content else {}), folder.parent / file)
    names = np.array([f"case{case:07d}".encode() for case in range(cases)])
    rows = [case % len(originals) for case in range(cases)]
    columns = {key: column[rows] for key, column in index.columns.items()} | {"names": names}
    _store(VolumeIndex(folder, index.ending, folder.stat().st_mtime_ns, columns))
    return folder


def runs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measurements, sizes in turn."""
    for _ in range(options.repeat):
        for crops in options.crops:
            for number, cases in enumerate(options.cases):
                dataset = dataset_name(str(SYNTHETIC - 1 - number))
                print(f"{cases} cases, {crops} crops of a volume …", flush=True)
                command = [sys.executable, __file__, "--measure", dataset, "--crops", crops,
                           "--workers", options.workers, "--batches", options.batches]  # fmt: skip
                environment = os.environ | {"nnUNet_n_proc_DA": str(options.workers), "STARTED": str(time.time())}
                shown = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True,
                                       env=environment).stdout  # fmt: skip
                print(shown.splitlines()[-1], flush=True)
                yield {"cases": cases, "crops": crops, **json.loads(shown.splitlines()[-1])}
                shutil.rmtree(os.environ["nnUNet_results"], ignore_errors=True)


def measured(dataset: str, crops: list[int], options: argparse.Namespace) -> dict[str, Any]:
    """Start a training, take batches from it, save it."""
    from nnunet_genesis.pretraining.trainer import nnUNetTrainerGenesisPretrain

    plans = read_plans(dataset, PLANS_NAME) | {"continue_training": False}
    with contextlib.redirect_stdout(sys.stderr):
        trainer = nnUNetTrainerGenesisPretrain(plans, CONFIGURATION, "all", read_dataset_json(dataset), CPU)
        trainer.settings = replace(trainer.settings, crops_per_volume=crops[0])
        trainer.initialize()
        began = time.time()
        trainer.on_train_start()
        batches = iter(trainer.dataloader_train)
        next(batches)
        first, processor = time.time(), time.process_time() + cpu_seconds()
        for _ in range(8):
            next(batches)
        used, taken = cpu_seconds(), time.perf_counter()
        for _ in range(options.batches):
            next(batches)
        taken, used = time.perf_counter() - taken, cpu_seconds() - used
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    patches = options.batches * trainer.batch_size
    beside = sum(file.stat().st_size for file in Path(trainer.output_folder).glob("cases_*.npz"))
    return {
        "seconds_to_first_batch": first - float(os.environ["STARTED"]),
        "seconds_of_them_in_training_start": first - began,
        "cpu_seconds_to_first_batch": processor,
        "patches_per_s": patches / taken,
        "cpu_ms_per_patch": 1000 * used / patches,
        "uss_mb": max(memory_of(child)[0] for child in children()),
        "pss_mb": max(memory_of(child)[1] for child in children()),
        "main_dirty_mb": memory_of(os.getpid())[2],
        "checkpoint_bytes": (Path(trainer.output_folder) / "checkpoint_final.pth").stat().st_size,
        "beside_bytes": beside,
    }


def children() -> list[int]:
    """Loading processes of this one."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(pid)
    return found


def memory_of(pid: int) -> tuple[float, float, float]:
    """USS and PSS of a process in MB, and what of its USS is no copy of a file."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    sizes = {name: int(value) / 1000 for name, value, *_ in lines}
    return sizes["Private_Clean:"] + sizes["Private_Dirty:"], sizes["Pss:"], sizes["Private_Dirty:"]


def cpu_seconds() -> float:
    """Processor time of the loading processes so far."""
    ticks = 0
    for pid in children():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


COLUMNS = {
    "seconds_to_first_batch": "first batch, s",
    "seconds_of_them_in_training_start": "of them in the start of training",
    "cpu_seconds_to_first_batch": "first batch, CPU s",
    "patches_per_s": "patches/s",
    "cpu_ms_per_patch": "CPU ms/patch",
    "uss_mb": "USS, MB",
    "pss_mb": "PSS, MB",
    "main_dirty_mb": "trainer itself, MB",
    "checkpoint_bytes": "checkpoint, bytes",
    "beside_bytes": "record beside it, bytes",
}


def report(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the table."""
    rows = []
    for crops in options.crops:
        for cases in options.cases:
            same = [run for run in results["runs"] if (run["cases"], run["crops"]) == (cases, crops)]
            rows.append((f"{cases:,}", crops, *(statistics.median(run[key] for run in same) for key in COLUMNS)))
    print(table(("cases", "crops of an opened volume", *COLUMNS.values()), rows))
    index = results["index"]
    sizes = ", ".join(f"{one['bytes'] / 1e6:.1f} MB for {one['cases']:,} cases" for one in index["sizes"])
    print(f"\nIndex: {1000 * index['seconds_per_volume']:.0f} ms for a volume; {sizes}\n")
    print(facts(None))


if __name__ == "__main__":
    main()
