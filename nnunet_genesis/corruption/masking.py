"""Masking: patches of a grid are emptied, and only they are to be restored, as by a masked autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nnunet_genesis.corruption.boxes import Region
from nnunet_genesis.corruption.compiled import fill
from nnunet_genesis.corruption.corruption import Corruption, Params, for_loops
from nnunet_genesis.errors import SettingsError
from nnunet_genesis.settings_base import setting


@dataclass(frozen=True)
class MaskingParams(Params):
    """A grid over the patch, and which of its cells are masked.

    Attributes:
        edges: Edge of a cell along each spatial axis, in voxels.
        cells: Row-major numbers of the masked cells.
        value: What masked voxels are set to.
    """

    edges: tuple[int, ...]
    cells: tuple[int, ...]
    value: float

    def apply(self, channel: Tensor, low: float, high: float) -> None:
        """Set the masked voxels to 0, the mean of z-scored intensities and the value of padding, or to NaN."""
        fill(*for_loops(channel, self.kept(channel.shape)), self.value)

    def kept(self, shape: Sequence[int]) -> Region:
        """What is visible."""
        visible = np.ones(_grid(shape, self.edges), dtype=bool)
        visible.flat[list(self.cells)] = False
        cuts = (np.minimum(np.arange(cells + 1) * edge, voxels)
                for cells, edge, voxels in zip(visible.shape, self.edges, shape, strict=True))  # fmt: skip
        return Region(visible, tuple(cuts))

    def leave_out(self, target: Tensor) -> None:
        """Put NaN into what is visible."""
        if target.itemsize < 4:
            return super().leave_out(target)
        visible = self.kept(target.shape)
        fill(*for_loops(target, visible._replace(cells=~visible.cells)), math.nan)

    def loss_mask(self, shape: Sequence[int]) -> Tensor:
        """The masked voxels: what is visible needs no restoration."""
        masked = torch.zeros(_grid(shape, self.edges), dtype=torch.bool)
        masked.view(-1)[list(self.cells)] = True
        for axis, (edge, voxels) in enumerate(zip(self.edges, shape, strict=True)):
            masked = masked.repeat_interleave(edge, axis).narrow(axis, 0, voxels)
        return masked


@dataclass(frozen=True)
class Masking(Corruption):
    """Settings of masking: He et al. (CVPR 2022), in 3D Zhou et al. (SelfMedMAE, ISBI 2023) and nnssl."""

    probability: float = setting(0.0, "probability, per patch, of masking", at_least=0, at_most=1)
    ratio: tuple[float, float] = setting(
        (0.75, 0.75),
        "share of the cells that are masked; of two numbers, drawn between them for each patch",
        above=0,
        at_most=1,
    )
    cell_size: int | tuple[int, ...] = setting(
        16,
        "edge of a cell in voxels, also one number per axis; at most half of the patch edge; 0: the network's total "
        "stride, so that a cell is one voxel of its bottleneck",
        at_least=0,
        formerly="edge",
        per_axis=True,
    )
    masked_as: str = setting(
        "zeros",
        "what the network gets of masked cells: zeros, or nothing at all (a Primus, whose tokens are the cells)",
        choices=("zeros", "absent"),
    )

    @property
    def leaves_out(self) -> bool:
        """Whether the network gets nothing of masked cells: they are NaN in what it gets."""
        return self.masked_as == "absent"

    def fitted(self, stride: Sequence[int]) -> Masking:
        """These settings for a network, with its total stride along each axis in place of 0.

        Raises:
            SettingsError: `cell_size` has a number for each axis, but of another number of axes.
        """
        edges = zip(self._edges(len(stride)), stride, strict=True)
        return replace(self, cell_size=tuple(edge or step for edge, step in edges))

    def _edges(self, axes: int) -> tuple[int, ...]:
        edges = self.cell_size if isinstance(self.cell_size, tuple) else (self.cell_size,) * axes
        if len(edges) != axes:
            raise SettingsError(f'"cell_size" has {len(edges)} numbers, but patches have {axes} axes. Give one number.')
        return edges

    def edges(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Edges of a cell in patches of a shape, in voxels.

        Raises:
            SettingsError: `cell_size` is 0, or of another number of axes.
        """
        edges = self._edges(len(shape))
        if not self.leaves_out:
            edges = tuple(min(edge, math.ceil(voxels / 2)) for edge, voxels in zip(edges, shape, strict=True))
        if 0 in edges:
            raise SettingsError('"cell_size" is 0, which stands for the stride of a network. Give the edge in voxels.')
        return edges

    def sample(self, shape: Sequence[int], rng: np.random.Generator) -> MaskingParams:
        """Cells of a regular grid, at least one, each equally likely; not all of them where they are left out.

        Raises:
            SettingsError: As `edges`.
        """
        edges = self.edges(shape)
        cells = math.prod(_grid(shape, edges))
        low, high = self.ratio
        share = rng.uniform(low, high) if low < high else low  # plans with one number keep their random numbers
        most = cells - 1 if self.leaves_out else cells
        masked = rng.permutation(cells)[: max(1, min(round(share * cells), most))]
        return MaskingParams(edges, tuple(sorted(masked.tolist())), math.nan if self.leaves_out else 0.0)

    def sample_channels(
        self, channels: int, shape: Sequence[int], rng: np.random.Generator
    ) -> tuple[MaskingParams | None, ...]:
        """The same mask in every channel, or none: what one channel hides, another must not show."""
        return (self.sample(shape, rng) if rng.random() < self.probability else None,) * channels


def _grid(shape: Sequence[int], edges: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.ceil(voxels / edge) for voxels, edge in zip(shape, edges, strict=True))
