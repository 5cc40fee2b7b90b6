"""Non-linear intensity: a channel goes in, the same channel on another monotone intensity scale comes out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

KNOTS = 1024
_STEPS = 4096
_SPANS = (1e-30, 1e38)  # Widths of a value range that float32 can divide by.


@dataclass(frozen=True)
class Curve:
    """What was drawn: the inner control points of a cubic Bézier curve in the unit square.

    Attributes:
        first: (x, y) of the control point next to (0, 0), each 0..1.
        second: (x, y) of the control point next to (1, 1), each 0..1.
        decreasing: Whether the curve is mirrored in y, which inverts the contrast.
    """

    first: tuple[float, float]
    second: tuple[float, float]
    decreasing: bool


def draw_curve(decreasing: float, rng: np.random.Generator) -> Curve:
    """Draw a curve whose inner control points are uniform in the unit square.

    Args:
        decreasing: Probability, 0..1, of a decreasing curve.
        rng: Source of randomness.
    """
    x1, y1, x2, y2 = rng.random(4).tolist()
    return Curve((x1, y1), (x2, y2), bool(rng.random() < decreasing))


def curve_table(drawn: Curve, knots: int = KNOTS) -> npt.NDArray[np.float64]:
    """Values 0..1 of the curve at `knots` equidistant arguments in [0, 1]; strictly monotone.

    x(t) and y(t) need no sorting: x'(t) / 3 = (1-t)² x1 + 2 (1-t) t (x2-x1) + t² (1-x2) is never negative for
    x1, x2 in [0, 1], because (x1-x2)² <= x1 (1-x2) where x2 < x1. The same holds for y.
    """
    t = np.linspace(0.0, 1.0, _STEPS + 1)
    first, second, third = 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3
    x = first * drawn.first[0] + second * drawn.second[0] + third
    y = first * drawn.first[1] + second * drawn.second[1] + third
    values: npt.NDArray[np.float64] = np.interp(np.linspace(0.0, 1.0, knots), x, y)
    return 1.0 - values if drawn.decreasing else values


def bend(channel: Tensor, drawn: Curve, low: float, high: float) -> Tensor:
    """Send the intensities of a channel along the curve; a strictly monotone map of all real numbers.

    Args:
        channel: Tensor (*spatial), floating, any intensity unit; not touched.
        drawn: The curve, stretched so that it maps [low, high] onto itself.
        low: Lower end of the value range.
        high: Upper end of the value range. If it equals `low`, the map is the identity.

    Returns:
        New tensor of the same shape and type. Values beyond an end keep their distance to the end, or to the
        opposite one if the curve decreases. NaN stays NaN, at its place only. Computed in float32 or wider.

    From Models Genesis (Zhou et al., MICCAI 2019 and MedIA 2021, on non-linear transformation). How ours
    differs: the value range is the patch's own, not [0, 1], and what lies outside it does not collapse to a
    constant; the curve is looked up on a grid uniform in intensity.
    """
    if not _SPANS[0] < high - low < _SPANS[1]:
        return channel.clone()
    values = channel.to(torch.promote_types(channel.dtype, torch.float32))
    inside = values.clamp(low, high)
    place = (inside - low) * ((KNOTS - 1) / (high - low))
    left = place.nan_to_num(0.0).long().clamp_(0, KNOTS - 2)
    table = torch.from_numpy(curve_table(drawn)).to(values)
    slope = table.diff()[left]
    bent = (table[left] + slope * (place - left)).mul_(high - low).add_(low).clamp_(low, high)
    beyond = values - inside
    return (bent - beyond if drawn.decreasing else bent + beyond).to(channel.dtype)
