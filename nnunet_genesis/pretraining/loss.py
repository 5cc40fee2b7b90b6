"""The restoration task: network with an image as output, loss, and errors next to two baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from nnunet_genesis.named_classes import is_primus
from nnunet_genesis.pretraining.ssim import similarity

METRICS = ("mse", "mae", "psnr", "ssim", "copy_mse", "mean_mse")
"""Errors of restored patches, and the MSE of copying the corrupted patch and of predicting the patch mean."""


class RestorationLoss(nn.Module):
    """Mean squared or absolute error, or 1 - structural similarity, over the voxels whose target is finite.

    Models Genesis: L1 in the MICCAI paper, MSE in the MedIA paper, which compares it to SSIM, and in the released code.
    """

    def __init__(self, kind: str) -> None:
        """Choose the error.

        Args:
            kind: "mse", "l1" or "ssim".
        """
        super().__init__()
        self.kind = kind

    def forward(self, restored: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of restored patches (B, C, *patch) against the original ones; a scalar, 0 if no target is finite."""
        known = torch.isfinite(target)
        if self.kind == "ssim":
            return (known.float() - similarity(restored, target)).sum() / known.sum().clamp(min=1)
        difference = torch.where(known, restored.float() - torch.nan_to_num(target.float()), 0.0)
        error = difference.abs() if self.kind == "l1" else difference.square()
        return error.sum() / known.sum().clamp(min=1)


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


def restoration_errors(restored: torch.Tensor, target: torch.Tensor, corrupted: torch.Tensor) -> list[dict[str, float]]:
    """Errors of each patch over its voxels with a finite target; keys are `METRICS`.

    PSNR is in dB, relative to the range (maximum - minimum) of the original patch; NaN for a constant patch. SSIM is
    `similarity`, a mean over voxels and channels.

    Args:
        restored: Output of the network, (B, C, *patch).
        target: Original patches, alike.
        corrupted: Input of the network, alike.
    """
    errors = []
    for output, original, damaged in zip(restored.float(), target.float(), corrupted.float(), strict=True):
        known = torch.isfinite(original).all(0)
        alike = similarity(output[None], original[None])[0][:, known]
        output, original, damaged = output[:, known], original[:, known], damaged[:, known]
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
                "copy_mse": torch.nan_to_num(damaged - original).square().mean().item(),
                "mean_mse": (original - original.mean(1, keepdim=True)).square().mean().item(),
            }
        )
    return errors


def mean_errors(errors: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over patches; patches without a PSNR are left out of its mean, any other NaN shows."""
    summary = {}
    for metric in METRICS:
        values = [error[metric] for error in errors if metric != "psnr" or not math.isnan(error[metric])]
        summary[metric] = sum(values) / len(values) if values else math.nan
    return summary
