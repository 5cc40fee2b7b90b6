"""Patches with hidden cells → what is restored without learning: the baselines of a masked autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.spatial import QhullError
from torch import Tensor

from nnunet_genesis.pretraining.cells import grid_of, visible_cells, voxels_of


def guesses(patches: Tensor, cell: Sequence[int]) -> dict[str, Tensor]:
    """What may be guessed of hidden cells.

    Args:
        patches: (B, C, *patch); a cell is hidden if it holds a NaN.
        cell: Edges of a cell in voxels.

    Returns:
        "visible_mse": the mean of each channel's visible voxels; "infill_mse": means of visible cells, interpolated to
        hidden cells and from cells to voxels, linearly. Both (B, C, *patch), in the patches' intensities; the names are
        those of their errors.
    """
    visible = visible_cells(patches, cell)
    means = _visible_means(patches, visible, cell)
    return {"visible_mse": means.expand_as(patches), "infill_mse": infilled(patches, visible, cell)}


def _visible_means(patches: Tensor, visible: Tensor, cell: Sequence[int]) -> Tensor:
    seen = voxels_of(visible, cell, patches.shape[2:]).expand_as(patches)
    total = patches.float().where(seen, 0.0).sum((2, 3, 4), keepdim=True)
    return total / seen.sum((2, 3, 4), keepdim=True).clamp(min=1)


def infilled(patches: Tensor, visible: Tensor, cell: Sequence[int]) -> Tensor:
    """Trilinear in-filling: hidden cells by linear interpolation between the centres of visible ones around them.

    Beyond their hull, or where they span no volume, the nearest visible cell counts.

    Args:
        patches: (B, C, *patch).
        visible: bool (B, cells), row-major, some of them True for each patch.
        cell: Edges of a cell in voxels.
    """
    grid = grid_of(patches.shape[2:], cell)
    means = torch.nn.functional.avg_pool3d(torch.nan_to_num(patches.float()), tuple(cell))
    filled = means.clone()
    for n, shown in enumerate(visible.view(-1, *grid).cpu()):
        there, wanted = shown.nonzero().numpy(), (~shown).nonzero().numpy()
        if len(there) and len(wanted):
            values = _interpolated(there, means[n].cpu()[:, shown].T.numpy(), wanted)
            filled[n][:, ~shown] = torch.from_numpy(values.T).to(filled)
    return torch.nn.functional.interpolate(filled, patches.shape[2:], mode="trilinear", align_corners=False)


def _interpolated(
    there: np.ndarray[Any, np.dtype[np.int64]],
    values: np.ndarray[Any, np.dtype[np.float32]],
    wanted: np.ndarray[Any, np.dtype[np.int64]],
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Values (places, C) at places (places, 3) → those at the wanted ones."""
    nearest = np.asarray(NearestNDInterpolator(there, values)(wanted), dtype=np.float64)
    try:
        linear = np.asarray(LinearNDInterpolator(there, values)(wanted), dtype=np.float64)
    except QhullError:  # fewer than five places, or all in one plane
        return nearest
    return np.where(np.isnan(linear), nearest, linear)
