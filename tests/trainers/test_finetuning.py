"""Fine-tuning: no training starts from scratch unasked; warm-up, a frozen encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.run.run_training import get_trainer_from_args
from torch import nn

from nnunet_genesis.finetuning import WarmupPoly
from nnunet_genesis.settings import FineTuningSettings
from tests.trainers.conftest import CPU, FINETUNE, edit_plans, start_finetuning


def test_finetuning_starts_from_exactly_the_transferred_tensors(transferred: Path):
    trainer = start_finetuning()
    source = torch.load(transferred.parents[1] / "pretrained.pth", weights_only=True)["network_weights"]
    started = trainer.network.state_dict()
    assert all(torch.equal(started[name], source[name]) for name in started if ".seg_layers." not in name)
    assert trainer.enable_deep_supervision
    assert trainer.network.decoder.deep_supervision
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (2, 1)
    assert "100.0% of the parameters" in next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()


def test_continuing_before_the_first_checkpoint_starts_from_the_transferred_weights(
    transferred: Path, stock, monkeypatch
):
    from nnunet_genesis.finetuning import nnUNetTrainerGenesisFinetune as Finetune

    seen = {}
    monkeypatch.setattr(
        Finetune, "run_training", lambda self: (self.on_train_start(), seen.update(self.network.state_dict()))
    )
    monkeypatch.setattr(Finetune, "perform_actual_validation", lambda self, *_: None)
    stock("nnUNetv2_train", *FINETUNE, "--c")
    name = "encoder.stages.0.0.convs.0.conv.weight"
    assert torch.equal(
        seen[name], torch.load(transferred.parents[1] / "pretrained.pth", weights_only=True)["network_weights"][name]
    )


def test_missing_altered_and_misfitting_weights_stop_the_training(transferred: Path):
    weights, plans = transferred / "nnUNetPlans_genesis_3d_fullres.pth", transferred / "nnUNetPlans_genesis.json"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(SystemExit, match="were altered after the transfer. Run nnunet_genesis transfer again"):
        start_finetuning()
    weights.unlink()
    with pytest.raises(SystemExit, match="do not exist. Run nnunet_genesis transfer again"):
        start_finetuning()
    weights.write_bytes(content)
    edit_plans(plans, configurations__3d_fullres__architecture__arch_kwargs__features_per_stage=[4, 6, 10])
    with pytest.raises(SystemExit, match="do not fit this network"):
        start_finetuning()


def test_two_sources_of_weights_are_refused(transferred: Path, stock):
    with pytest.raises(
        SystemExit, match="-pretrained_weights was given, but the plans name transferred weights already"
    ):
        stock("nnUNetv2_train", *FINETUNE, "-pretrained_weights", transferred / "nnUNetPlans_genesis_3d_fullres.pth")


def test_plans_without_weights_are_refused(transferred: Path, stock):
    with pytest.raises(SystemExit, match="The plans nnUNetPlans hold no transferred weights for 3d_fullres"):
        stock("nnUNetv2_train", 4, "3d_fullres", 0, "-tr", "nnUNetTrainerGenesisFinetune", "-device", "cpu")


def test_the_control_arm_says_that_it_trains_from_scratch(ready: Path, genesis, capsys):
    assert genesis("transfer", "--from-scratch", "-d", 4, "-c", "3d_fullres", "--epochs", 2) == 0
    trainer = get_trainer_from_args(
        "4", "3d_fullres", 0, "nnUNetTrainerGenesisFinetune", "nnUNetPlans_scratch", device=CPU
    )
    trainer.on_train_start()
    assert (
        "TRAINING FROM SCRATCH, as the plans ask"
        in next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()
    )


@pytest.mark.parametrize(
    "file", ["nnUNet_preprocessed/Dataset004_Target/nnUNetPlans_genesis_3d_fullres.pth", "pretrained.pth"]
)
def test_stock_training_accepts_transferred_and_pretrained_weights(transferred: Path, file):
    trainer = get_trainer_from_args("4", "3d_fullres", 0, "nnUNetTrainer", "nnUNetPlans", device=CPU)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(transferred.parents[1] / file))
    source = torch.load(transferred.parents[1] / "pretrained.pth", weights_only=True)["network_weights"]
    loaded = trainer.network.state_dict()
    assert all(torch.equal(loaded[name], source[name]) for name in loaded if ".seg_layers." not in name)


def rates_of(**settings) -> np.ndarray:
    """Learning rates of the encoder's and of the other layers over ten epochs."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    optimizer = torch.optim.SGD(groups, 1.0)
    schedule = WarmupPoly(optimizer, FineTuningSettings(epochs=10, learning_rate=1.0, **settings))
    rates = []
    for epoch in (*range(10), 1):  # the last one as after a restart
        schedule.step(epoch)
        rates.append([group["lr"] for group in optimizer.param_groups])
        assert schedule.get_last_lr() == rates[-1]
    assert rates.pop() == rates[1]
    return np.array(rates).T


def test_warmup_then_poly():
    rest, encoder = rates_of(warmup=4)
    assert rest[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rest[4:] == pytest.approx([(1 - i / 6) ** 0.9 for i in range(6)])
    assert np.array_equal(encoder, rest)


def test_the_encoder_may_lag_behind():
    rest, encoder = rates_of(warmup=2, freeze_epochs=3, encoder_lr_scale=0.25)
    assert np.array_equal(rest, rates_of(warmup=2)[0])
    assert np.array_equal(encoder, np.where(np.arange(10) < 3, 0, rest / 4))


def test_a_frozen_encoder_stays_as_transferred_and_thaws(transferred: Path, stock):
    edit_plans(transferred / "nnUNetPlans_genesis.json", genesis__fine_tuning__3d_fullres__epochs=3,
               genesis__fine_tuning__3d_fullres__freeze_epochs=2)  # fmt: skip
    start = torch.load(transferred / "nnUNetPlans_genesis_3d_fullres.pth", weights_only=True)["network_weights"]
    trainer = get_trainer_from_args(
        "4", "3d_fullres", 0, "nnUNetTrainerGenesisFinetune", "nnUNetPlans_genesis", device=CPU
    )
    trainer.on_train_start()

    def changed(part: str) -> bool:
        held = trainer.network.state_dict()
        return any(not torch.equal(held[name], start[name]) for name in held if name.startswith(part))

    for epoch, thawed in enumerate((False, False, True)):
        trainer.on_train_epoch_start()
        encoder = trainer.optimizer.param_groups[1]["params"]
        momentum = [parameter in trainer.optimizer.state for parameter in encoder]
        assert any(momentum) == (epoch == 1)  # collected while frozen, dropped on thawing
        trainer.train_step(next(trainer.dataloader_train))
        assert changed("decoder.seg_layers")
        assert changed("encoder.") == thawed
        trainer.current_epoch += 1
