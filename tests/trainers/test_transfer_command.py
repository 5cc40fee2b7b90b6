"""`nnunet_genesis transfer` on real plans: reports, mistakes, other architectures, cascades."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures import unet
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.run.run_training import get_trainer_from_args

from tests.trainers.conftest import CPU, FINETUNE, PRETRAIN, edit_plans, pretraining_plans, start_finetuning


def test_transfer_mistakes(transferred: Path, genesis, capsys):
    checkpoint = transferred.parents[1] / "pretrained.pth"
    edit_plans(
        transferred / "nnUNetPlans.json",
        configurations__3d_fullres__architecture__arch_kwargs__features_per_stage=[4, 6, 10],
    )
    for arguments, message in [
        (
            (checkpoint, "-d", 4, "-c", "3d_fullres", "--min-coverage", 0.9),
            r"Only \d\d\.\d% of the encoder's parameters would",
        ),
        ((checkpoint, "-d", 4, "-c", "3d_lowres"), "no configuration 3d_lowres"),
        ((checkpoint, "-d", 4, "-c", "3d_fullres", "--warmup", 5, "--epochs", 5), r"\"warmup\" \(5\) must be below"),
        (("gone.pth", "-d", 4, "-c", "3d_fullres"), "gone.pth does not exist"),
        (("-d", 4, "-c", "3d_fullres"), "Name a checkpoint, or --from-scratch"),
        (("--from-scratch", "-d", 4, "-c", "3d_fullres", "--axes", "xyz"), "--axes is about weights"),
        (("--from-scratch", "-d", 4, "-c", "3d_fullres", "--resize-widths"), "--resize-widths is about weights"),
        (("--from-scratch", "-d", 4, "-c", "3d_fullres", "--new-heads"), "--new-heads is about weights"),
        ((checkpoint, "-d", 4, "-c", "3d_fullres", "--to", "nnUNetPlans"), "would be overwritten"),
        ((checkpoint, "-d", 4, "-c", "3d_fullres", "--to", "a/b"), '"a/b" cannot name plans'),
    ]:
        capsys.readouterr()
        assert genesis("transfer", *arguments) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert re.search(message, error), error


BLOCK = "configurations__3d_fullres__architecture__"
UNBUILDABLE = [
    ({BLOCK + "network_class_name": "my_lib.nets.MyUNet"}, "names the network my_lib.nets.MyUNet, which is not run"),
    (
        {BLOCK + "network_class_name": "dynamic_network_architectures.architectures.primus.PrimusM",
         BLOCK + "arch_kwargs": {}, BLOCK + "_kw_requires_import": []},
        r"describes a network that cannot be built \(TypeError: PrimusM",
    ),
    ({BLOCK + "arch_kwargs__strides": [[1, 1, 1]]}, r"describes a network that cannot be built \(AssertionError"),
]  # fmt: skip


@pytest.mark.filterwarnings("error:Network class")
@pytest.mark.parametrize(("changes", "reason"), UNBUILDABLE)
def test_plans_of_networks_that_cannot_be_built_are_one_line(ready: Path, genesis, capsys, stock, changes, reason):
    pretraining = ready / "nnUNet_preprocessed/Dataset501_Scans/nnUNetGenesisPlans.json"
    folder = ready / "nnUNet_preprocessed/Dataset004_Target"
    (ready / "weights.pth").touch()
    assert genesis("transfer", "--from-scratch", "-d", 4, "-c", "3d_fullres") == 0
    for path in (folder / "nnUNetPlans.json", folder / "nnUNetPlans_scratch.json", pretraining):
        edit_plans(path, **changes)
    for given in ("--from-scratch", ready / "weights.pth"):
        capsys.readouterr()
        assert genesis("transfer", given, "-d", 4, "-c", "3d_fullres") == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert re.search(f"The plans nnUNetPlans, configuration 3d_fullres, {reason}", error), error
    assert not (folder / "nnUNetPlans_genesis.json").exists()
    for dataset, fold, trainer, plans in ((501, "all", "Pretrain", "nnUNetGenesisPlans"),
                                          (4, 0, "Finetune", "nnUNetPlans_scratch")):  # fmt: skip
        with pytest.raises(SystemExit, match=f"nnunet_genesis: The plans {plans}, configuration 3d_fullres, {reason}"):
            stock("nnUNetv2_train", dataset, "3d_fullres", fold, "-tr", f"nnUNetTrainerGenesis{trainer}", "-p", plans,
                  "-device", "cpu")  # fmt: skip


def test_other_networks_than_u_nets_are_refused(ready: Path, genesis, stock, monkeypatch):
    """A class of one's own that was put among nnU-Net's."""
    other = type("Other", (torch.nn.Identity,), {"__module__": unet.__name__})
    monkeypatch.setattr(unet, "Other", other, raising=False)
    for plans in (ready / "nnUNet_preprocessed/Dataset004_Target/nnUNetPlans.json", pretraining_plans(ready)):
        edit_plans(plans, configurations__3d_fullres__architecture__network_class_name=f"{unet.__name__}.Other")
    assert genesis("transfer", "--from-scratch", "-d", 4, "-c", "3d_fullres") == 0
    for command in (PRETRAIN, (*FINETUNE[:6], "nnUNetPlans_scratch", *FINETUNE[7:])):
        with pytest.raises(SystemExit, match="nnunet_genesis: The Other that the plans name has no encoder"):
            stock("nnUNetv2_train", *command)


@pytest.mark.parametrize("name", ["a/b", "my__plans", "plans_", "_plans", "", ".hidden", "my plans"])
def test_names_that_nnunet_would_split_are_no_names_of_new_plans(ready: Path, genesis, capsys, name):
    before = sorted(ready.rglob("*"))
    for command in (("plan", "-d", 501, "--like", 4, "-p", name),
                    ("transfer", "--from-scratch", "-d", 4, "-c", "3d_fullres", f"--to={name}")):  # fmt: skip
        if name or command[0] == "plan":
            assert genesis(*command) == 1
            error = capsys.readouterr().err
            assert error.count("\n") == 1
            assert f'"{name}" cannot name plans' in error
    assert sorted(ready.rglob("*")) == before
    assert genesis("plan", "-d", 501, "--like", 4, "-p", "my.Plans-2_x") == 0


def test_channels_under_their_former_name(ready: Path, genesis):
    for path in (*ready.glob("nnUNet_raw/*/dataset.json"), *ready.glob("nnUNet_preprocessed/*/dataset.json")):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"modality": content.pop("channel_names")}))
    assert genesis("plan", "-d", 501, "--like", 4) == 0
    names = ("nnUNetTrainerGenesisPretrain", "nnUNetGenesisPlans")
    trainer = get_trainer_from_args("501", "3d_fullres", "all", *names, device=CPU)
    trainer.initialize()
    trainer.save_checkpoint(str(ready / "pretrained.pth"))
    assert genesis("transfer", ready / "pretrained.pth", "-d", 4, "-c", "3d_fullres") == 0
    report = json.loads((ready / "nnUNet_preprocessed/Dataset004_Target/transfer_report.json").read_text())
    assert report["nnUNetPlans_genesis_3d_fullres.pth"]["exact"]


def test_transfer_into_other_plans_is_reported_and_starts(transferred: Path, genesis, capsys):
    """Kernels, strides, a further stage, a wider one: nnU-Net trains the target's own architecture from there."""
    checkpoint, plans = transferred.parents[1] / "pretrained.pth", transferred / "nnUNetPlans.json"
    kwargs = "configurations__3d_fullres__architecture__arch_kwargs__"
    edit_plans(
        plans,
        **{kwargs + "n_stages": 4, kwargs + "features_per_stage": [4, 6, 10, 10]},
        **{kwargs + "kernel_sizes": [[1, 3, 3], *[[3, 3, 3]] * 3]},
        **{kwargs + "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]]},
        **{kwargs + "n_conv_per_stage": [2, 2, 2, 2], kwargs + "n_conv_per_stage_decoder": [2, 2, 2]},
    )
    command = ("transfer", checkpoint, "-d", 4, "-c", "3d_fullres", "--epochs", 2)
    assert genesis(*command) == 1
    error = capsys.readouterr().err
    assert re.search(r"other widths \(--resize-widths, which makes it \d+\.\d%\), or lower --min-coverage", error)
    assert genesis(*command, "--resize-widths", "--min-coverage", 0.2) == 0
    table = capsys.readouterr().out
    assert re.search(r"encoder stage 2 .* adapted|encoder stage 2 .*channels \(6 in, 8 out\)", table)
    report = json.loads((transferred / "transfer_report.json").read_text())["nnUNetPlans_genesis_3d_fullres.pth"]
    assert report["verdict"] in table
    assert report["parts"]["encoder stage 3"]["initialised"] == 1
    assert 0.2 < report["encoder_coverage"] < 0.5
    assert list(report["parts"])[:2] == ["stem", "encoder stage 0"]
    trainer = start_finetuning()
    source = torch.load(checkpoint, weights_only=True)["network_weights"]
    name = "encoder.stages.0.0.convs.1.conv.weight"
    torch.testing.assert_close(trainer.network.state_dict()[name], source[name].sum(2, keepdim=True))
    assert len(trainer.network.encoder.stages) == 4
    load_pretrained_weights(trainer.network, str(transferred / "nnUNetPlans_genesis_3d_fullres.pth"))


def test_a_cascade_starts_from_the_weights_and_ignores_the_first_stage(transferred: Path, genesis, stock):
    """Transfer and fine-tune the first stage, then the second, whose labels have zero weights at the start."""
    plans = json.loads((transferred / "nnUNetPlans.json").read_text())
    configurations = plans["configurations"]
    configurations["3d_lowres"] = configurations["3d_fullres"] | {"next_stage": "3d_cascade_fullres"}
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    (transferred / "nnUNetPlans.json").write_text(json.dumps(plans))
    checkpoint = transferred.parents[1] / "pretrained.pth"
    for configuration in ("3d_lowres", "3d_cascade_fullres"):
        schedule = ("--epochs", 1, "--iterations", 1)
        assert genesis("transfer", checkpoint, "-d", 4, "-c", configuration, *schedule) == 0
    train = ("-tr", "nnUNetTrainerGenesisFinetune", "-p", "nnUNetPlans_genesis", "-device", "cpu")
    with pytest.raises(
        SystemExit, match="no segmentations of the cascade's first stage in .*nnUNetv2_train 4 3d_lowres FOLD -tr"
    ):
        stock("nnUNetv2_train", 4, "3d_cascade_fullres", 0, *train)
    stock("nnUNetv2_train", 4, "3d_lowres", "all", *train)
    trainer = get_trainer_from_args(
        "4", "3d_cascade_fullres", 0, "nnUNetTrainerGenesisFinetune", "nnUNetPlans_genesis", device=CPU
    )
    trainer.on_train_start()
    stem = trainer.network.state_dict()["encoder.stages.0.0.convs.0.conv.weight"]
    source = torch.load(checkpoint, weights_only=True)["network_weights"]["encoder.stages.0.0.convs.0.conv.weight"]
    assert torch.equal(stem[:, :1], source)
    assert stem.shape[1] == 3
    assert not stem[:, 1:].any()
    batch = next(trainer.dataloader_train)
    assert batch["data"].shape[1] == 3
    assert torch.isfinite(torch.as_tensor(trainer.train_step(batch)["loss"]))
    assert trainer.network.state_dict()["encoder.stages.0.0.convs.0.conv.weight"][:, 1:].any()


def test_reports_of_several_transfers_lie_side_by_side(transferred: Path, genesis):
    checkpoint = transferred.parents[1] / "pretrained.pth"
    assert genesis("transfer", checkpoint, "-d", 4, "-c", "2d") == 0
    report = json.loads((transferred / "transfer_report.json").read_text())
    assert set(report) == {"nnUNetPlans_genesis_3d_fullres.pth", "nnUNetPlans_genesis_2d.pth"}
    assert report["nnUNetPlans_genesis_3d_fullres.pth"]["exact"]
    assert "3D to 2D" in report["nnUNetPlans_genesis_2d.pth"]["verdict"]
