"""Both trainers: what they refuse, how they resume, and that no training starts from scratch unasked."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.run.run_training import get_trainer_from_args
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_genesis.finetuning import WarmupPoly
from nnunet_genesis.patches import TRAINING
from nnunet_genesis.pretraining import hold_out, nnUNetTrainerGenesisPretrain
from nnunet_genesis.restoration import RestorationLoss, freeze_unused_heads
from nnunet_genesis.settings import FineTuningSettings
from tests.transfer.networks import unet

CPU = torch.device("cpu")


@pytest.fixture
def ready(ready_once: Path, nnunet: Path) -> Path:
    """Dataset 501 ready to pre-train on, dataset 4 ready to fine-tune on; a fresh copy for each test."""
    shutil.copytree(ready_once, nnunet, dirs_exist_ok=True)
    return nnunet


PRETRAIN = (
    501,
    "3d_fullres",
    "all",
    "-tr",
    "nnUNetTrainerGenesisPretrain",
    "-p",
    "nnUNetGenesisPlans",
    "-device",
    "cpu",
)
FINETUNE = (4, "3d_fullres", 0, "-tr", "nnUNetTrainerGenesisFinetune", "-p", "nnUNetPlans_genesis", "-device", "cpu")


def results(folder: Path, trainer: str) -> Path:
    (found,) = folder.glob(f"nnUNet_results/*/{trainer}__*/fold_*")
    return found


def pretraining_plans(folder: Path) -> Path:
    return folder / "nnUNet_preprocessed/Dataset501_Scans/nnUNetGenesisPlans.json"


def edit_plans(path: Path, **changes) -> None:
    plans = json.loads(path.read_text())
    for key, value in changes.items():
        block = plans
        *where, last = key.split("__")
        for step in where:
            block = block[step]
        block[last] = value
    path.write_text(json.dumps(plans))


@pytest.mark.parametrize("corrupt_on", ["workers", "device"])
def test_an_interrupted_pretraining_ends_like_an_uninterrupted_one(ready: Path, stock, monkeypatch, corrupt_on):
    edit_plans(pretraining_plans(ready), genesis__pretraining__corrupt_on=corrupt_on)
    stock("nnUNetv2_train", *PRETRAIN)
    folder = results(ready, "nnUNetTrainerGenesisPretrain")
    whole = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    whole_summary = json.loads((folder / "restoration_summary.json").read_text())
    shutil.rmtree(folder.parents[1])

    def stop(self, filename):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        original = nnUNetTrainerGenesisPretrain.on_epoch_start
        patch.setattr(nnUNetTrainerGenesisPretrain, "on_epoch_start",
                      lambda self: stop(self, "") if self.current_epoch == 2 else original(self))  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            stock("nnUNetv2_train", *PRETRAIN)
    assert (folder / "checkpoint_latest.pth").is_file()
    stock("nnUNetv2_train", *PRETRAIN, "--c")
    resumed = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert resumed["logging"]["restoration_mse"] == pytest.approx(whole["logging"]["restoration_mse"], rel=1e-4)
    assert len(resumed["logging"]["lrs"]) == 4
    for name, tensor in whole["network_weights"].items():
        torch.testing.assert_close(resumed["network_weights"][name], tensor, rtol=1e-3, atol=1e-5)
    assert json.loads((folder / "restoration_summary.json").read_text())["errors"]["recipe"] == pytest.approx(
        whole_summary["errors"]["recipe"], rel=1e-3
    )
    assert not [path for path in folder.iterdir() if "incomplete" in path.name]

    (folder / "restoration_summary.json").unlink()
    stock("nnUNetv2_train", *PRETRAIN, "--val")
    assert (folder / "restoration_summary.json").is_file()


def test_validation_does_not_depend_on_where_training_patches_are_corrupted(ready: Path, stock):
    logs = {}
    for corrupt_on in ("workers", "device"):
        edit_plans(
            pretraining_plans(ready), genesis__pretraining__corrupt_on=corrupt_on, genesis__pretraining__epochs=1
        )
        stock("nnUNetv2_train", *PRETRAIN)
        folder = results(ready, "nnUNetTrainerGenesisPretrain")
        logs[corrupt_on] = torch.load(folder / "checkpoint_final.pth", weights_only=True)["logging"]
    assert logs["workers"]["copy_mse"] == logs["device"]["copy_mse"]
    assert logs["workers"]["train_losses"] != logs["device"]["train_losses"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("corruption")]


def test_checkpoints_and_logs_speak_of_restoration(ready: Path, stock):
    stock("nnUNetv2_train", *PRETRAIN)
    folder = results(ready, "nnUNetTrainerGenesisPretrain")
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=True)  # plain types: no allow-list
    log = checkpoint["logging"]
    assert {len(values) for values in log.values()} == {4}
    assert not [key for key in log if "dice" in key]
    assert len(set(log["copy_mse"])) == len(set(log["mean_mse"])) == 1  # the same pairs in every epoch
    assert checkpoint["genesis"]["settings"]["epochs"] == 4
    assert checkpoint["init_args"]["plans"]["genesis"]["pretraining"]["recipe"]
    text = next(folder.glob("training_log*.txt")).read_text()
    assert "Projected end" in text
    assert "copying the input" in text
    assert "dice" not in text.lower().replace("batch_dice", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"genesis__pretraining__epoch": 3}, 'Unknown key "epoch".*"epochs"'),
        ({"genesis__pretraining__learning_rate": -1}, '"learning_rate" must be above 0'),
        ({"configurations__3d_fullres__previous_stage": "2d"}, "second stage of a cascade"),
        ({"configurations__3d_fullres__data_identifier": "elsewhere"}, "no preprocessed volumes in .*elsewhere.*Run: nnunet_genesis preprocess -d 501 -c 3d_fullres -p nnUNetGenesisPlans"),
    ],
)  # fmt: skip
def test_pretraining_refuses_in_one_line(ready: Path, stock, changes, message):
    edit_plans(pretraining_plans(ready), **changes)
    with pytest.raises(SystemExit, match=message) as refusal:
        stock("nnUNetv2_train", *PRETRAIN)
    assert "\n" not in str(refusal.value.code)


def test_numbered_folds_need_five_volumes_and_stock_volumes_will_do(ready: Path, stock, genesis):
    with pytest.raises(SystemExit, match="4 volumes are too few for nnU-Net's five folds. Use fold all"):
        stock("nnUNetv2_train", 501, "3d_fullres", 0, *PRETRAIN[3:])
    # the target's own labeled volumes, preprocessed by nnU-Net, on nnU-Net's split
    assert genesis("plan", "-d", 4, "--like", 4, "--epochs", 1, "--iterations", 1, "--validation-iterations", 1) == 0
    stock("nnUNetv2_train", 4, "3d_fullres", 0, *PRETRAIN[3:])
    (folder,) = ready.glob("nnUNet_results/Dataset004_Target/*/fold_0")
    held_out = json.loads((folder / "restoration_summary.json").read_text())["held_out"]
    splits = json.loads((ready / "nnUNet_preprocessed/Dataset004_Target/splits_final.json").read_text())
    assert held_out == splits[0]["val"]


@given(count=st.integers(2, 200), share=st.floats(0.01, 0.5), seed=st.integers(0, 9))
def test_hold_out(count, share, seed):
    cases = [f"case{i}" for i in range(count)]
    training, validation = hold_out(cases, share, seed)
    assert sorted(training + validation) == sorted(cases)
    assert training
    assert validation
    assert abs(len(validation) - share * count) <= 1
    assert hold_out(cases[::-1], share, seed) == (training, validation)


def test_the_hold_out_hardly_changes_when_scans_are_added():
    before = set(hold_out([f"case{i}" for i in range(100)], 0.1, 0)[1])
    after = set(hold_out([f"case{i}" for i in range(110)], 0.1, 0)[1])
    assert len(before - after) <= 3


def test_pretraining_learns_and_trains_all_that_it_uses(ready: Path):
    """Restoration of held-out patches gets below both baselines."""
    plans = ready / "nnUNet_preprocessed/Dataset501_Scans/nnUNetGenesisPlans.json"
    edit_plans(plans, genesis__pretraining__epochs=3, genesis__pretraining__iterations=40, genesis__pretraining__learning_rate=0.01,
               genesis__pretraining__validation_iterations=4, configurations__3d_fullres__batch_size=2)  # fmt: skip
    trainer = get_trainer_from_args(
        "501", "3d_fullres", "all", "nnUNetTrainerGenesisPretrain", "nnUNetGenesisPlans", device=CPU
    )
    trainer.initialize()
    before = {name: tensor.clone() for name, tensor in trainer.network.named_parameters()}
    trainer.run_training()
    errors = trainer.logger.get_value("restoration_mse", None)
    assert errors[-1] < 0.8 * errors[0]
    assert errors[-1] < 0.8 * trainer.logger.get_value("mean_mse", -1)
    assert errors[-1] < 0.8 * trainer.logger.get_value("copy_mse", -1)
    unused = {name for name in before if name.startswith("decoder.seg_layers.0")}
    unchanged = {name for name, tensor in trainer.network.named_parameters() if torch.equal(tensor, before[name])}
    assert unchanged == unused


def test_a_single_volume_serves_for_both():
    assert hold_out(["a"], 0.1, 0) == (["a"], ["a"])


@pytest.fixture
def transferred(ready: Path, genesis) -> Path:
    """Weights of a fresh pre-training network transferred into dataset 4; the folder of its plans."""
    trainer = get_trainer_from_args("501", "3d_fullres", "all", "nnUNetTrainerGenesisPretrain", "nnUNetGenesisPlans",
                                    device=CPU)  # fmt: skip
    trainer.initialize()
    trainer.save_checkpoint(str(ready / "pretrained.pth"))
    schedule = ("--epochs", 2, "--iterations", 1)
    assert genesis("transfer", ready / "pretrained.pth", "-d", 4, "-c", "3d_fullres", *schedule) == 0
    return ready / "nnUNet_preprocessed" / "Dataset004_Target"


def start_finetuning() -> nn.Module:
    trainer = get_trainer_from_args(
        "4", "3d_fullres", 0, "nnUNetTrainerGenesisFinetune", "nnUNetPlans_genesis", device=CPU
    )
    trainer.on_train_start()
    return trainer


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


def test_loaders_can_be_sent_to_spawned_workers(ready: Path):
    """Where processes are not forked (macOS, Windows, Linux from Python 3.14) the batches are pickled."""
    trainer = get_trainer_from_args(
        "501", "3d_fullres", "all", "nnUNetTrainerGenesisPretrain", "nnUNetGenesisPlans", device=CPU
    )
    trainer.initialize()
    batches = trainer._batches(trainer.do_split()[0], TRAINING)
    copied = pickle.loads(pickle.dumps(batches))
    assert torch.equal(copied[3]["data"], batches[3]["data"])


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
        ((checkpoint, "-d", 4, "-c", "3d_fullres", "--to", "nnUNetPlans"), "would be overwritten"),
    ]:
        capsys.readouterr()
        assert genesis("transfer", *arguments) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert re.search(message, error), error


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
    assert "allow other widths (--resize-widths), or lower --min-coverage" in capsys.readouterr().err
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


def rates_of(**settings) -> np.ndarray:
    """Learning rates of the encoder's and of the other layers over ten epochs."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    optimizer = torch.optim.SGD(groups, 1.0)
    schedule = WarmupPoly(optimizer, FineTuningSettings(epochs=10, learning_rate=1.0, **settings))
    rates = []
    for epoch in (*range(10), 1):  # the last one as after a restart
        schedule.step(epoch)
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates.pop() == rates[1]
    return np.array(rates).T


def test_warmup_then_poly():
    rest, encoder = rates_of(warmup=4)
    assert rest[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rest[4:] == pytest.approx([(1 - i / 6) ** 0.9 for i in range(6)])
    assert np.array_equal(encoder, rest)


def test_the_encoder_may_lag_behind():
    rest, encoder = rates_of(warmup=2, frozen_encoder=3, encoder_rate=0.25)
    assert np.array_equal(rest, rates_of(warmup=2)[0])
    assert np.array_equal(encoder, np.where(np.arange(10) < 3, 0, rest / 4))


def test_a_frozen_encoder_stays_as_transferred_and_thaws(transferred: Path, stock):
    edit_plans(transferred / "nnUNetPlans_genesis.json", genesis__fine_tuning__3d_fullres__epochs=3,
               genesis__fine_tuning__3d_fullres__frozen_encoder=2)  # fmt: skip
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


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_distributed_training_needs_the_unused_heads_frozen(kind, tmp_path: Path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        image, loss = torch.randn(1, 1, 16, 16, 16), RestorationLoss("mse")

        def two_steps(network: nn.Module) -> None:
            network.decoder.deep_supervision = False
            wrapped = DistributedDataParallel(network.train())
            for _ in range(2):
                loss(wrapped(image), image).backward()

        two_steps(freeze_unused_heads(unet(kind, classes=1)))
        with pytest.raises(RuntimeError, match="finished reduction"):
            two_steps(unet(kind, classes=1))
    finally:
        torch.distributed.destroy_process_group()
