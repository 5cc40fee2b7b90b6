"""A batch is a function of seed and number, whatever generators nnU-Net draws from and whoever prepares it."""

# ruff: noqa: NPY002 (the global generators are what this is about)

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch

from nnunet_genesis.batches import SeededBatches, load, no_loading_processes


def drawn():
    """Batches from the global generators, as nnU-Net's augmentation draws them."""
    while True:
        yield {"data": torch.cat([torch.rand(3), torch.as_tensor(np.random.random(3))]), "keys": ["a"]}


def batches(seed: tuple[int, ...] = (0, 0, 0)) -> SeededBatches:
    return SeededBatches(Endless(), seed)


class Endless:
    """Picklable, unlike a generator."""

    def __next__(self):
        return next(drawn())


def taken(workers: int, first: int = 0, seed: tuple[int, ...] = (0, 0, 0)) -> list[list[float]]:
    stream = load(batches(seed), itertools.count(first), workers, False)
    return [batch["data"].tolist() for batch in itertools.islice(stream, 6)]


def test_workers_and_restarts_change_nothing():
    alone = taken(0)
    assert taken(2) == alone
    assert taken(3) == alone
    assert taken(0, first=2)[:4] == alone[2:]
    assert len({tuple(batch) for batch in alone}) == 6


@pytest.mark.parametrize("seed", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_seed_stream_and_rank_change_everything(seed):
    for one, other in zip(taken(0), taken(0, seed=seed), strict=True):
        assert not set(one) & set(other)


def test_the_global_generators_are_as_before():
    np.random.seed(3)
    torch.manual_seed(3)
    expected = np.random.random(), torch.rand(1)
    np.random.seed(3)
    torch.manual_seed(3)
    assert batches()[4]["data"].shape == (6,)
    assert (np.random.random(), torch.rand(1)) == expected


def test_nnunets_own_processes_are_off_for_a_moment(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "7")
    with pytest.raises(ZeroDivisionError), no_loading_processes():
        assert os.environ["nnUNet_n_proc_DA"] == "0"
        raise ZeroDivisionError
    assert os.environ["nnUNet_n_proc_DA"] == "7"
    monkeypatch.delenv("nnUNet_n_proc_DA")
    with no_loading_processes():
        pass
    assert "nnUNet_n_proc_DA" not in os.environ
