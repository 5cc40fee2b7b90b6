"""Fine-tuning: what is trained at which rate, what a resumed training needs, and what its checkpoints say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_genesis.files import sha256
from tests.trainers.conftest import CPU, edit_plans, start_finetuning

STEM = "encoder.stages.0.0.convs.0.conv.weight"


def change_settings(folder: Path, **settings: Any) -> None:
    edit_plans(folder / "nnUNetPlans_genesis.json",
               **{f"genesis__fine_tuning__3d_fullres__{key}": value for key, value in settings.items()})  # fmt: skip


def trainer_of(plans: str = "nnUNetPlans_genesis") -> Any:
    return get_trainer_from_args("4", "3d_fullres", 0, "nnUNetTrainerGenesisFinetune", plans, device=CPU)


def log_of(trainer: Any) -> str:
    """All logs of the folder: nnU-Net names them by the second, so that two trainers may share one."""
    return "".join(path.read_text() for path in sorted(Path(trainer.output_folder).glob("training_log*.txt")))


def test_rates_and_momentum_of_encoder_and_rest(transferred: Path):
    """Two groups that share no parameter and leave none out; momentum is lost once, on thawing."""
    change_settings(transferred, epochs=6, warmup=1, learning_rate=0.04, encoder_lr_scale=0.25, freeze_epochs=1)
    trainer = start_finetuning()
    rest, encoder = trainer.optimizer.param_groups
    names = {id(parameter): name for name, parameter in trainer.network.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in (rest, encoder)]
    assert sorted(groups[0] + groups[1]) == sorted(names.values())
    assert {name.split(".")[0] for name in groups[0]} == {"decoder"}
    assert {name.split(".")[0] for name in groups[1]} == {"encoder"}
    for group in (rest, encoder):
        assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.99, 3e-5, True)
    for epoch, (share, encoder_share) in enumerate([(0.5, 0), (1, 0.25), (0.8**0.9, 0.25), (0.6**0.9, 0.25)]):
        trainer.on_train_epoch_start()
        assert rest["lr"] == pytest.approx(0.04 * share)
        assert encoder["lr"] == pytest.approx(0.04 * share * encoder_share)
        assert (encoder["params"][0] in trainer.optimizer.state) == (epoch > 1)
        assert (rest["params"][-1] in trainer.optimizer.state) == (epoch > 0)
        trainer.train_step(next(trainer.dataloader_train))
        trainer.current_epoch += 1
    assert trainer.logger.get_value("lrs", None) == pytest.approx([0.02, 0.04, 0.04 * 0.8**0.9, 0.04 * 0.6**0.9])


def test_adamw_trains_both_groups_and_resumes(transferred: Path):
    """By its own rates unless others are given; the checkpoint says which; its state survives."""
    change_settings(transferred, epochs=5, optimizer="adamw", weight_decay=0.02, encoder_lr_scale=0.5)
    trainer = start_finetuning()
    assert type(trainer.optimizer) is torch.optim.AdamW
    rest, encoder = trainer.optimizer.param_groups
    assert len(rest["params"]) + len(encoder["params"]) == len(list(trainer.network.parameters()))
    assert {group["weight_decay"] for group in (rest, encoder)} == {0.02}
    assert "with adamw: learning rate 0.0001 after 0 epochs of warm-up, weight decay 0.02" in log_of(trainer)
    trainer.on_train_epoch_start()
    assert (rest["lr"], encoder["lr"]) == (1e-4, 0.5e-4)
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.train_step(next(trainer.dataloader_train))
    moved = (trainer.network.state_dict()[STEM] - before[STEM]).abs().max().item()
    assert moved == pytest.approx(0.5e-4, rel=0.2)  # AdamW's first step is as long as its rate
    saved = transferred.parents[1] / "own.pth"
    trainer.save_checkpoint(str(saved))
    settings = torch.load(saved, weights_only=True)["genesis"]["settings"]
    assert (settings["optimizer"], settings["learning_rate"], settings["weight_decay"]) == ("adamw", 1e-4, 0.02)
    resumed = trainer_of()
    resumed.load_checkpoint(str(saved))
    for one, other in zip(resumed.optimizer.param_groups, trainer.optimizer.param_groups, strict=True):
        for ours, theirs in zip(one["params"], other["params"], strict=True):
            state, own = resumed.optimizer.state.get(ours), trainer.optimizer.state.get(theirs)
            assert (state is None) == (own is None)  # the lowest segmentation head is not trained
            assert state is None or torch.equal(state["exp_avg"], own["exp_avg"])
    assert len(resumed.optimizer.state) > 20


@pytest.mark.parametrize(
    "wanted",
    [
        ("501", "3d_fullres", "all", "nnUNetTrainerGenesisPretrain", "nnUNetGenesisPlans"),
        ("4", "3d_fullres", 0, "nnUNetTrainerGenesisFinetune", "nnUNetPlans_genesis"),
    ],
)
def test_a_training_without_gpu_says_how_to_use_the_cpu(transferred: Path, monkeypatch, wanted):
    """nnU-Net's default is a GPU; without one it would end with a traceback."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="finds no GPU. To use the CPU, add: -device cpu"):
        get_trainer_from_args(*wanted, device=torch.device("cuda")).initialize()


def test_scans_without_labels_are_not_fine_tuned_on(transferred: Path):
    """Their loss would be NaN to the last epoch."""
    edit_plans(transferred / "dataset.json", labels={"background": 0})
    with pytest.raises(SystemExit, match="Dataset004_Target has no labels but the background"):
        trainer_of()


def test_a_resumed_training_needs_no_transferred_weights(transferred: Path):
    """It goes on from its own, and its checkpoint says where they came from."""
    change_settings(transferred, epochs=5, source="results/fold_all/pretrained.pth", coverage=0.987)
    trainer = start_finetuning()
    block = json.loads((transferred / "nnUNetPlans_genesis.json").read_text())["genesis"]["fine_tuning"]["3d_fullres"]
    digest = sha256(transferred.parents[1] / "pretrained.pth")[:12]
    assert f"Starting from results/fold_all/pretrained.pth (SHA-256 {digest}...): 98.7% of the" in log_of(trainer)
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    saved = transferred.parents[1] / "own.pth"
    trainer.save_checkpoint(str(saved))
    facts = torch.load(saved, weights_only=True)["genesis"]
    assert facts.pop("versions")["nnunetv2"]
    assert facts == {"task": "fine-tuning", "settings": block | {"learning_rate": 0.01, "weight_decay": 3e-5}}

    (transferred / "nnUNetPlans_genesis_3d_fullres.pth").unlink()
    resumed = trainer_of()
    resumed.load_checkpoint(str(saved))
    resumed.on_train_start()
    own, start = trainer.network.state_dict(), torch.load(transferred.parents[1] / "pretrained.pth", weights_only=True)
    for name, tensor in resumed.network.state_dict().items():
        assert torch.equal(tensor, own[name])
    assert not torch.equal(own[STEM], start["network_weights"][STEM])
    assert log_of(resumed).count("Starting from") == 1


def test_one_process_writes_and_only_if_asked_to(transferred: Path):
    trainer = start_finetuning()
    path = transferred.parents[1] / "own.pth"
    for rank, disabled in ((1, False), (0, True), (1, True)):
        trainer.local_rank, trainer.disable_checkpointing = rank, disabled
        trainer.save_checkpoint(str(path))
        assert not path.exists()
    trainer.local_rank, trainer.disable_checkpointing = 0, False
    trainer.save_checkpoint(str(path))
    assert path.exists()


def test_the_control_arm_may_start_from_weights_that_a_user_names(ready: Path, genesis):
    assert genesis("transfer", "--from-scratch", "-d", 4, "-c", "3d_fullres", "--epochs", 2) == 0
    trainer = trainer_of("nnUNetPlans_scratch")
    trainer.initialize()  # as -pretrained_weights does, which then loads them
    with torch.no_grad():
        trainer.network.get_parameter(STEM).fill_(3)
    trainer.on_train_start()
    assert (trainer.network.state_dict()[STEM] == 3).all()
    assert "TRAINING FROM SCRATCH" in log_of(trainer)


def test_what_is_missing_is_one_line(transferred: Path):
    change_settings(transferred, sha256=sha256(transferred / "nnUNetPlans.json"))
    (transferred / "nnUNetPlans_genesis_3d_fullres.pth").write_bytes((transferred / "nnUNetPlans.json").read_bytes())
    with pytest.raises(SystemExit, match=r"^nnunet_genesis: .*nnUNetPlans_genesis_3d_fullres\.pth") as refusal:
        start_finetuning()
    assert "\n" not in str(refusal.value.code)
    edit_plans(transferred / "nnUNetPlans_genesis.json", configurations__3d_fullres__data_identifier="elsewhere")
    with pytest.raises(SystemExit, match=r"no preprocessed volumes in \S+elsewhere\. Run: nnUNetv2_preprocess -d 4"):
        trainer_of().initialize()
    change_settings(transferred, epochs=0)
    with pytest.raises(SystemExit, match=r'"epochs" must be at least 1'):
        trainer_of()


def test_a_second_stage_waits_for_the_first(ready: Path, genesis):
    plans = ready / "nnUNet_preprocessed/Dataset004_Target/nnUNetPlans.json"
    content = json.loads(plans.read_text())
    content["configurations"]["3d_lowres"] = content["configurations"]["3d_fullres"] | {"next_stage": "3d_cascade"}
    content["configurations"]["3d_cascade"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans.write_text(json.dumps(content))
    assert genesis("transfer", "--from-scratch", "-d", 4, "-c", "3d_cascade") == 0
    trainer = get_trainer_from_args(
        "4", "3d_cascade", 0, "nnUNetTrainerGenesisFinetune", "nnUNetPlans_scratch", device=CPU
    )
    with pytest.raises(SystemExit, match=r"no segmentations of the cascade's first stage.* 3d_lowres FOLD -tr"):
        trainer.initialize()
