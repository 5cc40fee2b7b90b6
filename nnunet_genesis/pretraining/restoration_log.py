"""Quantities of each epoch → nnU-Net's log, lines for the log file, pictures of progress and restored patches."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from torch import nn

from nnunet_genesis.checkpoints.plain_types import plain
from nnunet_genesis.pretraining.figures import pretraining_progress, restoration_sheet
from nnunet_genesis.pretraining.loss import RestorationLoss, told
from nnunet_genesis.pretraining.patches import PatchBatches

SHEET_ROWS = 4

ERRORS = {"restoration_mse": "mse", "restoration_mae": "mae", "restoration_psnr": "psnr"}
"""Names of the validation errors in the log, and in `mean_errors`; baselines have one name in both."""


class RestorationLog(LocalLogger):
    """nnU-Net's log with the quantities of restoration in place of Dice, as Python numbers."""

    def __init__(self, hidden: bool = False) -> None:
        """Start empty.

        Args:
            hidden: Whether cells are hidden from the network, which has other baselines.
        """
        super().__init__()
        baselines = ("visible_mse", "infill_mse", "mean_mse") if hidden else ("copy_mse", "mean_mse")
        self.errors = ERRORS | {name: name for name in baselines}
        names = ("train_losses", "val_losses", "lrs", "epoch_start_timestamps", "epoch_end_timestamps", *self.errors)
        self.my_fantastic_logging: dict[str, list[Any]] = {name: [] for name in names}

    def log(self, key: str, value: Any, epoch: int) -> None:
        """Log one value per epoch."""
        super().log(key, plain(value), epoch)

    def epochs_without_improvement(self) -> int:
        """Epochs since that with the smallest validation loss; all of them if none is finite."""
        losses = self.my_fantastic_logging["val_losses"]
        finite = [loss for loss in losses if math.isfinite(loss)]
        return len(losses) - 1 - losses.index(min(finite)) if finite else len(losses)

    def report(self, epochs_left: int) -> list[str]:
        """Lines on the last epoch, and when the training will end if the epochs to come take as long."""
        last = {name: values[-1] for name, values in self.my_fantastic_logging.items()}
        seconds = last["epoch_end_timestamps"] - last["epoch_start_timestamps"]
        end = datetime.fromtimestamp(last["epoch_end_timestamps"]) + timedelta(seconds=epochs_left * seconds)
        return [
            f"train_loss {last['train_losses']:.4f}  val_loss {last['val_losses']:.4f}",
            f"restoration {told(last | {'mse': last['restoration_mse']})}  MAE {last['restoration_mae']:.4f}  "
            f"PSNR {last['restoration_psnr']:.2f} dB",
            f"Epoch time: {seconds:.2f} s  Projected end: {end:%Y-%m-%d %H:%M}",
        ]

    def plot_progress_png(self, output_folder: str) -> None:
        """Draw `progress.png`."""
        pretraining_progress(self.my_fantastic_logging, Path(output_folder) / "progress.png")


def draw_restored(
    batches: PatchBatches, network: nn.Module, loss: RestorationLoss, device: torch.device, heading: str, path: Path
) -> None:
    """Draw original, corrupted and restored patches, the first of a stream whose recipe does not mirror them.

    What is hidden from the network stays white in its input. It restores that alone: the rest is shown as it is.
    """
    rows, labels = [], []
    for k in range(SHEET_ROWS):
        original, corrupted, target, case = batches.example(k)
        restored = network(corrupted[None].to(device))[0].float().cpu()
        if batches.recipe.masking.leaves_out:
            restored = loss.in_intensities(restored[None], target[None])[0].where(corrupted.isnan(), corrupted)
        rows.append((original.numpy(), corrupted.numpy(), restored.numpy()))
        labels.append(case)
    restoration_sheet(rows, labels, heading, path)
