"""Checkpoints of nnU-Net v2 and nnssl, made as their trainers make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_genesis.files import read_json
from nnunet_genesis.resources import plans_folder
from tests.checkpoints import build


def small_plans(template: str = "tiny") -> dict[str, Any]:
    plans = read_json(plans_folder() / f"{template}.json", "", "")
    for configuration in plans["configurations"].values():
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 6, 8]
    return plans


def stock(
    plans: dict[str, Any], configuration: str = "3d_fullres", network: torch.nn.Module | None = None
) -> dict[str, Any]:
    """A checkpoint as nnUNetTrainer.save_checkpoint writes it."""
    block = PlansManager(plans).get_configuration(configuration).configuration["architecture"]
    network = network or build(block, 3)
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {"ema_fg_dice": [np.float32(0.5)]},
        "_best_ema": np.float32(0.5),
        "current_epoch": 1,
        "init_args": {"plans": plans, "configuration": configuration, "fold": 0, "device": torch.device("cpu"),
                      "dataset_json": {"channel_names": {"0": "T1"}}},
        "trainer_name": "nnUNetTrainerDA5",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }  # fmt: skip


def written(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def nnssl_file(name: str, arguments: dict[str, Any] | None, network: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A checkpoint as nnssl's trainers write it; arrays became tensors."""
    configuration = {"spacing_style": "onemmiso", "normalization_schemes": ["ZScoreNormalization"],
                     "spacing": torch.tensor([1.0, 1, 1]), "patch_size": torch.tensor([160, 160, 160])}  # fmt: skip
    imports = ["conv_op", "norm_op", "nonlin"] if arguments else None
    plan = {
        "architecture_plans": {
            "arch_class_name": name,
            "arch_kwargs": arguments,
            "arch_kwargs_requiring_import": imports,
        },
        "pretrain_plan": {"configurations": {"onemmiso": configuration, "median": {"normalization_schemes": []}}},
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": (160, 160, 160),
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ("encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"),
    }
    return {"network_weights": network, "trainer_name": "BaseMAETrainer", "nnssl_adaptation_plan": plan,
            "init_args": {"configuration_name": "onemmiso"}, "citations": ["…"]}  # fmt: skip


NUMBERS = [{"strides": [1, 2, 2]}, {"kernel_sizes": 3}, {"kernel_sizes": [3, 3, 3]}, {"features_per_stage": 4},
           {"n_conv_per_stage_decoder": 2}]  # fmt: skip
"""Arguments of networks that stand for all stages or axes."""
