"""Pre-training that stops when held-out restoration no longer improves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nnunet_genesis.pretraining.restoration_log import RestorationLog
from nnunet_genesis.pretraining.trainer import nnUNetTrainerGenesisPretrain
from tests.trainers.conftest import PRETRAIN, edit_plans, pretraining_plans, results

NAN = float("nan")


def losses(patch: pytest.MonkeyPatch, *values: float) -> None:
    """Let the epochs have these validation losses, and no pictures."""

    def log(self, outputs):
        for name in ("restoration_mse", "restoration_mae", "restoration_psnr", "copy_mse", "mean_mse"):
            self.logger.log(name, 1.0, self.current_epoch)
        self.logger.log("val_losses", values[self.current_epoch], self.current_epoch)

    patch.setattr(nnUNetTrainerGenesisPretrain, "on_validation_epoch_end", log)
    patch.setattr(nnUNetTrainerGenesisPretrain, "draw_sheet", lambda self, name, title: None)
    patch.setattr(nnUNetTrainerGenesisPretrain, "validation_step", lambda self, batch: {"errors": []})
    patch.setattr(RestorationLog, "plot_progress_png", lambda self, folder: None)


def stopped_after(folder: Path) -> int:
    content = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert len(content["logging"]["val_losses"]) == content["current_epoch"]
    assert not (folder / "checkpoint_latest.pth").exists()
    assert json.loads((folder / "restoration_summary.json").read_text())["epochs"] == content["current_epoch"]
    return content["current_epoch"]


@pytest.mark.parametrize(
    ("patience", "values", "epochs", "best"),
    [
        (0, [1, 2, 2, 2, 2, 2], 6, 1),
        (2, [3, 2, 2.5, 1, 1.5, 1, 0], 6, 4),  # a tie is no improvement
        (3, [3, 1, 2, 2, 2, 0], 5, 2),
        (2, [NAN, 1, NAN, 0.5, NAN, NAN, 0], 6, 4),
        (2, [NAN, NAN, 0], 2, None),
        (2, [1, 2, 2], 3, 1),  # at the end anyway
    ],
)
def test_pretraining_stops_when_held_out_restoration_no_longer_improves(
    ready: Path, stock, monkeypatch, patience, values, epochs, best
):
    edit_plans(pretraining_plans(ready), genesis__pretraining__patience=patience,
               genesis__pretraining__epochs=len(values), genesis__pretraining__iterations=1,
               genesis__pretraining__validation_iterations=1)  # fmt: skip
    losses(monkeypatch, *values)
    stock("nnUNetv2_train", *PRETRAIN)
    folder = results(ready, "nnUNetTrainerGenesisPretrain")
    assert stopped_after(folder) == epochs
    kept = folder / "checkpoint_best.pth"
    assert (torch.load(kept, weights_only=True)["current_epoch"] if kept.exists() else None) == best
    told = "".join(path.read_text() for path in folder.glob("training_log*.txt"))
    expected = f"Stopped before epoch {epochs} of {len(values)}: {patience} epochs without a smaller val_loss"
    assert (expected in told) == (epochs < len(values))


def test_a_training_that_has_stopped_goes_on_only_if_asked_to(ready: Path, stock, monkeypatch):
    edit_plans(pretraining_plans(ready), genesis__pretraining__patience=2, genesis__pretraining__epochs=9,
               genesis__pretraining__iterations=1, genesis__pretraining__validation_iterations=1)  # fmt: skip
    losses(monkeypatch, *[2, 1, 2, 2, 2, 2, 2, 2, 0])

    def stop(self):
        original(self)
        if self.current_epoch == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        original = nnUNetTrainerGenesisPretrain.on_epoch_end
        patch.setattr(nnUNetTrainerGenesisPretrain, "on_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            stock("nnUNetv2_train", *PRETRAIN)
    folder = results(ready, "nnUNetTrainerGenesisPretrain")
    for patience, epochs in ((2, 4), (2, 4), (3, 5), (0, 9)):
        edit_plans(pretraining_plans(ready), genesis__pretraining__patience=patience)
        stock("nnUNetv2_train", *PRETRAIN, "--c")
        assert stopped_after(folder) == epochs
