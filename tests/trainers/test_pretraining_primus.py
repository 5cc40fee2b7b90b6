"""Pre-training of a Primus: a masked autoencoder, and whole patches; what is refused, learned, resumed, said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_genesis.pretraining.masked_autoencoder import MaskedAutoencoder
from nnunet_genesis.pretraining.patches import VALIDATION
from nnunet_genesis.pretraining.trainer import nnUNetTrainerGenesisPretrain
from nnunet_genesis.primus import Primus
from tests.trainers.conftest import CPU, PRETRAIN, edit_plans, pretraining_plans, results

SIZES = {"embed_dim": 48, "eva_depth": 2, "eva_numheads": 2, "patch_embed_size": [8, 8, 8], "input_shape": [16, 24, 16],
         "drop_path_rate": 0.2, "scale_attn_inner": True, "init_values": 0.1}  # fmt: skip
PRIMUS = {"network_class_name": "nnunet_genesis.primus.Primus", "arch_kwargs": SIZES, "_kw_requires_import": []}


def plan(ready: Path, genesis: Any, *flags: object, patch: tuple[int, ...] = (16, 24, 16), **settings: Any) -> None:
    """Plans of dataset 501 with the settings of flags and a small Primus."""
    lengths = ("--epochs", 4, "--iterations", 2, "--validation-iterations", 2, "--save-every", 1)
    before = json.loads(pretraining_plans(ready).read_text())
    assert genesis("plan", "-d", 501, "--like", 4, *lengths, *flags) == 0
    plans = before | {"genesis": json.loads(pretraining_plans(ready).read_text())["genesis"]}
    block = plans["configurations"]["3d_fullres"]
    block["architecture"] = PRIMUS | {"arch_kwargs": SIZES | {"input_shape": list(patch)}}
    block["patch_size"] = list(patch)
    plans["genesis"]["pretraining"] |= settings
    pretraining_plans(ready).write_text(json.dumps(plans))


def new_trainer(configuration: str = "3d_fullres") -> Any:
    names = ("nnUNetTrainerGenesisPretrain", "nnUNetGenesisPlans")
    return get_trainer_from_args("501", configuration, "all", *names, device=CPU)


@pytest.mark.parametrize("normalised_targets", ["auto", "no"])
def test_hidden_cells_are_restored_better_than_without_learning(ready: Path, genesis, normalised_targets):
    plan(ready, genesis, "--recipe", "mae", "--lr", 2e-3, "--normalised-targets", normalised_targets,
         epochs=3, iterations=60, validation_iterations=4)  # fmt: skip
    trainer = new_trainer()
    trainer.initialize()
    trainer.run_training()
    log = {name: trainer.logger.get_value(name, -1) for name in ("restoration_mse", "visible_mse", "infill_mse")}
    print(log, trainer.logger.get_value("mean_mse", -1), trainer.logger.get_value("restoration_mse", None))
    assert log["restoration_mse"] < 0.9 * min(log["visible_mse"], log["infill_mse"])
