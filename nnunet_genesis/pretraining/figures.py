"""Pictures: corrupted patches, restored patches, and the progress of a pre-training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from nnunet_genesis.files import written_atomically

PLAIN_STYLE = style.context("default")
"""nnU-Net's own pictures change fonts and grids of all that are drawn after them."""

COLUMNS = ("original", "corrupted", "restored", "|restored - original|")
BASELINES = {
    "copy_mse": ("k:", "copy the corrupted patch"),
    "visible_mse": ("k:", "predict the mean of what is visible"),
    "infill_mse": ("k-.", "trilinear in-filling"),
    "mean_mse": ("k--", "predict the patch mean"),
}
"""Errors in the log of what needs no learning, if they are there: line and label."""

CELL, GAP, HEAD = 1.4, 0.06, 0.85
"""Width of an image of a corruption sheet, the space between two, and that for headings (of two lines), in inches."""


@PLAIN_STYLE
def restoration_sheet(
    patches: Sequence[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]],
    names: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Draw one row per patch: original, corrupted, restored, absolute difference.

    Args:
        patches: (original, corrupted, restored), each (C, *spatial); drawn is the first channel's central slice.
            Original voxels that are not finite (padding) stay white.
        names: One label per row.
        title: Heading.
        path: PNG file to write.
    """
    figure = Figure(figsize=(2.6 * len(COLUMNS), 2.6 * len(patches) + 0.5), layout="constrained")
    axes = figure.subplots(len(patches), len(COLUMNS), squeeze=False)
    for row, (patch, name) in enumerate(zip(patches, names, strict=True)):
        original, corrupted, restored = (_central_slice(image) for image in patch)
        outside = ~np.isfinite(original)
        images = [original, corrupted, restored, np.abs(restored - original)]
        low, high = _window(original)
        for column, image in enumerate(images):
            shown = np.where(outside, np.nan, image)
            window = (low, high) if column < 3 else (0, max(high - low, 1e-6) / 2)
            _show(axes[row, column], shown, window, "gray" if column < 3 else "inferno")
        axes[row, 0].set_ylabel(name, fontsize=8)
    for ax, heading in zip(axes[0], COLUMNS, strict=True):
        ax.set_title(heading, fontsize=10)
    figure.suptitle(title, fontsize=11)
    with written_atomically(path) as temporary:
        figure.savefig(temporary, dpi=100)


@PLAIN_STYLE
def corruption_sheet(
    patches: Sequence[Sequence[np.ndarray[Any, Any]]],
    groups: Mapping[str, Sequence[str]],
    names: Sequence[str],
    title: str,
    path: Path,
    channel: int = 0,
) -> None:
    """Draw one row per patch: the original and its corrupted versions, in the grey window of the original.

    Args:
        patches: For each row one image per column, the original first, each (C, *spatial); drawn is the central slice
            along the first axis, stretched where it is too thin to be seen. Voxels that are not finite stay white.
        groups: Headings of neighbouring columns, and the heading of each group.
        names: One label per row.
        title: Heading.
        path: PNG file to write.
        channel: Number of the channel to draw.
    """
    rows = [[_central_slice(image, channel) for image in patch] for patch in patches]
    heights = [CELL * min(max(row[0].shape[0] / row[0].shape[1], 0.4), 2.0) for row in rows]
    spans, right = [], 0.3
    for headings in groups.values():
        spans.append([right + (CELL + GAP) * n for n in range(len(headings))])
        right = spans[-1][-1] + CELL + 4 * GAP
    width, height = right - 3 * GAP, sum(heights) + len(rows) * GAP + HEAD
    figure = Figure(figsize=(width, height))
    figure.text(0.3 / width, 1 - 0.08 / height, title, fontsize=10, va="top")
    for (group, headings), lefts in zip(groups.items(), spans, strict=True):
        centre = (lefts[0] + lefts[-1] + CELL) / 2
        figure.text(centre / width, 1 - 0.42 / height, group, fontsize=10, ha="center", va="center")
        for heading, left in zip(headings, lefts, strict=True):
            figure.text((left + CELL / 2) / width, 1 - 0.81 / height, heading, fontsize=9, ha="center", va="bottom")
    bottom = height - HEAD
    for images, name, tall in zip(rows, names, heights, strict=True):
        bottom -= tall
        for image, left in zip(images, [left for lefts in spans for left in lefts], strict=True):
            ax = figure.add_axes((left / width, bottom / height, CELL / width, tall / height))
            _show(ax, image, _window(images[0]), "gray")
            ax.set_aspect("auto")
        letters = int(14 * tall)
        label = name if len(name) <= letters else f"…{name[1 - letters :]}"
        figure.text(
            0.15 / width, (bottom + tall / 2) / height, label, fontsize=8, rotation=90, ha="center", va="center"
        )
        bottom -= GAP
    with written_atomically(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _central_slice(image: np.ndarray[Any, Any], channel: int = 0) -> np.ndarray[Any, Any]:
    voxels = np.asarray(image[channel], dtype=np.float32)
    return voxels[voxels.shape[0] // 2] if voxels.ndim == 3 else voxels


def _window(image: np.ndarray[Any, Any]) -> tuple[float, float]:
    """The greys that show an image, few outliers aside; (0, 1) if no pixel is finite."""
    known = image[np.isfinite(image)]
    low, high = np.percentile(known, (0.5, 99.5)) if known.size else (0.0, 1.0)
    return float(low), float(high)


def _show(ax: Any, image: np.ndarray[Any, Any], window: tuple[float, float], colours: str) -> None:
    ax.imshow(image, cmap=colours, vmin=window[0], vmax=window[1])
    ax.set_xticks([])
    ax.set_yticks([])


@PLAIN_STYLE
def pretraining_progress(log: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Draw losses, restoration error against baselines, epoch duration and learning rate over the epochs.

    Args:
        log: One list per quantity, one value per epoch: `train_losses`, `val_losses`, `restoration_mse`,
            those of `BASELINES` that there are, `restoration_psnr`, `epoch_start_timestamps`, `epoch_end_timestamps`,
            `lrs`.
        path: PNG file to write.
    """
    figure = Figure(figsize=(12, 14), layout="constrained")
    loss, error, duration, rate = figure.subplots(4, 1, sharex=True)
    loss.plot(log["train_losses"], "b-", label="training loss")
    loss.plot(log["val_losses"], "r-", label="validation loss")
    loss.set_ylabel("restoration loss")
    error.plot(log["restoration_mse"], "g-", label="restored")
    for name, (line, label) in BASELINES.items():
        if name in log:
            error.plot(log[name], line, label=f"baseline: {label}")
    error.set_ylabel("validation MSE")
    psnr = error.twinx()
    psnr.plot(log["restoration_psnr"], color="tab:orange", label="PSNR (right axis)")
    psnr.set_ylabel("validation PSNR [dB]")
    seconds = np.subtract(
        log["epoch_end_timestamps"], log["epoch_start_timestamps"][: len(log["epoch_end_timestamps"])]
    )
    duration.plot(seconds, "b-", label="epoch duration")
    duration.set_ylabel("time [s]")
    duration.set_ylim(bottom=0)
    rate.plot(log["lrs"], "b-", label="learning rate")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch")
    for ax in (loss, error, duration, rate):
        ax.grid(alpha=0.3)
        ax.legend(loc="upper right", fontsize=9)
    psnr.legend(loc="lower right", fontsize=9)
    with written_atomically(path) as temporary:
        figure.savefig(temporary, dpi=80)
