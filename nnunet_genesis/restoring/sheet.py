"""Restored cases → one HTML page without links to anything: scores and slices, the largest difference first."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imsave

from nnunet_genesis.files import written_atomically

LONGEST = 256
"""Pixels along the longer edge of a picture; larger slices are thinned out."""
WIDE = 260
"""Longer edge of a picture on the page, in CSS pixels."""

Image = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Row:
    """One case of the page.

    Attributes:
        case: Its name.
        source: Where it came from.
        mean: Mean difference, in normalised intensities.
        peak: 99th percentile of the difference.
        place: Which slice is shown, in words.
        original: PNG.
        restored: PNG, in the same greys.
        difference: The slice itself: its colours depend on all cases.
        shape: Height and width of a picture, in mm.
    """

    case: str
    source: str
    mean: float
    peak: float
    place: str
    original: bytes
    restored: bytes
    difference: Image
    shape: tuple[float, float]


def row(
    case: str, source: str, original: Image, restored: Image, difference: Image, spacing: Sequence[float],
    scores: tuple[float, float],
) -> Row:  # fmt: skip
    """Take the slice across the axis of the largest spacing that differs most.

    Args:
        case: Name of the case.
        source: Where it came from.
        original: A channel, (z, y, x).
        restored: The same channel.
        difference: (z, y, x).
        spacing: Of z, y, x in mm.
        scores: Mean and 99th percentile of the difference.
    """
    axis = int(np.argmax(spacing))
    others = [other for other in range(3) if other != axis]
    number = int(difference.mean(axis=tuple(others)).argmax())
    height, width = (difference.shape[other] for other in others)
    step = -(-max(height, width) // LONGEST)
    before, after, change = (volume.take(number, axis)[::step, ::step] for volume in (original, restored, difference))
    window = np.percentile(before, (0.5, 99.5))
    greys = float(window[0]), float(max(window[1], window[0] + 1e-6))
    place = f"slice {number + 1} of {difference.shape[axis]} along {'zyx'[axis]}"
    shape = (height * spacing[others[0]], width * spacing[others[1]])
    return Row(
        case, source, *scores, place, _png(before, greys, "gray"), _png(after, greys, "gray"),
        change.astype(np.float16), shape,
    )  # fmt: skip


def _png(image: Image, window: tuple[float, float], colours: str) -> bytes:
    stream = io.BytesIO()
    imsave(stream, np.asarray(image, dtype=np.float32), cmap=colours, vmin=window[0], vmax=window[1], format="png")
    return stream.getvalue()


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Restored scans</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 1180px; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ padding: .5em; text-align: center; vertical-align: middle; border-bottom: 1px solid #ddd }}
th:first-child, td:first-child {{ text-align: left; max-width: 16em; overflow-wrap: anywhere }}
small {{ color: #666 }}
img {{ display: block; margin: auto; background: #000 }}
img.scale {{ display: inline; width: 160px; height: 12px; vertical-align: middle }}
</style>
</head>
<body>
<h1>Restored scans</h1>
<p>{heading}</p>
<p>Difference: |restored &minus; original| in normalised intensities (mean of the channels),
0 <img class="scale" alt="from dark to bright" src="{scale}"> {most:.3g} in all rows. The cases that differ most
come first, and their slices that differ most are shown. Edges and noise differ in healthy scans too: this is a hint
where to look, no finding.</p>
<table>
<tr><th>case</th><th>mean</th><th>99 %</th><th>original</th><th>restored</th><th>difference</th></tr>
{rows}
</table>
</body>
</html>
"""


def write_sheet(rows: Sequence[Row], heading: str, path: Path) -> None:
    """Write the page; names and heading may hold anything.

    Args:
        rows: At least one case, in any order.
        heading: What made the pictures.
        path: HTML file to write.
    """
    most = max(float(np.percentile(one.difference, 99.5)) for one in rows) or 1.0
    scale = _source(_png(np.linspace(0, 1, 160)[None].repeat(2, 0), (0, 1), "inferno"))
    ordered = sorted(rows, key=lambda one: one.mean, reverse=True)
    lines = "\n".join(_line(one, most) for one in ordered)
    with written_atomically(path) as temporary:
        temporary.write_text(
            PAGE.format(heading=escape(heading), scale=scale, most=most, rows=lines), encoding="utf-8"
        )  # fmt: skip


def _line(one: Row, most: float) -> str:
    factor = WIDE / max(one.shape)
    size = f'height="{max(1, round(one.shape[0] * factor))}" width="{max(1, round(one.shape[1] * factor))}"'
    pictures = {
        "original": one.original,
        "restored": one.restored,
        "difference": _png(one.difference, (0, most), "inferno"),
    }
    cells = "".join(
        f'<td><img {size} alt="{name} of {escape(one.case)}" src="{_source(picture)}"></td>'
        for name, picture in pictures.items()
    )
    name = f"<b>{escape(one.case)}</b><br><small>{escape(one.source)}<br>{escape(one.place)}</small>"
    return f"<tr><td>{name}</td><td>{one.mean:.4f}</td><td>{one.peak:.3f}</td>{cells}</tr>"


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
