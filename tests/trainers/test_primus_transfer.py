"""A Primus by the commands: pre-training's checkpoint → inspect → transfer → weights that both trainers start from."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_genesis.networks.build import is_head, target_network
from nnunet_genesis.nnunet_dataset import read_dataset_json, read_plans
from tests.primus import build_primus, primus_block
from tests.trainers.conftest import CPU, edit_plans, pretraining_plans, start_finetuning

WHERE = "configurations__3d_fullres__"


def test_from_the_checkpoint_of_a_pretraining_to_a_network_in_training(ready: Path, genesis, capsys):
    target = ready / "nnUNet_preprocessed/Dataset004_Target"
    for path, patch in ((pretraining_plans(ready), (16, 16, 16)), (target / "nnUNetPlans.json", (16, 24, 16))):
        edit_plans(path, **{f"{WHERE}architecture": primus_block(patch=patch), f"{WHERE}patch_size": list(patch)})
    trainer = get_trainer_from_args("501", "3d_fullres", "all", "nnUNetTrainerGenesisPretrain", "nnUNetGenesisPlans",
                                    device=CPU)  # fmt: skip
    trainer.initialize()
    trainer.save_checkpoint(str(ready / "pretrained.pth"))
    capsys.readouterr()
    assert genesis("inspect", ready / "pretrained.pth") == 0
    shown = capsys.readouterr().out
    assert "Primus, a 3D transformer; 2 blocks of width 48, 2 heads; 2x2x2 tokens of 8x8x8 voxels" in shown
    assert "note:" not in shown
    schedule = ("--epochs", 2, "--seed", 3)
    assert genesis("transfer", ready / "pretrained.pth", "-d", 4, "-c", "3d_fullres", *schedule) == 0
    shown = capsys.readouterr().out
    assert "100.0% of the encoder and 100.0% of the network, heads aside, come from the checkpoint" in shown
    assert "encoder positions: 2x3x2 tokens, in the checkpoint 2x2x2: learned positions are resized" in shown
    report = json.loads((target / "transfer_report.json").read_text())["nnUNetPlans_genesis_3d_fullres.pth"]
    assert report["parts"]["encoder block 1"]["copied"] == 1

    weights = torch.load(target / "nnUNetPlans_genesis_3d_fullres.pth", weights_only=True)["network_weights"]
    network = target_network(read_plans("Dataset004_Target", "nnUNetPlans"), "3d_fullres",
                             read_dataset_json("Dataset004_Target"))[0]  # fmt: skip
    assert {name: t.shape for name, t in weights.items()} == {name: t.shape for name, t in network.state_dict().items()}
    trained = trainer.network.state_dict()
    pretrained = {name.removeprefix("network."): tensor for name, tensor in trained.items()}
    for name, tensor in weights.items():
        if not is_head(name) and name not in ("eva.pos_embed", "mask_token"):
            assert torch.equal(tensor, pretrained[name]), name

    started = start_finetuning().network.state_dict()
    torch.manual_seed(7)
    stock = build_primus(primus_block(patch=(16, 24, 16)), classes=3, seed=7)
    load_pretrained_weights(stock, target / "nnUNetPlans_genesis_3d_fullres.pth")
    for name, tensor in weights.items():
        assert torch.equal(stock.state_dict()[name], tensor)
        assert is_head(name) or torch.equal(started[name], tensor)
    heads = [name for name in weights if is_head(name) and name.endswith("weight") and weights[name].ndim > 1]
    assert not any(torch.equal(started[name], weights[name]) for name in heads)  # of the training's seed


def test_unets_and_primus_do_not_mix(ready: Path, genesis, capsys):
    edit_plans(pretraining_plans(ready), **{f"{WHERE}architecture": primus_block(patch=(16, 16, 16))})
    trainer = get_trainer_from_args("501", "3d_fullres", "all", "nnUNetTrainerGenesisPretrain", "nnUNetGenesisPlans",
                                    device=CPU)  # fmt: skip
    trainer.initialize()
    trainer.save_checkpoint(str(ready / "pretrained.pth"))
    assert genesis("transfer", ready / "pretrained.pth", "-d", 4, "-c", "3d_fullres") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "holds a Primus, the target's plans ask for a PlainConvUNet" in error
