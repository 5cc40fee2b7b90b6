"""How long the corruptions take, against the original code and the memory bus; as Markdown tables.

    python benchmarks/corruptions.py --json corruptions.json
    python benchmarks/corruptions.py --reference ModelsGenesis      # a clone of github.com/MrGiovanni/ModelsGenesis

Times are of `make_pair`, sampling included, on one core and one thread. Patches have one channel and are synthetic:
smooth with 5 % noise, z-scored, float32.

The recipe `released` shuffles every other patch, which makes its times bimodal: its mean over the same samples decides
what pairs cost, not its median. Samples are stratified: exactly half of the patches are shuffled, here and in the
original code. The ratio to the original code is its time divided by ours (above 1: ours is faster): the totals of a
block of our samples and a block of its samples, after one untimed sample each; the median over the rounds.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", NUMBA_NUM_THREADS="1")  # read when numpy is imported

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import bandwidth, facts, machine, seconds, size, smooth_volume, table
from memory import can_be_told, memory_copies
from original import Original
from stratified import strata

from nnunet_genesis.corruption import RECIPES, Recipe, compile_loops, make_pair
from nnunet_genesis.files import write_json

RECIPE = "released"
PATCHES = [(64, 64, 32), (128, 128, 128), (160, 160, 160)]
FLOAT32 = 4


def main() -> None:
    """Measure and print."""
    options = parse_options()
    torch.set_num_threads(1)
    compile_loops()
    speed = bandwidth()
    rows, rounds = [], {}
    for patch in options.patch:
        samples = options.samples or (100 if math.prod(patch) <= 2**18 else 20)
        print(f"{size(patch)}: {samples} samples …", file=sys.stderr, flush=True)
        volume = smooth_volume(patch, 0)[None]
        found, ratios = measured(volume, options.reference, samples, options.rounds)
        rows += [row | _limit(row, patch, speed) for row in found]
        rounds |= {size(patch): ratios} if ratios else {}
    results: dict[str, Any] = {
        "machine": machine(None),
        "bandwidth_gb_per_s": speed / 1e9,
        "timings": rows,
        "memory_in_patch_copies": {size(patch): memory_copies(patch) for patch in options.patch if can_be_told(patch)},
    }
    if rounds:
        results["ratio_to_reference"] = {name: statistics.median(ratios) for name, ratios in rounds.items()}
        results["ratio_to_reference_by_round"] = rounds
    report(results)
    if options.json:
        write_json(results, options.json)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--patch", type=int, nargs=3, action="append", metavar=("Z", "Y", "X"),
        help="patch size, repeatable (64 64 32, 128 128 128 and 160 160 160)")  # fmt: skip
    add(
        "--samples",
        type=int,
        metavar="N",
        help="samples per round, even (100 for small patches, 20 for large)",
    )
    add("--rounds", type=int, default=3, metavar="N", help="rounds of the full recipe (%(default)s)")
    add("--reference", type=Path, metavar="DIR", help="clone of Models Genesis; it takes patch edges from 20 voxels")
    add("--json", type=Path, metavar="FILE", help="write the results here, too")
    options = parser.parse_args()
    options.patch = options.patch or PATCHES
    if options.samples is not None and (options.samples < 2 or options.samples % 2):
        parser.error("--samples must be even and at least 2: half of the patches are shuffled")
    if options.reference:
        try:
            options.reference = Original(options.reference)
        except (FileNotFoundError, ImportError) as error:
            parser.error(f"--reference: {error}")
    return options


def measured(
    volume: torch.Tensor, original: Original | None, samples: int, rounds: int
) -> tuple[list[dict[str, Any]], list[float]]:
    """A row for each corruption and for the recipe, and the ratio to the original code in each round."""
    rows = []
    for name, recipe in RECIPES[RECIPE].alone().items():
        ours = pair_times(volume, (recipe,), samples, 0)
        theirs = part_times(volume, original, name, max(3, samples // 4)) if original else []
        row = _row(volume.shape[1:], name, ours)
        if theirs:
            median = 1000 * statistics.median(theirs)
            row |= {"original_ms": median, "ratio_to_original": median / row["median_ms"]}
        rows.append(row)
    ours, theirs, ratios = [], [], []
    for number in range(rounds):
        block = pair_times(volume, strata(RECIPES[RECIPE]), samples, number)
        ours += block
        if original:
            reference = original_times(volume, original, samples, number)
            theirs += reference
            ratios.append(sum(reference) / sum(block))
    row = _row(volume.shape[1:], RECIPE, ours)
    if ratios:
        row |= {"original_ms": 1000 * statistics.mean(theirs), "ratio_to_original": statistics.median(ratios)}
    return [*rows, row], ratios


def pair_times(volume: torch.Tensor, recipes: Sequence[Recipe], samples: int, seed: int) -> list[float]:
    """Times of our pairs in turn with each recipe, after an untimed one."""
    make_pair(volume, recipes[-1], np.random.default_rng([seed, samples]))
    generators = [np.random.default_rng([seed, k]) for k in range(samples)]
    return [
        seconds(lambda k=k, rng=rng: make_pair(volume, recipes[k % len(recipes)], rng))  # type: ignore[misc]
        for k, rng in enumerate(generators)
    ]


def original_times(volume: torch.Tensor, original: Original, samples: int, seed: int) -> list[float]:
    """Times of the original code's pairs, every other one shuffled, after an untimed one."""
    patch = volume.numpy()
    original.seed(seed)
    original.pair(patch, shuffled=True)
    return [seconds(lambda k=k: original.pair(patch, shuffled=k % 2 == 1)) for k in range(samples)]  # type: ignore[misc]


def part_times(volume: torch.Tensor, original: Original, name: str, samples: int) -> list[float]:
    """Times of one corruption of the original code, after an untimed call."""
    patch, part = volume.numpy(), original.parts[name]
    original.seed(0)
    part(patch)
    return [seconds(lambda: part(patch)) for _ in range(samples)]


def _row(patch: Sequence[int], name: str, times: Sequence[float]) -> dict[str, Any]:
    median, mean = 1000 * statistics.median(times), 1000 * statistics.mean(times)
    return {"patch": size(patch), "corruption": name, "samples": len(times), "median_ms": median,
            "mean_ms": mean}  # fmt: skip


def _limit(row: dict[str, Any], patch: Sequence[int], bytes_per_second: float) -> dict[str, float]:
    """Share of the physical limit: the time to read and write the patch once, divided by the mean time."""
    fastest = 1000 * 2 * FLOAT32 * math.prod(patch) / bytes_per_second
    return {"share_of_limit": fastest / row["mean_ms"]}


def report(results: dict[str, Any]) -> None:
    """Print the tables."""
    keys = ("patch", "corruption", "samples", "median_ms", "mean_ms", "original_ms", "ratio_to_original")
    header = (
        "patch",
        "corruption",
        "samples",
        "median ms",
        "mean ms",
        "original ms",
        "times as fast",
        "of limit",
    )
    print(table(header, ([*map(row.get, keys), f"{row['share_of_limit']:.1%}"] for row in results["timings"])))
    print(
        f"\nOriginal: mean for `{RECIPE}` (whose mean decides, it is bimodal), median for single corruptions. Limit: "
        f"patch read and written once at measured bandwidth ({results['bandwidth_gb_per_s']:.3g} GB/s), divided by the "
        "mean.\n"
    )
    if results["memory_in_patch_copies"]:
        header = ("patch", "peak memory, in patch copies")
        print(table(header, results["memory_in_patch_copies"].items()))
        print("\nBeyond the given patch, the returned pair included; resident memory of a fresh process.\n")
    print(facts(None))


if __name__ == "__main__":
    main()
