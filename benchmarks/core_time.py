"""Where the time of a core that prepares patches goes, step by step, against the memory bus; as a Markdown table.

    python benchmarks/core_time.py --json core_time.json

A synthetic volume (one channel, float32, smooth with 5 % noise) is written as nnU-Net 2.8 writes it (blosc2, chunks for
the patch size), and lies in the page cache. All times are processor time of one thread, per patch, so that other work
on the machine counts less than on the clock; of the transport, processor time of the worker's and of the trainer's
process. The steps take turns, round by round; medians over the rounds. Of a recipe that shuffles half of the patches,
the mean of both halves' medians. The physical limit is one read and one write of the patch: numpy copies it from memory
to memory, over more buffers than any cache holds, in the same rounds.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", NUMBA_NUM_THREADS="1")  # read when numpy is imported

import argparse
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import LARGE, facts, machine, size, smooth_volume, table
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from stratified import strata
from torch.utils.data import Dataset

from nnunet_genesis.batches import load
from nnunet_genesis.corruption import RECIPES, apply_params, compile_loops, room_for, sample_params
from nnunet_genesis.files import write_json
from nnunet_genesis.pretraining.patches import contrast, random_window, stacked
from nnunet_genesis.volume_index import read_volume

PATCHES = [(128, 128, 128), (160, 160, 160)]
BATCH = 2
LIMIT = "one read and one write: the limit"
PAIRS = {"paper": strata(RECIPES["paper"]), "released": strata(RECIPES["released"]), "masking": (RECIPES["masking"],)}
FROM_VOLUME = ("open the volume", "crop: read and decompress", "whether the crop is informative")
PADDING = "pad and stack (input and target)"
TRANSPORT = ("transport: the worker's part", "transport: the trainer's part, one copy included")


def main() -> None:
    """Measure and print."""
    options = parse_options()
    torch.set_num_threads(1)
    compile_loops()
    results: dict[str, Any] = {"machine": machine(None), "volume": options.volume, "rounds": options.rounds}
    results["ms"] = {size(patch): measured(patch, options.volume, options.rounds) for patch in options.patch}
    report(results)
    if options.json:
        write_json(results, options.json)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--patch", type=int, nargs=3, action="append", metavar=("Z", "Y", "X"),
        help="patch size, repeatable (128 128 128 and 160 160 160)")  # fmt: skip
    add("--volume", type=int, nargs=3, default=[256, 256, 200], metavar=("Z", "Y", "X"), help="(256 256 200)")
    add("--rounds", type=int, default=20, metavar="N", help="(%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the results here, too")
    options = parser.parse_args()
    options.patch = [tuple(patch) for patch in options.patch or PATCHES]
    return options


def measured(patch: tuple[int, ...], volume: Sequence[int], rounds: int) -> dict[str, float]:
    """Milliseconds per patch of each step."""
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="core_time_") as folder:
        write_volume(Path(folder), volume, patch)
        copy = memory_copy(patch)
        room = room_for(torch.empty(1, *patch))  # as a loading process has it from its first batch on
        for number in range(-1, rounds):  # the first one warms up
            for (name, half), seconds in one_round(Path(folder), patch, copy, room, number + 1).items():
                if number >= 0:
                    times[name, half].append(seconds)
    ms: dict[str, list[float]] = defaultdict(list)
    for (name, _), values in times.items():
        ms[name].append(1000 * statistics.median(values))
    return {name: statistics.mean(halves) for name, halves in ms.items()} | transport(patch, rounds)


def write_volume(folder: Path, shape: Sequence[int], patch: tuple[int, ...]) -> None:
    """A preprocessed case, as nnU-Net's preprocessor saves it."""
    data = smooth_volume(shape, 0)[None].numpy()
    blocks, chunks = comp_blosc2_params(data.shape, patch, data.itemsize)
    empty = np.zeros(data.shape, np.int16)
    nnUNetDatasetBlosc2.save_case(data, empty, {}, str(folder / "case"), chunks, blocks, chunks, blocks)


def memory_copy(patch: Sequence[int]) -> Callable[[int], None]:
    """A function that copies patch `number` to another place; there are more patches than any cache holds."""
    count = max(2, LARGE // (4 * math.prod(patch)))
    there, here = np.ones((count, *patch), np.float32), np.ones((count, *patch), np.float32)  # no page untouched
    return lambda number: np.copyto(here[number % count], there[number % count])


def one_round(
    folder: Path, patch: tuple[int, ...], copy: Callable[[int], None], room: tuple[torch.Tensor, ...], number: int
) -> dict[Any, float]:
    """Seconds of every step, done once with a crop of its own."""
    rng = np.random.default_rng(number)
    spent: dict[tuple[str, int], float] = {}

    def timed(call: Callable[[], Any], *name: Any) -> Any:
        began = time.thread_time()
        result = call()
        spent[name] = time.thread_time() - began  # type: ignore[index]
        return result

    timed(lambda: copy(number), LIMIT, 0)
    volume, _ = timed(lambda: read_volume(folder, "case", ".b2nd", segmented=False), FROM_VOLUME[0], 0)
    window = random_window(volume.shape, patch, rng)
    crop = timed(lambda: np.array(volume[window], dtype=np.float32), FROM_VOLUME[1], 0)
    timed(lambda: contrast(crop, None, np.ones(1)), FROM_VOLUME[2], 0)
    clean = torch.from_numpy(crop)
    for name, halves in PAIRS.items():
        for half, recipe in enumerate(halves):
            params = timed(partial(sample_params, clean.shape, recipe, rng), f"sample params, `{name}`", half)
            timed(partial(apply_params, clean, params, None, room), f"pair, `{name}`", half)
    return spent


class Stamped(Dataset[dict[str, Any]]):
    """Batches of whole patches that say what the processor had done when they were ready, and how long it made them."""

    def __init__(self, patch: tuple[int, ...]) -> None:
        """Take the shape of a patch."""
        self.patch = patch
        self.pairs = [torch.ones(BATCH, 1, *patch) for _ in ("data", "target")]

    def __getitem__(self, number: int) -> dict[str, Any]:
        """New tensors, as a batch has: those that were sent already would cost nothing."""
        began = time.thread_time()
        data, target = (stacked(patches, self.patch, 0.0) for patches in self.pairs)
        making = time.thread_time() - began
        return {"data": data, "target": target, "making": making, "ready": time.process_time()}


def transport(patch: tuple[int, ...], rounds: int) -> dict[str, float]:
    """Milliseconds per patch to stack input and target in a worker, and to bring them to the trainer's memory."""
    own, making, worker, trainer = torch.zeros(BATCH, 1, *patch), [], [], []
    before, ready = time.process_time(), math.nan
    for batch in load(Stamped(patch), range(rounds + 3), 1, pin_memory=False):
        own.copy_(batch["data"])
        own.copy_(batch["target"])
        making.append(batch["making"])
        worker.append(batch["ready"] - batch["making"] - ready)
        trainer.append(time.process_time() - before)
        before, ready = time.process_time(), batch["ready"]
    steady = [times[2:] for times in (making, worker, trainer)]  # the first ones start it up
    parts = [1000 / BATCH * statistics.median(times) for times in steady]
    return dict(zip((PADDING, *TRANSPORT), parts, strict=True))


def report(results: dict[str, Any]) -> None:
    """Print the table."""
    found = list(results["ms"].values())
    header = ["step", *(cell for patch in results["ms"] for cell in (f"{patch}, ms", "times the limit"))]
    rows = [[name, *(cell for ms in found for cell in (ms[name], ms[name] / ms[LIMIT]))] for name in found[0]]
    for recipe in PAIRS:
        steps = [*FROM_VOLUME, f"sample params, `{recipe}`", f"pair, `{recipe}`", PADDING, TRANSPORT[0]]
        sums = [math.fsum(ms[step] for step in steps) for ms in found]
        cells = [cell for ms, total in zip(found, sums, strict=True) for cell in (total, total / ms[LIMIT])]
        rows.append([f"**all of a worker, `{recipe}`**", *cells])
    print(table(header, rows))
    print(f"\nProcessor time of one thread, per patch. {facts(None)}")


if __name__ == "__main__":
    main()
