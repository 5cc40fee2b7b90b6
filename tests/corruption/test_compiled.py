"""The compiled loops: kept on disk, usable without a disk, small in memory."""

import os
import subprocess
import sys

USE = """
import numpy as np, torch
from nnunet_genesis.corruption import RECIPES, compile_loops, make_pair
from nnunet_genesis.corruption import compiled
compile_loops()
loops = compiled.shuffle_windows, compiled.map_piecewise, compiled.fill_with_noise, compiled.mirror, compiled.fill
"""


def python(code, **variables):
    run = subprocess.run(
        [sys.executable, "-c", USE + code], capture_output=True, text=True, env=os.environ | variables, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_second_process_does_not_compile_and_no_loop_leaves_its_arrays(tmp_path):
    """Machine code does not look where it reads and writes, unless Numba is told to let it."""
    count = "print([sum(loop.stats.cache_hits.values()) for loop in loops])"
    checked = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_BOUNDSCHECK": "1"}
    assert python(count, **checked) == "[0, 0, 0, 0, 0]"
    pairs = """
for shape in [(1, 1, 1), (1, 30, 40), (1, 1, 9, 9), (1, 20, 30, 33)]:
    for seed in range(3):
        for recipe in [RECIPES["paper"], RECIPES["released"], RECIPES["masking"], *RECIPES["released"].alone().values()]:
            make_pair(torch.randn(shape), recipe, np.random.default_rng(seed))
"""
    assert python(pairs + count, **checked) == "[1, 1, 1, 1, 1]"


def test_training_finds_the_loops_compiled():
    """float32 patches in 2D and 3D, with any recipe, need nothing that `compile_loops` has not compiled."""
    assert (
        python("""
before = [len(loop.signatures) for loop in loops]
for shape in [(2, 9, 9), (1, 8, 9, 10)]:
    for recipe in (recipe for name, recipe in RECIPES.items() if name != "mae"):
        make_pair(torch.randn(shape), recipe, np.random.default_rng(0))
print(before == [len(loop.signatures) for loop in loops])
""")
        == "True"
    )


def test_without_a_folder_to_write_to_loops_are_compiled_in_memory():
    assert (
        python("""
from numba.core.caching import CacheImpl
CacheImpl._locator_classes = []
kept = compiled.compiled(lambda x: x + 1)
print(kept(41))
""")
        == "42"
    )


def test_pairs_take_little_more_than_their_two_copies_of_the_patch():
    """Peak of resident memory over 8 pairs at 160³; a copy has 16,000 kB."""
    peak = python("""
from pathlib import Path
def memory(key):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if key in line)
patch = torch.randn(1, 160, 160, 160)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = memory("VmRSS")
for seed in range(8):
    make_pair(patch, RECIPES["released"], np.random.default_rng(seed))
print((memory("VmHWM") - before) / 16_000)
""")
    assert 1.9 < float(peak) < 2.5
