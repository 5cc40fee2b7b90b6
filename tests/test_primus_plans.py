"""Plans whose 3D networks become a Primus: what changes, what is said, which of nnU-Net's trainers builds the same."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.training.nnUNetTrainer.primus import primus_trainers
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_genesis.errors import DatasetError
from nnunet_genesis.networks.build import build_network
from nnunet_genesis.nnunet_dataset import check_configuration
from nnunet_genesis.primus import WIDTHS
from nnunet_genesis.primus_plans import NAMES, stock_trainer, with_primus
from nnunet_genesis.resources import plans_folder
from tests.conftest import write_dataset


def plans_of(template: str, patch: tuple[int, ...] | None = None) -> dict[str, Any]:
    plans = json.loads((plans_folder() / f"{template}.json").read_text())
    if patch:
        plans["configurations"]["3d_fullres"]["patch_size"] = list(patch)
    return plans


@given(patch=st.tuples(*[st.integers(1, 400)] * 3))
def test_patches_grow_to_the_next_multiples_of_8_and_it_is_said(patch):
    before = plans_of("isotropic_1mm", patch)
    kept = copy.deepcopy(before)
    plans, notes = with_primus(before, "primus_s")
    block = plans["configurations"]["3d_fullres"]
    assert before == kept
    assert block["architecture"]["arch_kwargs"]["input_shape"] == block["patch_size"]
    assert all(new % 8 == 0 and 0 <= new - old < 8 for new, old in zip(block["patch_size"], patch, strict=True))
    assert bool(notes) == (block["patch_size"] != list(patch))
    for edge in [*patch, *block["patch_size"]] if notes else ():
        assert str(edge) in notes[0]


def test_all_but_patch_and_network_stays():
    before = plans_of("tiny", (20, 24, 22))
    plans, notes = with_primus(before, "primusv2_b", 0.1)
    assert notes[0] == "2d is left out: a Primus is 3D only."
    assert "20 x 24 x 22 becomes 24 x 24 x 24" in notes[1]
    expected = copy.deepcopy(before)
    del expected["configurations"]["2d"]
    block = expected["configurations"]["3d_fullres"]
    block["patch_size"] = [24, 24, 24]
    arguments = {"embed_dim": 792, "eva_depth": 12, "eva_numheads": 12, "patch_embed_size": [8, 8, 8],
                 "input_shape": [24, 24, 24], "drop_path_rate": 0.1, "scale_attn_inner": True, "init_values": 0.1}  # fmt: skip
    block["architecture"] = {"network_class_name": "nnunet_genesis.primus.PrimusV2", "arch_kwargs": arguments,
                             "_kw_requires_import": []}  # fmt: skip
    assert plans == expected
    check_configuration(plans, "3d_fullres")


def test_configurations_that_inherit_get_one_only_if_they_have_a_patch_or_network_of_their_own():
    plans = plans_of("tiny")
    plans["configurations"] |= {
        "same": {"inherits_from": "3d_fullres", "batch_size": 7},
        "other": {"inherits_from": "3d_fullres", "patch_size": [16, 16, 17]},
        "cascade": {"inherits_from": "3d_fullres", "previous_stage": "3d_fullres"},
    }
    changed = with_primus(plans, "primus_s")[0]["configurations"]
    assert (changed["same"], changed["cascade"]) == (
        plans["configurations"]["same"], plans["configurations"]["cascade"],
    )  # fmt: skip
    assert changed["other"]["architecture"]["arch_kwargs"]["input_shape"] == [16, 16, 24]


def test_plans_of_2d_alone_are_refused():
    plans = plans_of("tiny")
    del plans["configurations"]["3d_fullres"]
    with pytest.raises(DatasetError, match="2D configurations only, and a Primus is 3D only"):
        with_primus(plans, "primus_s")


def test_there_is_a_name_for_every_size():
    assert {name.split("_")[1] for name in NAMES} == set(WIDTHS)
    assert len(NAMES) == 3 * len(WIDTHS)


@pytest.mark.parametrize("size", ["s", "m"])
def test_templates_are_those_of_isotropic_volumes_with_a_primus(size):
    assert plans_of(f"primus_{size}") == with_primus(plans_of("isotropic_1mm"), f"primus_{size}")[0]


@pytest.mark.parametrize("name", NAMES)
def test_nnunets_trainer_of_that_name_builds_the_same_network(name):
    """Same tensors and same modules with the same constants; only drop-path may be set otherwise."""
    plans, _ = with_primus(plans_of("isotropic_1mm", (16, 16, 24)), name)
    manager = PlansManager(plans)
    arguments = (manager, manager.get_configuration("3d_fullres"), 2, 3, False)
    trainer = stock_trainer(plans, "3d_fullres")
    assert trainer is not None
    with torch.device("meta"):
        ours = build_network(*arguments)
        theirs = getattr(primus_trainers, trainer).build_network_architecture(*arguments)
    shapes = [{key: tensor.shape for key, tensor in network.state_dict().items()} for network in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert str(ours).partition("\n")[2] == str(theirs).partition("\n")[2]


def test_other_widths_have_no_trainer():
    assert stock_trainer(plans_of("tiny_primus"), "3d_fullres") is None


def test_the_target_gets_plans_that_others_are_planned_like(nnunet: Path, genesis, capsys):
    """Same preprocessed volumes as the U-Net's plans; the pre-training has the same network; folds are left out."""
    write_dataset(nnunet, 4, "Target", 5)
    write_dataset(nnunet, 501, "Scans", 2, labeled=False)
    folder = nnunet / "nnUNet_preprocessed"
    assert genesis("plan", "-d", 4, "--template", "tiny", "-p", "nnUNetPlans") == 0
    capsys.readouterr()
    assert genesis("plan", "-d", 4, "--like", 4, "-p", "nnUNetPrimusPlans", "--network", "primus_s") == 0
    assert "2d is left out: a Primus is 3D only." in capsys.readouterr().out.splitlines()
    target = json.loads((folder / "Dataset004_Target/nnUNetPrimusPlans.json").read_text())
    assert target["configurations"]["3d_fullres"]["data_identifier"] == "nnUNetPlans_3d_fullres"
    like = ("--like", 4, "--like-plans", "nnUNetPrimusPlans")
    assert genesis("plan", "-d", 501, *like, "-p", "Genesis") == 0
    scans = json.loads((folder / "Dataset501_Scans/Genesis.json").read_text())
    for plans in (scans, target):
        plans["configurations"]["3d_fullres"].pop("data_identifier")
    assert scans["configurations"] == target["configurations"]
    assert genesis("plan", "-d", 501, "--template", "tiny", "--network", "primus_s", "--drop-path-rate", 0.3) == 0
    ours = json.loads((folder / "Dataset501_Scans/nnUNetGenesisPlans.json").read_text())
    assert ours["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["drop_path_rate"] == 0.3


@pytest.mark.parametrize("source", [("--template", "tiny"), ("--like", 4)])
def test_a_masked_autoencoder_is_refused_at_planning_where_no_network_can_leave_cells_out(
    nnunet: Path, genesis, capsys, source
):
    write_dataset(nnunet, 4, "Target", 1)
    write_dataset(nnunet, 501, "Scans", 1, labeled=False)
    assert genesis("plan", "-d", 4, "--template", "tiny", "-p", "nnUNetPlans") == 0
    plan = ("plan", "-d", 501, *source, "--recipe", "mae")
    capsys.readouterr()
    assert genesis(*plan) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "3d_fullres has patches with 3 axes and a PlainConvUNet" in line
    assert "Plan with --network, or with the recipe masking" in line
    assert genesis(*plan, "--network", "primus_s", "--masking-cell-size", 4) == 1
    assert "Set it to 0" in capsys.readouterr().err
    assert not (nnunet / "nnUNet_preprocessed/Dataset501_Scans").exists()
    assert genesis(*plan, "--network", "primus_s") == 0
    assert genesis(*plan, "--masking-masked-as", "zeros") == 0


def test_one_configuration_that_can_is_enough(nnunet: Path, genesis):
    write_dataset(nnunet, 501, "Scans", 1, labeled=False)
    plans = with_primus(plans_of("tiny"), "primus_s")[0]
    plans["configurations"]["2d"] = plans_of("tiny")["configurations"]["2d"]
    (nnunet / "mixed.json").write_text(json.dumps(plans))
    assert genesis("plan", "-d", 501, "--template", nnunet / "mixed.json", "--recipe", "mae") == 0


def test_drop_path_without_a_primus_is_refused(nnunet: Path, genesis, capsys):
    write_dataset(nnunet, 4, "Target", 1)
    assert genesis("plan", "-d", 4, "--template", "tiny", "--drop-path-rate", 0.3) == 1
    assert re.search("--drop-path-rate needs --network", capsys.readouterr().err)
