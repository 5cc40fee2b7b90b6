"""A segmentation model's heads: from its checkpoint through `transfer` to the first step of nnU-Net's training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnunet_genesis.checkpoints.detect import detect
from nnunet_genesis.networks.build import target_network
from nnunet_genesis.nnunet_dataset import read_dataset_json, read_plans
from tests.checkpoints.files import stock, written
from tests.trainers.conftest import start_finetuning

LABELS = {"background": 0, "vessel": 1, "Core": 2, "fat": 3}


@pytest.fixture
def segmentation(ready: Path) -> dict[str, Any]:
    """A checkpoint of nnU-Net, trained for labels of which the target has two."""
    plans, described = read_plans("Dataset004_Target", "nnUNetPlans"), read_dataset_json("Dataset004_Target")
    described |= {"labels": LABELS}
    network, _ = target_network(plans, "3d_fullres", described)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    content = stock(plans, network=network)
    content["init_args"]["dataset_json"] = described
    return content


def test_rows_of_labels_that_remain_are_trained_on_and_others_are_the_seeds(
    ready: Path, segmentation: dict[str, Any], genesis, capsys
):
    path = written(segmentation, ready / "segmentation.pth")
    assert genesis("transfer", path, "-d", 4, "-c", "3d_fullres", "--new-heads") == 0
    assert "heads by names" not in capsys.readouterr().out
    fresh = start_finetuning().network.state_dict()
    assert genesis("transfer", path, "-d", 4, "-c", "3d_fullres") == 0
    assert "heads by names of labels: kept background, core; new shell; dropped vessel, fat" in capsys.readouterr().out
    report = json.loads((ready / "nnUNet_preprocessed/Dataset004_Target/transfer_report.json").read_text())
    assert report["nnUNetPlans_genesis_3d_fullres.pth"]["labels"]["kept"] == ["background", "core"]
    started = start_finetuning().network.state_dict()
    heads = [name for name in started if ".seg_layers." in name]
    assert len(heads) == 4
    for name in heads:
        before = segmentation["network_weights"][name]
        expected = torch.stack([before[0], fresh[name][1], before[2]])
        assert torch.equal(started[name], expected), name
        assert not torch.equal(fresh[name][0], before[0])


def test_outputs_of_a_pre_training_and_other_numbers_of_outputs_have_no_names(segmentation: dict[str, Any]):
    assert detect(segmentation).facts()["outputs"] == "4 labels (background, vessel, Core, fat)"
    restores = segmentation | {"trainer_name": "nnUNetTrainerGenesisPretrain"}
    assert detect(restores).outputs is None
    assert "outputs" not in detect(restores).facts()
    segmentation["init_args"]["dataset_json"] |= {"labels": {"background": 0, "vessel": 1}}
    source = detect(segmentation)
    assert source.outputs is None
    assert source.notes == ("its heads have 4 outputs, its dataset.json names 2: labels are not matched by name",)
