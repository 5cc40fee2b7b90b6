"""Pre-training: which patches and weights it starts from, what it saves as best, draws, logs and says at the end."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import re
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_genesis.pretraining.trainer import nnUNetTrainerGenesisPretrain
from nnunet_genesis.settings import CONVOLUTIONAL, PretrainingSettings
from tests.conftest import run_stock, use_folders
from tests.trainers.conftest import CPU, PRETRAIN, edit_plans, pretraining_plans, results

SETTINGS = {"epochs": 3, "iterations": 2, "validation_iterations": 3, "save_every": 2, "sheet_every": 2, "seed": 7,
            "validation_share": 0.5, "learning_rate": 0.004, "weight_decay": 0.03}  # fmt: skip


def change_settings(folder: Path, **settings: Any) -> None:
    edit_plans(pretraining_plans(folder), **{f"genesis__pretraining__{key}": value for key, value in settings.items()})


def start(dataset: int = 501, fold: int | str = "all") -> nnUNetTrainerGenesisPretrain:
    names = ("nnUNetTrainerGenesisPretrain", "nnUNetGenesisPlans")
    return get_trainer_from_args(str(dataset), "3d_fullres", fold, *names, device=CPU)


def log_of(trainer: Any) -> str:
    """All logs of the folder: nnU-Net names them by the second, so that two trainers may share one."""
    return "".join(path.read_text() for path in sorted(Path(trainer.output_folder).glob("training_log*.txt")))


@pytest.fixture(scope="module")
def whole(ready_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A whole run on patches that reach beyond the volumes: its folder, and each figure as it was saved."""
    with pytest.MonkeyPatch.context() as patch:
        base = use_folders(tmp_path_factory.mktemp("whole"), patch)
        shutil.copytree(ready_once, base, dirs_exist_ok=True)
        plans = json.loads(pretraining_plans(base).read_text())
        plans["genesis"]["pretraining"] = SETTINGS
        plans["configurations"]["3d_fullres"]["patch_size"] = [16, 32, 16]
        pretraining_plans(base).write_text(json.dumps(plans))
        figures: dict[str, Figure] = {}
        saved: list[tuple[int, str]] = []
        savefig, save = Figure.savefig, nnUNetTrainerGenesisPretrain.save_checkpoint

        def keep(self: Figure, path: Path, **options: Any) -> None:
            figures[Path(path).name.removeprefix(".incomplete_")] = self
            savefig(self, path, **options)

        def note(self: Any, filename: str) -> None:
            saved.append((self.current_epoch, Path(filename).name))
            save(self, filename)

        patch.setattr(Figure, "savefig", keep)
        patch.setattr(nnUNetTrainerGenesisPretrain, "save_checkpoint", note)
        run_stock(patch, "nnUNetv2_train", *PRETRAIN)
        folder = results(base, "nnUNetTrainerGenesisPretrain")
        checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=True)
        yield SimpleNamespace(base=base, folder=folder, figures=figures, saved=saved, checkpoint=checkpoint,
                              log=checkpoint["logging"], text=next(folder.glob("training_log*.txt")).read_text())  # fmt: skip


def test_pictures_and_checkpoints_appear_in_their_epochs(whole):
    assert {path.name for path in whole.folder.glob("*.png")} == set(whole.figures) == {
        "progress.png", "restoration_epoch_0002.png", "restoration_epoch_0003.png", "restoration_final.png"
    }  # fmt: skip
    assert (1, "checkpoint_latest.pth") in whole.saved
    assert [name for _, name in whole.saved].count("checkpoint_latest.pth") == 1
    best = [epoch for epoch, name in whole.saved if name == "checkpoint_best.pth"]
    errors = whole.log["restoration_mse"]
    assert best == [n for n in range(3) if errors[n] < min(errors[:n], default=math.inf)]
    titles = {name: figure.get_suptitle() for name, figure in whole.figures.items() if name != "progress.png"}
    assert titles == {
        f"restoration_{name}.png": f"Dataset501_Scans 3d_fullres: held-out patches, {title}"
        for name, title in {"epoch_0002": "epoch 2", "epoch_0003": "epoch 3", "final": "after 3 epochs"}.items()
    }


def test_the_settings_reach_optimiser_and_log(whole):
    rates = [0.004 * (1 - epoch / 3) ** 0.9 for epoch in range(3)]
    assert whole.log["lrs"] == pytest.approx(rates)
    (group,) = whole.checkpoint["optimizer_state"]["param_groups"]
    assert group["weight_decay"] == 0.03
    assert {len(values) for values in whole.log.values()} == {3}
    assert "have no settings for pre-training" not in whole.text
    assert "Pre-training settings: {'loss': 'mse', 'epochs': 3" in whole.text
    assert "2 volumes to train on, 2 held out" in whole.text
    assert "Patches are corrupted in the training process" in whole.text
    for epoch in range(3):
        values = {name: f"{values[epoch]:.4f}" for name, values in whole.log.items()}
        for line in (f"train_loss {values['train_losses']}  val_loss {values['val_losses']}",
                     f"restoration MSE {values['restoration_mse']} (copying the input {values['copy_mse']}, patch mean "
                     f"{values['mean_mse']})  MAE {values['restoration_mae']}"):  # fmt: skip
            assert line in whole.text


def test_the_checkpoint_says_what_it_is(whole):
    plans = json.loads(pretraining_plans(whole.base).read_text())
    configuration = plans["configurations"]["3d_fullres"]
    facts = whole.checkpoint["genesis"]
    assert "Models Genesis" in facts["task"]
    assert facts["channel_names"] == ["T1"]
    for key in ("spacing", "patch_size", "normalization_schemes", "architecture"):
        assert facts[key] == configuration[key]
    assert facts["settings"] == PretrainingSettings.of_plans(plans).resolved(CONVOLUTIONAL).block()
    assert facts["settings"]["seed"] == 7
    assert set(facts["versions"]) == {"nnunet-genesis", "nnunetv2", "torch", "numpy"}


def test_the_summary_repeats_the_last_validation_and_takes_the_corruptions_apart(whole):
    summary = json.loads((whole.folder / "restoration_summary.json").read_text())
    assert summary["epochs"] == 3
    assert "MSE" in summary["unit"]
    assert len(summary["held_out"]) == 2
    errors = summary["errors"]
    assert list(errors) == ["recipe", "shuffling alone", "intensity alone", "outer_cutout alone", "inner_cutout alone"]
    for key, name in {"mse": "restoration_mse", "mae": "restoration_mae", "psnr": "restoration_psnr",
                      "copy_mse": "copy_mse", "mean_mse": "mean_mse"}.items():  # fmt: skip
        assert errors["recipe"][key] == pytest.approx(whole.log[name][-1], rel=1e-4)
    assert len({error["copy_mse"] for error in errors.values()}) == len(errors)  # each corrupts in its own way
    assert {error["mean_mse"] for error in errors.values()} == {errors["recipe"]["mean_mse"]}  # the same crops
    for name, error in errors.items():
        assert re.search(rf"{name} +MSE {error['mse']:.4f} \(copying the input {error['copy_mse']:.4f}, patch mean "
                         rf"{error['mean_mse']:.4f}\)  PSNR {error['psnr']:.2f} dB", whole.text)  # fmt: skip


def test_pictures_show_the_held_out_patches_and_what_became_of_them(whole, monkeypatch):
    """Columns of the last picture against the loader's patches and the network's answers; padding is left out."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(name, str(whole.base / name))
    monkeypatch.setenv("nnUNet_results", str(whole.base))
    trainer = start()
    trainer.initialize()
    trainer.network.load_state_dict(whole.checkpoint["network_weights"])
    trainer.network.eval()
    _, held_out = trainer.get_dataloaders()
    batches = [next(held_out) for _ in range(3)]
    axes = np.array(whole.figures["restoration_final.png"].axes).reshape(4, 4)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == [key for batch in batches[:2] for key in batch["keys"]]
    for number, across in enumerate(axes):
        batch, n = batches[number // 2], number % 2
        with torch.no_grad():
            restored = trainer.network(batch["data"][n : n + 1])[0, 0, 8].numpy()
        original, corrupted = batch["target"][n, 0, 8].numpy(), batch["data"][n, 0, 8].numpy()
        outside = np.isnan(original)
        assert 0 < outside.mean() < 0.5
        for ax, image in zip(across, (original, corrupted, restored, np.abs(restored - original)), strict=True):
            shown = np.ma.filled(ax.images[0].get_array().astype(float), np.nan)
            np.testing.assert_allclose(shown, np.where(outside, np.nan, image), rtol=1e-3, atol=1e-4)
    with torch.no_grad():  # in full precision, without a GPU
        squares = [(trainer.network(batch["data"]) - batch["target"]).square() for batch in batches]
    errors = [patch.nanmean().item() for batch in squares for patch in batch]
    assert np.mean(errors) == pytest.approx(whole.log["restoration_mse"][-1], rel=1e-5)
    shown = {line.get_label(): list(line.get_ydata()) for ax in whole.figures["progress.png"].axes for line in ax.lines}
    assert shown["restored"] == whole.log["restoration_mse"]


def epoch(trainer: Any, mse: float, mae: float = 1.0, took: float = 1.0) -> None:
    """End an epoch that had these errors."""
    trainer.logger.log("epoch_start_timestamps", time.time() - took, trainer.current_epoch)
    trainer.logger.log("lrs", 0.1, trainer.current_epoch)
    trainer.on_train_epoch_end([{"loss": np.array(0.5)}])
    error = {"mse": mse, "mae": mae, "psnr": 20.0, "ssim": 0.5, "copy_mse": 2.0, "mean_mse": 3.0}
    trainer.on_validation_epoch_end([{"errors": [error, error]}])
    trainer.on_epoch_end()


@pytest.mark.parametrize(("loss", "logged"), [("mse", 0.4), ("l1", 0.9)])
def test_the_log_of_a_validation(ready: Path, loss, logged):
    change_settings(ready, loss=loss)
    trainer = start()
    error = {"mse": 0.3, "mae": 1.0, "psnr": 20.0, "ssim": 0.5, "copy_mse": 2.0, "mean_mse": 3.0}
    trainer.on_validation_epoch_end([{"errors": [error]}, {"errors": [error | {"mse": 0.5, "mae": 0.8}]}])
    values = {name: trainer.logger.get_value(name, -1) for name in (
        "val_losses", "restoration_mse", "restoration_mae", "restoration_psnr", "copy_mse", "mean_mse")}  # fmt: skip
    assert list(values.values()) == pytest.approx([logged, 0.4, 0.9, 20, 2, 3])


def test_every_epoch_projects_the_end_of_the_run(ready: Path):
    """From its own length, in a resumed training too; an error that is not finite is no best one."""
    change_settings(ready, epochs=4, save_every=9)
    trainer = start()
    trainer.initialize()
    trainer.on_train_start()
    best = Path(trainer.output_folder) / "checkpoint_best.pth"
    for done, error in enumerate((math.inf, 0.5), start=1):
        epoch(trainer, error, took=10_000)
        assert projected(trainer)[-1] - time.time() == pytest.approx(10_000 * (4 - done), abs=90)
        assert best.exists() == math.isfinite(error)
    assert re.search(r"Epoch time: 100\d\d\.\d\d s", log_of(trainer))

    resumed = start()
    resumed.load_checkpoint(str(best))
    resumed.on_train_start()
    epoch(resumed, 0.45, took=20_000)
    assert projected(resumed)[-1] - time.time() == pytest.approx(20_000, abs=90)


def projected(trainer: Any) -> list[float]:
    """The ends of the run that its logs projected, in seconds since 1970."""
    told = re.findall(r"Projected end: (\d{4}-\d\d-\d\d \d\d:\d\d)", log_of(trainer))
    return [datetime.strptime(one, "%Y-%m-%d %H:%M").timestamp() for one in told]


def test_a_resumed_training_goes_on_in_the_stream(ready: Path):
    change_settings(ready, iterations=2, validation_iterations=3, validation_share=0.5)
    trainer = start()
    trainer.initialize()
    train, held_out = trainer.get_dataloaders()
    fresh, first = list(itertools.islice(train, 6)), list(itertools.islice(held_out, 3))
    resumed = start()
    resumed.current_epoch = 2
    resumed.initialize()
    train, held_out = resumed.get_dataloaders()
    for one, other in zip(fresh[4:], train, strict=False):
        assert torch.equal(one["data"], other["data"])
        assert one["keys"] == other["keys"]
    repeated = list(itertools.islice(held_out, 6))
    for one, other in zip(first + first, repeated, strict=True):
        assert torch.equal(one["data"], other["data"])
    # training and validation share no case, and no two batches are alike
    assert {key for batch in fresh for key in batch["keys"]} <= set(trainer.do_split()[0])
    assert {key for batch in first for key in batch["keys"]} == set(trainer.do_split()[1])
    assert len({batch["data"].sum().item() for batch in fresh + first}) == 9


def test_initial_weights_come_from_the_seed_alone_and_leave_others_alone(ready: Path):
    def weights(seed: int, state: int) -> torch.Tensor:
        change_settings(ready, seed=seed)
        torch.manual_seed(state)
        before = torch.get_rng_state()
        trainer = start()
        trainer.initialize()
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat([parameter.flatten() for parameter in trainer.network.parameters()])

    assert torch.equal(weights(3, 1), weights(3, 2))
    assert not torch.equal(weights(3, 1), weights(4, 1))


def test_seed_and_share_decide_what_is_held_out(ready: Path):
    splits = []
    for seed, share in itertools.product(range(6), (0.1, 0.5)):
        change_settings(ready, seed=seed, validation_share=share)
        trainer = start()
        trainer.initialize()
        splits.append(trainer.do_split())
        assert [len(part) for part in splits[-1]] == ([3, 1] if share == 0.1 else [2, 2])
        assert sorted(itertools.chain(*splits[-1])) == ["case0", "case1", "case2", "case3"]
        assert "WARNING" not in log_of(trainer)
    assert len({tuple(held_out) for _, held_out in splits[::2]}) > 1


def test_a_single_volume_and_a_split_of_ones_own(ready: Path):
    folder = ready / "nnUNet_preprocessed/Dataset501_Scans"
    split = {"train": ["case0"], "val": ["case3", "case2"]}
    (folder / "splits_final.json").write_text(json.dumps([split]))
    trainer = start(fold=0)
    trainer.initialize()
    assert trainer.do_split() == (split["train"], split["val"])
    for path in folder.glob("nnUNetGenesisPlans_3d_fullres/case[123]*"):
        path.unlink()
    trainer = start()
    trainer.initialize()
    assert trainer.do_split() == (["case0"], ["case0"])
    assert "WARNING: there is one volume only" in log_of(trainer)


def test_outputs_are_as_many_as_inputs_and_settings_have_defaults(ready: Path, genesis):
    """Labels do not count: dataset 4 has three. Without a block of settings a line says that defaults hold."""
    assert genesis("plan", "-d", 4, "--like", 4) == 0
    edit_plans(ready / "nnUNet_preprocessed/Dataset004_Target/nnUNetGenesisPlans.json", genesis={})
    trainer = start(4)
    trainer.initialize()
    assert trainer.network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 1, 16, 16, 16)
    assert "These plans have no settings for pre-training: the defaults hold." in log_of(trainer)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (
        1000,
        250,
        50,
    )


def one_rank(rank: int, ranks: int, folder: Path) -> None:
    """What a process of a distributed training gets to see, logs and writes; a GPU it does not have."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    trainer = start()
    trainer.device = CPU
    trainer.dataset_class = infer_dataset_class(trainer.preprocessed_dataset_folder)
    trainer._set_batch_size_and_oversample()
    train, held_out = trainer.get_dataloaders()
    batches = [[next(stream) for _ in range(2)] for stream in (train, held_out)]
    error = {"mae": 1.0, "psnr": 1.0, "ssim": 1.0, "copy_mse": 1.0, "mean_mse": 1.0}
    errors = [{"errors": [error | {"mse": float(rank + part)}]} for part in range(rank + 1)]
    trainer.on_validation_epoch_end(errors)
    if rank:
        trainer.save_checkpoint(str(folder / "checkpoint.pth"))
    torch.save([batches, trainer.logger.get_value("restoration_mse", -1)], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_share_a_batch_and_their_errors(ready: Path, tmp_path: Path):
    """Three processes with a batch of five get its patches 0-1, 2-3 and 4; one of them writes."""
    edit_plans(pretraining_plans(ready), configurations__3d_fullres__batch_size=5)
    trainer = start()
    trainer.initialize()
    whole = [[next(stream) for _ in range(2)] for stream in trainer.get_dataloaders()]
    forked: Callable[..., Any] = multiprocessing.get_context("fork").Process
    processes = [forked(target=one_rank, args=(rank, 3, tmp_path)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(3)]
    assert [len(part[0][0][0]["keys"]) for part in parts] == [2, 2, 1]
    for stream, number in itertools.product(range(2), range(2)):
        together = [part[0][stream][number] for part in parts]
        assert list(itertools.chain(*(batch["keys"] for batch in together))) == whole[stream][number]["keys"]
        for key in ("data", "target"):
            torch.testing.assert_close(torch.cat([batch[key] for batch in together]), whole[stream][number][key],
                                       rtol=0, atol=0, equal_nan=True)  # fmt: skip
    # the errors of all patches, 0, 1 and 2, 2 and 3 and 4
    assert [part[1] for part in parts] == pytest.approx([np.mean([0, 1, 2, 2, 3, 4])] * 3)
    assert not (tmp_path / "checkpoint.pth").exists()
