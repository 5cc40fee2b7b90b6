"""Pre-training of a Primus: a masked autoencoder, and whole patches; what is refused, learned, resumed, said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_genesis.pretraining.masked_autoencoder import MaskedAutoencoder
from nnunet_genesis.pretraining.patches import VALIDATION
from nnunet_genesis.pretraining.trainer import nnUNetTrainerGenesisPretrain
from nnunet_genesis.primus import Primus
from tests.conftest import run_genesis, run_stock, use_folders
from tests.trainers.conftest import CPU, PRETRAIN, edit_plans, pretraining_plans, results

TRAINER = "nnUNetTrainerGenesisPretrain"
PATCH = (24, 16, 16)
"""Longer than the volumes along one axis."""
SIZES = {"embed_dim": 48, "eva_depth": 2, "eva_numheads": 2, "patch_embed_size": [8, 8, 8], "input_shape": list(PATCH),
         "drop_path_rate": 0.2, "scale_attn_inner": True, "init_values": 0.1}  # fmt: skip
PRIMUS = {"network_class_name": "nnunet_genesis.primus.Primus", "arch_kwargs": SIZES, "_kw_requires_import": []}


def plan(ready: Path, genesis: Any, *flags: object, patch: tuple[int, ...] = PATCH, **settings: Any) -> None:
    """Plans of dataset 501 with the settings of flags and a small Primus."""
    lengths = ("--epochs", 3, "--iterations", 2, "--validation-iterations", 2, "--save-every", 1)
    before = json.loads(pretraining_plans(ready).read_text())
    assert genesis("plan", "-d", 501, "--like", 4, "--network", "primus_s", *lengths, *flags) == 0
    plans = before | {"genesis": json.loads(pretraining_plans(ready).read_text())["genesis"]}
    block = plans["configurations"]["3d_fullres"]
    block["architecture"] = PRIMUS | {"arch_kwargs": SIZES | {"input_shape": list(patch)}}
    block["patch_size"] = list(patch)
    plans["genesis"]["pretraining"] |= settings
    pretraining_plans(ready).write_text(json.dumps(plans))


RANGE = ("--recipe", "mae", "--warmup", 1.5, "--masking-ratio", 0.5, 0.9)


@pytest.fixture(scope="module")
def trained(ready_once: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """A masked autoencoder: its last checkpoint, its summary."""
    with pytest.MonkeyPatch.context() as patch:
        base = use_folders(tmp_path_factory.mktemp("trained"), patch)
        shutil.copytree(ready_once, base, dirs_exist_ok=True)
        plan(base, run_genesis, *RANGE)
        run_stock(patch, "nnUNetv2_train", *PRETRAIN)
        assert (results(base, TRAINER) / "progress.png").is_file()
        return ended(base)


def ended(base: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = results(base, TRAINER)
    summary = json.loads((folder / "restoration_summary.json").read_text())
    return torch.load(folder / "checkpoint_final.pth", weights_only=True), summary


def new_trainer(configuration: str = "3d_fullres") -> Any:
    names = ("nnUNetTrainerGenesisPretrain", "nnUNetGenesisPlans")
    return get_trainer_from_args("501", configuration, "all", *names, device=CPU)


def wave(seed: int) -> np.ndarray:
    """A smooth volume (1, z, y, x) whose structure is much the same for every seed, as anatomy is."""
    rng, grid = np.random.default_rng(seed), np.meshgrid(*map(np.arange, (20, 24, 22)), indexing="ij")
    crests = [np.cos(2 * np.pi * axis / edge + rng.uniform()) for axis, edge in zip(grid, (16, 24, 16), strict=True)]
    return np.sum(crests, axis=0)[None].astype(np.float32)


@pytest.mark.parametrize("normalised_targets", ["auto", "no"])
@pytest.mark.usefixtures("no_curves")
def test_hidden_cells_are_restored_better_than_without_learning(ready: Path, genesis, normalised_targets):
    plan(ready, genesis, "--recipe", "mae", "--lr", 5e-3, "--normalised-targets", normalised_targets,
         patch=(16, 24, 16), epochs=3, iterations=60, validation_iterations=4)  # fmt: skip
    folder = ready / "nnUNet_preprocessed/Dataset501_Scans/nnUNetGenesisPlans_3d_fullres"
    for number in range(4):
        blosc2.asarray(wave(number), urlpath=str(folder / f"case{number}.b2nd"), mode="w")
    trainer = new_trainer()
    trainer.initialize()
    trainer.run_training()
    log = trainer.logger.local_logger.my_fantastic_logging
    assert "copy_mse" not in log
    baselines = [log[name][-1] for name in ("visible_mse", "infill_mse")]
    assert all(log["restoration_mse"][-1] < 0.92 * error for error in baselines)
    assert log["val_losses"] == log["restoration_mse"]
    (text,) = Path(trainer.output_folder).glob("training_log*.txt")
    told = re.search(rf"MSE {log['restoration_mse'][-1]:.4f} \(mean of what is visible (\S+), trilinear in-filling (\S+),",
                     text.read_text())  # fmt: skip
    assert list(map(float, told.groups())) == pytest.approx(baselines, abs=1e-4)
    if normalised_targets == "auto":  # no structure within a cell is guessed by one number for all
        assert baselines[0] == pytest.approx(1, abs=0.01)


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """Figures as they were saved."""
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *where, **how: (drawn.append(self), save(self, *where, **how)))
    return drawn


@pytest.mark.usefixtures("no_curves")
def test_an_interrupted_masked_autoencoder_ends_bit_by_bit_like_an_uninterrupted_one(
    ready: Path, stock, genesis, monkeypatch, trained
):
    plan(ready, genesis, *RANGE)
    whole, summary = trained

    def stop_or_go(self):
        if self.current_epoch == 2:
            raise KeyboardInterrupt
        start_epoch(self)

    start_epoch = nnUNetTrainerGenesisPretrain.on_epoch_start
    with monkeypatch.context() as patch:
        patch.setattr(nnUNetTrainerGenesisPretrain, "on_epoch_start", stop_or_go)
        with pytest.raises(KeyboardInterrupt):
            stock("nnUNetv2_train", *PRETRAIN)
    stock("nnUNetv2_train", *PRETRAIN, "--c")
    resumed, summary_of_resumed = ended(ready)
    assert resumed["network_weights"].keys() == whole["network_weights"].keys()
    assert all(torch.equal(resumed["network_weights"][name], value) for name, value in whole["network_weights"].items())
    assert resumed["logging"]["lrs"] == whole["logging"]["lrs"]
    assert resumed["logging"]["infill_mse"] == whole["logging"]["infill_mse"]
    assert summary_of_resumed == summary
    assert list(summary["errors"]) == ["recipe", "masking alone"]
    assert summary["errors"]["recipe"] == summary["errors"]["masking alone"]


def test_the_checkpoint_holds_a_primus_under_its_own_names(ready: Path, genesis, trained):
    plan(ready, genesis, *RANGE)
    content, _ = trained
    weights = content["network_weights"]
    inner = {name.removeprefix("network."): value for name, value in weights.items() if name.startswith("network.")}
    network = Primus(1, 1, **SIZES)
    network.load_state_dict(inner)
    assert {name.split(".")[0] for name in weights} == {"network", "decoder_of_tokens"}
    assert "masked autoencoder" in content["genesis"]["task"]
    assert content["genesis"]["settings"]["weight_decay"] == 0.05  # of a transformer
    assert content["genesis"]["settings"]["normalised_targets"] == "auto"
    trainer = new_trainer()
    trainer.initialize()
    started = trainer.network.state_dict()
    assert not [name for name, value in weights.items() if torch.equal(started[name], value)]
    assert not [
        module for module in trainer.network.modules() if getattr(module, "drop_prob", 0)
    ]  # that is fine-tuning's
    assert isinstance(trainer.network, MaskedAutoencoder)


@pytest.mark.parametrize("normalised_targets", ["yes", "no"])
def test_pictures_show_what_was_visible_and_what_was_restored(ready: Path, genesis, figures, normalised_targets):
    """In intensities; the volumes are smaller than the patch."""
    plan(ready, genesis, "--recipe", "mae", "--normalised-targets", normalised_targets, patch=(24, 32, 24))
    trainer = new_trainer()
    trainer.initialize()
    trainer.get_dataloaders()
    trainer.draw_sheet("sheet.png", "now")
    axes = np.array(figures[0].axes).reshape(4, 4)
    batches = trainer._batches(trainer.validation_cases, VALIDATION)
    for k, across in enumerate(axes):
        original, corrupted, target, _ = batches.example(k)
        shown = [np.ma.filled(ax.images[0].get_array().astype(float), np.nan) for ax in across]
        hidden, outside = corrupted.isnan()[0, 12].numpy(), original.isnan()[0, 12].numpy()
        assert hidden.any()
        assert outside.any()
        assert not (hidden & outside).any()
        assert np.array_equal(np.isnan(shown[1]), hidden | outside)
        assert np.array_equal(np.isnan(shown[2]), outside)
        np.testing.assert_allclose(shown[2][~hidden], shown[0][~hidden], rtol=1e-5)
        with torch.no_grad():
            restored = trainer.network(corrupted[None])
        expected = trainer.loss.in_intensities(restored, target[None])[0, 0, 12].numpy()
        np.testing.assert_allclose(shown[2][hidden], expected[hidden], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recipe", ["paper", "released", "masking"])
@pytest.mark.usefixtures("no_curves")
def test_a_primus_restores_whole_patches_too(ready: Path, stock, genesis, recipe):
    plan(ready, genesis, "--recipe", recipe, "--epochs", 1, "--drop-path", 0.1)
    stock("nnUNetv2_train", *PRETRAIN)
    content, _ = ended(ready)
    Primus(1, 1, **SIZES).load_state_dict(content["network_weights"])
    assert "copy_mse" in content["logging"]
    trainer = new_trainer()
    trainer.initialize()
    assert isinstance(trainer.network, Primus)
    assert trainer.network.eva.blocks[-1].drop_path1.drop_prob == 0.1


def test_networks_that_cannot_leave_cells_out_are_refused(ready: Path, stock, genesis):
    plan(ready, genesis, "--recipe", "mae")
    stock_plans = json.loads((ready / "nnUNet_preprocessed/Dataset004_Target/nnUNetPlans.json").read_text())
    convolutional = stock_plans["configurations"]["3d_fullres"]["architecture"]
    edit_plans(pretraining_plans(ready), configurations__3d_fullres__architecture=convolutional)
    with pytest.raises(SystemExit, match="needs a Primus, which is 3D only.*PlainConvUNet.*recipe masking") as refusal:
        stock("nnUNetv2_train", *PRETRAIN)
    assert "\n" not in str(refusal.value.code)
    with pytest.raises(SystemExit, match="2d has patches with 2 axes.*recipe masking"):
        stock("nnUNetv2_train", 501, "2d", *PRETRAIN[2:])


def test_whole_images_are_not_restored_by_a_masked_autoencoder(ready: Path, genesis, capsys):
    plan(ready, genesis, "--recipe", "mae")
    trainer = new_trainer()
    trainer.initialize()
    trainer.save_checkpoint(str(ready / "mae.pth"))
    (ready / "scans").mkdir()
    shutil.copy(ready / "nnUNet_raw/Dataset501_Scans/imagesTr/case0_0000.nii.gz", ready / "scans")
    assert (
        genesis("restore", ready / "mae.pth", "-i", ready / "scans", "-o", ready / "restored", "--device", "cpu") == 1
    )
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "holds a masked autoencoder" in line


def test_the_preview_shows_hidden_cells(ready: Path, genesis, figures):
    plan(ready, genesis, "--recipe", "mae")
    assert genesis("preview", "-d", 501, "-c", "3d_fullres", "-o", ready / "preview.png", "-n", 1) == 0
    pictures = [ax.images[0].get_array() for ax in figures[0].axes]
    assert [bool(np.ma.getmaskarray(image).any() or np.isnan(image).any()) for image in pictures] == [False] + [
        True
    ] * 4


def test_what_a_masked_autoencoder_learned_is_transferred_into_a_primus(ready: Path, genesis):
    plan(ready, genesis, "--recipe", "mae")
    trainer = new_trainer()
    trainer.initialize()
    trainer.save_checkpoint(str(ready / "mae.pth"))
    target = ready / "nnUNet_preprocessed/Dataset004_Target"
    edit_plans(target / "nnUNetPlans.json", configurations__3d_fullres__architecture=PRIMUS,
               configurations__3d_fullres__patch_size=list(PATCH))  # fmt: skip
    assert genesis("transfer", ready / "mae.pth", "-d", 4, "-c", "3d_fullres", "--epochs", 2) == 0
    (file,) = target.glob("*.pth")
    carried = torch.load(file, weights_only=True)["network_weights"]
    ours = trainer.network.network.state_dict()
    encoder = [name for name in ours if name.startswith(("eva.", "down_projection."))]
    assert len(encoder) > 20
    assert all(torch.equal(carried[name], ours[name]) for name in encoder)
    assert not [name for name in carried if "decoder_of_tokens" in name]
