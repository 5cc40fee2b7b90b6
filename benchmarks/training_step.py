"""A stock network's training step, and pair generation beside it: a patch size goes in, times come out."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from measuring import seconds, smooth_volume
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from stratified import BATCH, batches_of
from torch import nn

from nnunet_genesis.corruption import RECIPES, PairParams
from nnunet_genesis.pretraining.loss import RestorationLoss
from nnunet_genesis.pretraining.patches import corrupted_on

STOCK_PATCH, STOCK_FEATURES = (128, 128, 128), (32, 64, 128, 256, 320, 320)
WARM_UP = 5
"""Untimed calls: compilation, and cuDNN's search for the fastest algorithms."""


def architecture(features: Sequence[int]) -> dict[str, Any]:
    """The block "architecture" of plans that nnU-Net's default planner writes for isotropic images."""
    stages = len(features)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def built(features: Sequence[int], device: torch.device) -> nn.Module:
    """The network, one channel in and one out; compiled on a GPU, as by nnU-Net."""
    block = architecture(features)
    network: nn.Module = get_network_from_plans(
        block["network_class_name"],
        block["arch_kwargs"],
        block["_kw_requires_import"],
        1,
        1,
        allow_init=True,
        deep_supervision=False,
    ).to(device)
    return torch.compile(network) if device.type == "cuda" else network  # type: ignore[return-value]


def time_step(device: torch.device, patch: Sequence[int], features: Sequence[int], repeats: int) -> dict[str, Any]:
    """Time forward and backward pass, and pair generation as the trainer does it on the device.

    Args:
        device: Where.
        patch: Spatial shape.
        features: Features per stage.
        repeats: Timed steps.

    Returns:
        Median milliseconds of the step; for each recipe the mean milliseconds of pair generation, and its percentage
        of the step. Corrupting one batch does not wait for the step of the one before, so that is an upper bound.
    """
    torch.backends.cudnn.benchmark = True
    clean = torch.stack([smooth_volume(patch, seed) for seed in range(BATCH)])[:, None].to(device)
    network, loss = built(features, device), RestorationLoss("mse")
    scaler = torch.amp.GradScaler("cuda", enabled=device.type == "cuda")

    def step() -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast("cuda", enabled=device.type == "cuda"):
            error = loss(network(clean), clean)
        scaler.scale(error).backward()

    step_ms = 1000 * statistics.median([seconds(step, device) for _ in range(WARM_UP + repeats)][WARM_UP:])
    found: dict[str, Any] = {"patch": list(patch), "features": list(features), "batch": BATCH, "step_ms": step_ms}
    for name in ("paper", "released"):
        pairs_ms = 1000 * statistics.mean(_pair_times(clean, batches_of(RECIPES[name], clean.shape[1:], 4 * repeats)))
        found[name] = {"pairs_ms": pairs_ms, "percent_of_step": 100 * pairs_ms / step_ms}
    return found


def _pair_times(clean: torch.Tensor, batches: Sequence[Sequence[PairParams]]) -> Iterator[float]:
    """Times of pair generation for batches of params, the first of which are only for warming up."""
    ignored = [None] * len(clean)
    for _ in range(WARM_UP):
        corrupted_on(clean.device, {"target": clean, "params": batches[-1], "ignored": ignored, "leaves_out": False})
    for params in batches:
        batch = {"target": clean, "params": params, "ignored": ignored, "leaves_out": False}
        yield seconds(lambda batch=batch: corrupted_on(clean.device, batch), clean.device)  # type: ignore[misc]
