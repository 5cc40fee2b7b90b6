"""Peak memory of a pair in copies of the patch, in a fresh process; `memory.py Z Y X` prints it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from measuring import smooth_volume
from stratified import strata

from nnunet_genesis.corruption import RECIPES, compile_loops, make_pair

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
FLOAT32 = 4
PAIRS = 8


def can_be_told(patch: Sequence[int]) -> bool:
    """Whether this is Linux, and the patch not so small that the kernel's rounding matters."""
    return RESET.exists() and math.prod(patch) >= 2**20


def memory_copies(patch: Sequence[int]) -> float:
    """Peak memory of a pair beyond the patch itself, in copies of the patch (float32, one channel).

    In a fresh process, whose high-water mark of resident memory is set back before the pairs, and whose malloc keeps
    nothing large that was freed (it would be used again unseen). `ru_maxrss` would not do: it cannot be set back, and
    starts at the peak of the process that started this one. tracemalloc does not see what torch allocates.
    """
    command = [sys.executable, __file__, *map(str, patch)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)


def growth(patch: Sequence[int]) -> float:
    """The same, of this process, over some pairs of the recipe "released"."""
    torch.set_num_threads(1)
    compile_loops()
    volume, halves = smooth_volume(patch, 0)[None].clone(), strata(RECIPES["released"])
    for recipe in halves:  # a small patch: what is loaded on first use is no cost of a pair
        make_pair(torch.arange(4096.0).view(1, 16, 16, 16), recipe, np.random.default_rng(0))
    RESET.write_text("5")
    before = _resident("VmRSS")
    for k in range(PAIRS):
        make_pair(volume, halves[k % 2], np.random.default_rng(k))
    return (_resident("VmHWM") - before) / (FLOAT32 * math.prod(patch))


def _resident(name: str) -> int:
    """A quantity of /proc/self/status in bytes."""
    return next(1024 * int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))


if __name__ == "__main__":
    print(growth([int(edge) for edge in sys.argv[1:]]))
