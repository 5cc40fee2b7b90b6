"""Pre-training: what it refuses, how it resumes, what it learns and says."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.run.run_training import get_trainer_from_args
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_genesis.pretraining.loss import RestorationLoss, freeze_unused_heads
from nnunet_genesis.pretraining.patches import TRAINING, hold_out
from nnunet_genesis.pretraining.trainer import nnUNetTrainerGenesisPretrain
from tests.trainers.conftest import CPU, PRETRAIN, edit_plans, pretraining_plans, results
from tests.transfer.networks import unet

pytestmark = pytest.mark.usefixtures("no_curves")


def new_trainer() -> nnUNetTrainerGenesisPretrain:
    return get_trainer_from_args(
        "501", "3d_fullres", "all", "nnUNetTrainerGenesisPretrain", "nnUNetGenesisPlans", device=CPU
    )


def test_an_interrupted_pretraining_ends_like_an_uninterrupted_one(ready: Path, stock, monkeypatch):
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


def test_nnunets_flag_starts_a_pretraining_from_the_weights_of_another(ready: Path, stock, monkeypatch):
    trainer, seen = new_trainer(), {}
    trainer.initialize()
    for parameter in trainer.network.parameters():
        nn.init.normal_(parameter)  # fresh networks of the same seed are equal
    trainer.save_checkpoint(str(ready / "other.pth"))
    monkeypatch.setattr(nnUNetTrainerGenesisPretrain, "run_training",
                        lambda self: seen.update(self.network.state_dict()))  # fmt: skip
    monkeypatch.setattr(nnUNetTrainerGenesisPretrain, "perform_actual_validation", lambda self, *_: None)
    stock("nnUNetv2_train", *PRETRAIN, "-pretrained_weights", ready / "other.pth")
    other = trainer.network.state_dict()
    assert seen.keys() == other.keys()
    carried = [name for name in other if ".seg_layers." not in name]
    assert all(torch.equal(seen[name], other[name]) for name in carried)
    assert not all(torch.equal(seen[name], other[name]) for name in other)  # nnU-Net leaves heads out


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


def end_epoch(trainer: nnUNetTrainerGenesisPretrain, mse: float, mae: float, ssim: float = 0.5) -> Path:
    """An epoch whose two validation batches have these errors on average; the best checkpoint."""
    now = trainer.current_epoch
    for name in ("train_losses", "lrs", "epoch_start_timestamps"):
        trainer.logger.log(name, 1.0, now)
    others = {"psnr": 20.0, "copy_mse": 1.0, "mean_mse": 1.0}
    trainer.on_validation_epoch_end(
        [{"errors": [{"mse": mse * part, "mae": mae * part, "ssim": ssim * part} | others]} for part in (0.5, 1.5)]
    )
    trainer.on_epoch_end()
    return Path(trainer.output_folder) / "checkpoint_best.pth"


@pytest.mark.parametrize("loss", ["mse", "l1", "ssim"])
def test_the_best_checkpoint_has_the_smallest_loss_of_the_kind_that_is_trained(ready: Path, loss):
    edit_plans(pretraining_plans(ready), genesis__pretraining__loss=loss, genesis__pretraining__epochs=9,
               genesis__pretraining__save_every=1, genesis__pretraining__plot_every=9)  # fmt: skip
    trainer = new_trainer()
    trainer.initialize()

    def best_after(trained: float, other: float) -> int:
        kinds = {"mse": trained, "l1": trained, "ssim": 1 - trained}
        errors = {"mse": other, "mae": other, "ssim": 1 - other}
        errors["mae" if loss == "l1" else loss] = kinds[loss]
        best = end_epoch(trainer, **errors)
        return torch.load(best, weights_only=True)["current_epoch"] if best.is_file() else 0

    nan = float("nan")
    assert best_after(nan, nan) == 0
    assert best_after(0.5, 0.1) == 2
    assert best_after(0.6, 0.05) == 2  # worse, though the other error is better
    assert best_after(0.5, 0.1) == 2  # a tie
    assert best_after(0.4, 0.2) == 5
    trainer = new_trainer()  # resumed after the best epoch itself
    trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    assert best_after(0.45, 0.1) == 5
    assert best_after(nan, 0.1) == 5
    assert best_after(0.3, 0.1) == 8
    told = "".join(path.read_text() for path in sorted(Path(trainer.output_folder).glob("training_log*.txt")))
    assert re.findall(r"New best val_loss (\S+)", told) == ["0.5000", "0.4000", "0.3000"]


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


def test_masked_cells_are_as_large_as_what_a_voxel_of_the_bottleneck_stands_for(ready: Path, stock, genesis):
    edit_plans(pretraining_plans(ready),
               configurations__3d_fullres__architecture__arch_kwargs__strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]])  # fmt: skip
    before = pretraining_plans(ready).read_text()
    recipe = ("--recipe", "masking", "--masking-cell-size", 0, "--epochs", 1, "--iterations", 1)
    assert genesis("plan", "-d", 501, "--like", 4, *recipe) == 0
    settings = json.loads(pretraining_plans(ready).read_text())["genesis"]["pretraining"]
    pretraining_plans(ready).write_text(before)
    edit_plans(pretraining_plans(ready), genesis__pretraining=settings)
    trainer = new_trainer()
    trainer.initialize()
    bottleneck = trainer.network.encoder(torch.zeros(1, 1, 16, 16, 16))[-1].shape[2:]
    edges = tuple(16 // voxels for voxels in bottleneck)
    assert edges == (2, 4, 4)
    target = trainer._batches(["case0", "case1"], TRAINING)[0]["target"]
    masked = target.isfinite().float().flatten(0, 1)
    assert set(torch.nn.functional.avg_pool3d(masked, edges).unique().tolist()) == {0, 1}
    assert not set(torch.nn.functional.avg_pool3d(masked, (4, 4, 4)).unique().tolist()) <= {0, 1}
    stock("nnUNetv2_train", *PRETRAIN)


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
    trainer = new_trainer()
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


def test_loaders_can_be_sent_to_spawned_workers(ready: Path):
    """Where processes are not forked (macOS, Windows, Linux from Python 3.14) the batches are pickled."""
    trainer = new_trainer()
    trainer.initialize()
    batches = trainer._batches(trainer.do_split()[0], TRAINING)
    copied = pickle.loads(pickle.dumps(batches))
    assert torch.equal(copied[3]["data"], batches[3]["data"])


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


def test_damaged_volumes_are_named_and_left_out(ready, capsys):
    folder = pretraining_plans(ready).parent / "nnUNetGenesisPlans_3d_fullres"
    volumes = sorted(folder.glob("*[0-9].b2nd"))
    broken = volumes[1].stem
    volumes[1].unlink()
    (folder / f"{broken}.b2nd").write_bytes(b"no volume")
    trainer = new_trainer()
    training, validation = trainer.do_split()
    assert sorted(training + validation) == [volume.stem for volume in volumes if volume.stem != broken]
    assert f"1 of {len(volumes)} volumes in {folder.name} cannot be read and are left out: {broken} (" in (
        trainer.log_file and Path(trainer.log_file).read_text()
    )
    for volume in volumes:
        volume.unlink()
        volume.write_bytes(b"no volume")
    with pytest.raises(SystemExit, match="leave no case to pre-train on"):
        new_trainer().do_split()
