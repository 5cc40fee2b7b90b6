"""Pictures: restored patches, and the progress of a pre-training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nnunet_genesis.files import written_atomically

COLUMNS = ("original", "corrupted", "restored", "|restored - original|")


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
        low, high = (np.nanpercentile(original, q) for q in (0.5, 99.5)) if not outside.all() else (0.0, 1.0)
        for column, image in enumerate(images):
            ax = axes[row, column]
            shown = np.where(outside, np.nan, image)
            window = (low, high) if column < 3 else (0, max(high - low, 1e-6) / 2)
            ax.imshow(shown, cmap="gray" if column < 3 else "inferno", vmin=window[0], vmax=window[1])
            ax.set_xticks([])
            ax.set_yticks([])
            if row == 0:
                ax.set_title(COLUMNS[column], fontsize=10)
        axes[row, 0].set_ylabel(name, fontsize=8)
    figure.suptitle(title, fontsize=11)
    with written_atomically(path) as temporary:
        figure.savefig(temporary, dpi=100)


def _central_slice(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    channel = np.asarray(image[0], dtype=np.float32)
    return channel[channel.shape[0] // 2] if channel.ndim == 3 else channel


def pretraining_progress(log: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Draw losses, restoration error against both baselines, epoch duration and learning rate over the epochs.

    Args:
        log: One list per quantity, one value per epoch: `train_losses`, `val_losses`, `restoration_mse`,
            `copy_mse`, `mean_mse`, `restoration_psnr`, `epoch_start_timestamps`, `epoch_end_timestamps`, `lrs`.
        path: PNG file to write.
    """
    figure = Figure(figsize=(12, 14), layout="constrained")
    loss, error, duration, rate = figure.subplots(4, 1, sharex=True)
    loss.plot(log["train_losses"], "b-", label="training loss")
    loss.plot(log["val_losses"], "r-", label="validation loss")
    loss.set_ylabel("restoration loss")
    error.plot(log["restoration_mse"], "g-", label="restored")
    error.plot(log["copy_mse"], "k:", label="baseline: copy the corrupted patch")
    error.plot(log["mean_mse"], "k--", label="baseline: predict the patch mean")
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
