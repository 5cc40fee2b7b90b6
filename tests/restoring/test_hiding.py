"""Masks that show a volume in turn."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnunet_genesis.restoring.hiding import shown_in_turn

EDGES = st.integers(1, 9)


@given(st.tuples(EDGES, EDGES, EDGES), st.tuples(EDGES, EDGES, EDGES), st.integers(2, 7), st.integers(0, 3))
def test_every_voxel_is_shown_exactly_once_and_cells_as_a_whole(shape, edges, passes, seed):
    masks = list(shown_in_turn(shape, edges, passes, np.random.default_rng(seed)))
    times = torch.stack(masks).sum(0)
    assert times.shape == shape
    assert (times == 1).all()
    grid = [math.ceil(voxels / edge) for voxels, edge in zip(shape, edges, strict=True)]
    assert len(masks) == min(passes, math.prod(grid))
    counts = []
    for mask in masks:
        cells = np.zeros(grid, dtype=bool)
        for cell in np.ndindex(*grid):
            part = mask[tuple(slice(n * edge, (n + 1) * edge) for n, edge in zip(cell, edges, strict=True))]
            assert part.all() or not part.any()
            cells[cell] = part.all()
        counts.append(cells.sum())
    assert max(counts) - min(counts) <= 1


def test_the_generator_decides_which_cells():
    def masks(seed: int) -> torch.Tensor:
        return torch.stack(list(shown_in_turn((8, 8, 8), (2, 2, 2), 4, np.random.default_rng(seed))))

    assert torch.equal(masks(0), masks(0))
    assert not torch.equal(masks(0), masks(1))
