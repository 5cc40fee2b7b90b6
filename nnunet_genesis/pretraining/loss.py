"""The restoration task: network with an image as output, loss, and errors next to those of baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn

from nnunet_genesis.named_classes import is_primus
from nnunet_genesis.pretraining.cells import in_intensities, normalised
from nnunet_genesis.pretraining.ssim import similarity

METRICS = ("mse", "mae", "psnr", "ssim")
"""Errors of restored patches."""

BASELINES = {
    "copy_mse": "copying the input",
    "visible_mse": "mean of what is visible",
    "infill_mse": "trilinear in-filling",
    "mean_mse": "patch mean",
}
"""MSE of what needs no learning, in words: the first of whole patches; the next two of cells that are hidden from the
network; the last of all."""


class RestorationLoss(nn.Module):
    """Mean squared or absolute error, or 1 - structural similarity, over the voxels whose target is finite.

    Models Genesis: L1 in the MICCAI paper, MSE in the MedIA paper, which compares it to SSIM, and in the released code.

    Where several processes train, the mean of their losses, and of their gradients, is that of one process with all of
    the patches, whatever their shares of patches and of finite voxels.
    """

    def __init__(self, kind: str, cell: Sequence[int] | None = None) -> None:
        """Choose the error.

        Args:
            kind: "mse", "l1" or "ssim".
            cell: Edges, in voxels, of cells by whose mean and standard deviation targets are normalised; None:
                intensities are restored.
        """
        super().__init__()
        self.kind = kind
        self.cell = cell

    def in_unit(self, values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Values (B, C, *patch) in the unit of what is to be restored: targets, or guesses at them."""
        return values if self.cell is None else normalised(values, target, self.cell)

    def in_intensities(self, restored: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """What was restored (B, C, *patch), to look at."""
        return restored if self.cell is None else in_intensities(restored, target, self.cell)

    def forward(self, restored: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of restored patches (B, C, *patch) against the original ones; a scalar, 0 if no target is finite."""
        target = self.in_unit(target, target)
        known = torch.isfinite(target)
        if self.kind == "ssim":
            return (known.float() - similarity(restored, target)).sum() / share_of_all(known.sum())
        difference = torch.where(known, restored.float() - torch.nan_to_num(target.float()), 0.0)
        error = difference.abs() if self.kind == "l1" else difference.square()
        return error.sum() / share_of_all(known.sum())


def share_of_all(count: torch.Tensor) -> torch.Tensor:
    """One process' equal share of a number (scalar, integer) that is summed over all processes; at least that of 1."""
    if not (dist.is_available() and dist.is_initialized()):
        return count.clamp(min=1)
    dist.all_reduce(count)
    return count.clamp(min=1) / dist.get_world_size()


def validation_loss(kind: str, errors: Mapping[str, float]) -> float:
    """The loss of a kind (see `RestorationLoss`) on patches, from the mean of their errors."""
    return 1 - errors["ssim"] if kind == "ssim" else errors["mae" if kind == "l1" else "mse"]


def freeze_unused_heads(network: nn.Module) -> nn.Module:
    """Exclude the segmentation heads of the lower resolutions, unused without deep supervision, from training.

    Distributed training stops when a trainable parameter receives no gradient.
    """
    if not is_primus(network):
        for head in network.decoder.seg_layers[:-1]:  # type: ignore[union-attr,index]
            head.requires_grad_(False)
    return network


def restoration_errors(
    restored: torch.Tensor, target: torch.Tensor, guesses: Mapping[str, torch.Tensor]
) -> list[dict[str, float]]:
    """Errors of each patch over its voxels with a finite target; keys are `METRICS` and some of `BASELINES`.

    PSNR is in dB, relative to the range (maximum - minimum) of the original patch; NaN for a constant patch. SSIM is
    `similarity`, a mean over voxels and channels.

    Args:
        restored: Output of the network, (B, C, *patch).
        target: Original patches, alike, in the unit of the output.
        guesses: By the name of their error, what is restored without learning, alike.
    """
    errors = []
    for n, (output, original) in enumerate(zip(restored.float(), target.float(), strict=True)):
        known = torch.isfinite(original).all(0)
        alike = similarity(output[None], original[None])[0][:, known]
        output, original = output[:, known], original[:, known]
        if original.numel() == 0:
            continue
        mse = (output - original).square().mean().item()
        peak = (original.max() - original.min()).item()
        has_psnr = peak > 0 and math.isfinite(mse)
        errors.append(
            {
                "mse": mse,
                "mae": (output - original).abs().mean().item(),
                "psnr": 10 * math.log10(peak**2 / max(mse, 1e-12 * peak**2)) if has_psnr else math.nan,
                "ssim": alike.mean().item(),
                "mean_mse": (original - original.mean(1, keepdim=True)).square().mean().item(),
            }
            | {
                name: torch.nan_to_num(guess[n].float()[:, known] - original).square().mean().item()
                for name, guess in guesses.items()
            }
        )
    return errors


def told(errors: Mapping[str, float]) -> str:
    """The errors of baselines in words, after that of the restoration."""
    baselines = ", ".join(f"{words} {errors[name]:.4f}" for name, words in BASELINES.items() if name in errors)
    return f"MSE {errors['mse']:.4f} ({baselines})"


def mean_errors(errors: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over patches; patches without a PSNR are left out of its mean, any other NaN shows."""
    summary = {}
    for metric in errors[0] if errors else (*METRICS, *BASELINES):
        values = [error[metric] for error in errors if metric != "psnr" or not math.isnan(error[metric])]
        summary[metric] = sum(values) / len(values) if values else math.nan
    return summary
