"""Batches that are addressed by their number → an endless stream of them, from worker processes or this one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from nnunet_genesis.interruption import ignore, watched
from nnunet_genesis.parallel import variable


class SeededBatches(Dataset[dict[str, Any]]):
    """Batches of nnU-Net's loader as a function of the seed and their number alone.

    nnU-Net draws cases, patches and augmentation from numpy's and torch's global generators. They are seeded for each
    batch and set back afterwards, so that the same batches come whatever the number of workers, and after a restart as
    without one.
    """

    def __init__(self, batches: Iterator[dict[str, Any]], seed: Sequence[int]) -> None:
        """Take an endless loader, which must remember nothing from one batch to the next, and a seed."""
        self.batches, self.seed = batches, tuple(seed)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Batch `number`, counted from 0."""
        for_numpy, for_torch = np.random.SeedSequence([*self.seed, number]).generate_state(2)
        before = np.random.get_state()  # noqa: NPY002
        with torch.random.fork_rng(devices=[]):
            try:
                np.random.seed(int(for_numpy))  # noqa: NPY002
                torch.manual_seed(int(for_torch))
                return next(self.batches)
            finally:
                np.random.set_state(before)  # noqa: NPY002


def load(
    batches: Dataset[dict[str, Any]], numbers: Iterable[int], workers: int, pin_memory: bool
) -> Iterator[dict[str, Any]]:
    """Batches with the given numbers, in that order, prepared by `workers` processes (0: by this one)."""
    return iter(
        DataLoader(
            batches,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            pin_memory=pin_memory,
            prefetch_factor=3 if workers else None,
            worker_init_fn=ignore if watched() else None,
        )
    )


def no_loading_processes() -> AbstractContextManager[None]:
    """nnU-Net starts no loading processes of its own in this block."""
    return variable("nnUNet_n_proc_DA", "0")
