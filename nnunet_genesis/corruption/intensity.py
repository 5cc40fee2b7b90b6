"""Non-linear intensity: a channel goes in, the same channel on another monotone intensity scale comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from nnunet_genesis.corruption.boxes import Region, whole
from nnunet_genesis.corruption.compiled import map_piecewise
from nnunet_genesis.corruption.corruption import Corruption, Params, for_loops
from nnunet_genesis.settings_base import setting

KNOTS = 1024
_SPANS = (1e-30, 1e38)
"""Widths of a value range that float32 can divide by."""
_T = np.linspace(0.0, 1.0, 4097)
_BERNSTEIN = 3 * (1 - _T) ** 2 * _T, 3 * (1 - _T) * _T**2, _T**3
_ARGUMENTS = np.linspace(0.0, 1.0, KNOTS)


@dataclass(frozen=True)
class IntensityParams(Params):
    """The inner control points of a cubic Bézier curve in the unit square.

    The curve, stretched so that it maps the value range onto itself, is a strictly monotone map of all real numbers:
    values beyond an end keep their distance to the end, or to the opposite one if the curve decreases.

    From Models Genesis (Zhou et al., MICCAI 2019 and MedIA 2021, on non-linear transformation). How ours differs: the
    value range is the patch's own, not [0, 1], and what lies outside it does not collapse to a constant; the curve is
    looked up on a grid uniform in intensity.

    Attributes:
        first: (x, y) of the control point next to (0, 0), each 0..1.
        second: (x, y) of the control point next to (1, 1), each 0..1.
        decreasing: Whether the curve is mirrored in y, which inverts the contrast.
    """

    first: tuple[float, float]
    second: tuple[float, float]
    decreasing: bool

    def table(self) -> npt.NDArray[np.float64]:
        """Values 0..1 of the curve at `KNOTS` equidistant arguments in [0, 1]; strictly monotone.

        x(t) and y(t) need no sorting: x'(t) / 3 = (1-t)² x1 + 2 (1-t) t (x2-x1) + t² (1-x2) is never negative for
        x1, x2 in [0, 1], because (x1-x2)² <= x1 (1-x2) where x2 < x1. The same holds for y.
        """
        x, y = (
            _BERNSTEIN[0] * a + _BERNSTEIN[1] * b + _BERNSTEIN[2] for a, b in zip(self.first, self.second, strict=True)
        )
        values: npt.NDArray[np.float64] = np.interp(_ARGUMENTS, x, y)
        return 1.0 - values if self.decreasing else values

    def apply(self, channel: Tensor, low: float, high: float) -> None:
        """Send all values along the curve; nothing changes where the value range has no width."""
        self.apply_where_kept(channel, low, high, whole(channel.shape))

    def apply_where_kept(self, channel: Tensor, low: float, high: float, region: Region) -> None:
        """Send all values of a region, and some beside it, along the curve."""
        if not _SPANS[0] < high - low < _SPANS[1]:
            return
        table = low + (high - low) * self.table()
        step = np.diff(table)
        base = table[:-1] - step * np.arange(KNOTS - 1)
        rise = step * ((KNOTS - 1) / (high - low))
        map_piecewise(*for_loops(channel, region), base, rise, low, high, -1.0 if self.decreasing else 1.0)


@dataclass(frozen=True)
class Intensity(Corruption):
    """Settings of non-linear intensity."""

    probability: float = setting(
        0.9, "probability, per channel, of a non-linear intensity curve", at_least=0, at_most=1
    )
    decreasing: float = setting(0.5, "share of curves that invert the contrast", at_least=0, at_most=1)

    def sample(self, shape: Sequence[int], rng: np.random.Generator) -> IntensityParams:
        """A curve whose inner control points are uniform in the unit square."""
        x1, y1, x2, y2 = rng.random(4).tolist()
        return IntensityParams((x1, y1), (x2, y2), bool(rng.random() < self.decreasing))
