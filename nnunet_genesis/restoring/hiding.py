"""A grid over a volume → masks that show its cells in turn, each voxel once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def shown_in_turn(
    shape: Sequence[int], edges: Sequence[int], passes: int, rng: np.random.Generator
) -> Iterator[Tensor]:
    """Masks of which every voxel is in exactly one.

    Args:
        shape: Spatial shape of the volume.
        edges: Edge of a cell along each axis, in voxels.
        passes: Number of masks; fewer where there are fewer cells.
        rng: Decides in which mask a cell is; masks have the same number of cells, give or take one.

    Yields:
        Boolean tensors of the volume's shape, True where it is shown.
    """
    grid = [math.ceil(voxels / edge) for voxels, edge in zip(shape, edges, strict=True)]
    cells = math.prod(grid)
    turn = torch.from_numpy(rng.permutation(cells) % passes).view(grid)
    for number in range(min(passes, cells)):
        mask = turn == number
        for axis, (edge, voxels) in enumerate(zip(edges, shape, strict=True)):
            mask = mask.repeat_interleave(edge, axis).narrow(axis, 0, voxels)
        yield mask
