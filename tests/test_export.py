"""Fine-tuned models exported for stock nnU-Net: equal predictions without this package, refusals, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_genesis import export as exporting
from nnunet_genesis.errors import CheckpointError, DatasetError
from nnunet_genesis.export import export
from tests.conftest import run_genesis, run_stock, shrink_plans, use_folders, write_dataset

RESULTS = "nnUNet_results/Dataset004_Target"
OURS = "nnUNetTrainerGenesisFinetune__nnUNetPlans_scratch__"
STOCK = "nnUNetTrainer__nnUNetPlans_scratch__"

WITHOUT_PLUGIN = """
import importlib, sys
sys.modules["nnunet_genesis"] = None  # also in the processes that nnU-Net starts, which import this file
if __name__ == "__main__":
    import torch
    torch.set_num_threads = lambda count: None
    module, function = sys.argv.pop(1).split(":")
    getattr(importlib.import_module(module), function)()
"""


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of 3d_fullres and 2d, fine-tuned for two steps; 3d_fullres also has a fold 1 and an unfinished fold 2."""
    with pytest.MonkeyPatch.context() as patch:
        base = use_folders(tmp_path_factory.mktemp("trained"), patch)
        write_dataset(base, 4, "Target", 5)
        assert run_genesis("plan", "-d", 4, "--template", "tiny", "-p", "nnUNetPlans") == 0
        shrink_plans(base / "nnUNet_preprocessed/Dataset004_Target/nnUNetPlans.json")
        run_stock(patch, "nnUNetv2_preprocess", "-d", 4, "-plans_name", "nnUNetPlans", "-c", "3d_fullres", "2d", "-np",
                  1)  # fmt: skip
        shutil.copy(base / "nnUNet_raw/Dataset004_Target/dataset.json", base / "nnUNet_preprocessed/Dataset004_Target")
        fingerprint = base / "nnUNet_preprocessed/Dataset004_Target/dataset_fingerprint.json"
        if not fingerprint.is_file():
            fingerprint.write_text("{}")
        for configuration in ("3d_fullres", "2d"):
            schedule = ("--epochs", 1, "--iterations", 2, "--lr", 0.1)
            assert run_genesis("transfer", "--from-scratch", "-d", 4, "-c", configuration, *schedule) == 0
            run_stock(patch, "nnUNetv2_train", 4, configuration, 0, "-tr", "nnUNetTrainerGenesisFinetune", "-p",
                      "nnUNetPlans_scratch", "-device", "cpu")  # fmt: skip
        model = base / RESULTS / f"{OURS}3d_fullres"
        shutil.copytree(model / "fold_0", model / "fold_1")  # other weights in place of a second training
        path = model / "fold_1/checkpoint_final.pth"
        weights = torch.load(path, weights_only=True)["network_weights"]
        edited(path, network_weights={name: 1.5 * tensor for name, tensor in weights.items()})
        (model / "fold_2").mkdir()
        crossval = model / "crossval_results_folds_0_1"
        crossval.mkdir()
        for name in ("postprocessing.pkl", "postprocessing.json", "summary.json", "case0.nii.gz"):
            (crossval / name).write_bytes(name.encode())
    return base


@pytest.fixture
def trained(trained_once: Path, nnunet: Path) -> Path:
    """A copy of the models that a test may change; the folder with nnU-Net's three."""
    shutil.copytree(trained_once, nnunet, dirs_exist_ok=True)
    return nnunet


@pytest.fixture
def model(trained: Path) -> Path:
    return trained / RESULTS / f"{OURS}3d_fullres"


def alone(base: Path, entry: str, *arguments: object) -> None:
    """Run a command of nnU-Net in a process that cannot import this package and knows no trainers but nnU-Net's."""
    script = base / "without_plugin.py"
    script.write_text(WITHOUT_PLUGIN)
    environment = {name: value for name, value in os.environ.items() if name != "nnUNet_extTrainer"}
    command = [sys.executable, str(script), entry, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=base, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def label_map(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.parametrize(("configuration", "folds"), [("3d_fullres", (0, 1)), ("2d", (0,))])
def test_stock_nnunet_predicts_the_same_without_the_package(configuration, folds, trained, genesis, stock, capsys):
    """By the command that the export prints, and by the model's folder, where nnU-Net starts processes."""
    model = trained / RESULTS / f"{OURS}{configuration}"
    images = trained / "images"
    images.mkdir()
    shutil.copy(trained / "nnUNet_raw/Dataset004_Target/imagesTr/case0_0000.nii.gz", images)
    options = ("-i", images, "-device", "cpu", "-f", *folds)
    at_once = ("-npp", 0, "-nps", 0)  # no processes beside
    stock("nnUNetv2_predict", "-d", 4, "-c", configuration, "-tr", "nnUNetTrainerGenesisFinetune", "-p",
          "nnUNetPlans_scratch", "-o", trained / "ours", *options, *at_once)  # fmt: skip
    assert genesis("export", model) == (2 if configuration == "3d_fullres" else 0)
    out = capsys.readouterr().out
    assert "Both models predict on the CPU, to be compared" in out
    assert "bit for bit, on patches of case0, case1, fold by fold" in out
    shutil.rmtree(model)
    shutil.rmtree(trained / "nnUNet_preprocessed")

    entries = "nnunetv2.inference.predict_from_raw_data"
    program, *words = out.splitlines()[-1].split()
    assert program == "nnUNetv2_predict"
    words = [{"IN": images, "OUT": trained / "stock"}.get(word, word) for word in words]
    alone(trained, f"{entries}:predict_entry_point", *words, "-device", "cpu", *at_once)
    expected = label_map(trained / "ours/case0.nii.gz")
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(label_map(trained / "stock/case0.nii.gz"), expected)
    if configuration == "3d_fullres":
        alone(trained, f"{entries}:predict_entry_point_modelfolder", "-m", trained / RESULTS / f"{STOCK}3d_fullres",
              "-o", trained / "modelfolder", *options, "-npp", 1, "-nps", 1)  # fmt: skip
        np.testing.assert_array_equal(label_map(trained / "modelfolder/case0.nii.gz"), expected)


def test_stock_nnunet_zips_it(trained, model):
    export(model)
    alone(trained, "nnunetv2.model_sharing.entry_points:export_pretrained_model_entry", "-d", 4, "-o", "model.zip",
          "-c", "3d_fullres", "-p", "nnUNetPlans_scratch", "-f", 0, 1)  # fmt: skip
    names = zipfile.ZipFile(trained / "model.zip").namelist()
    below = f"Dataset004_Target/{STOCK}3d_fullres"
    needed = ("plans.json", "fold_0/checkpoint_final.pth", "fold_1/checkpoint_final.pth", "fold_1/validation/summary.json",
              "crossval_results_folds_0_1/postprocessing.pkl")  # fmt: skip
    assert {f"{below}/{name}" for name in needed} <= set(names)


def test_files_are_nnunets_own(model):
    done = export(model)
    assert done.folder == model.with_name(f"{STOCK}3d_fullres")
    assert (done.folds, done.unfinished) == (["fold_0", "fold_1"], ["fold_2"])
    files = {str(path.relative_to(done.folder)) for path in done.folder.rglob("*") if path.is_file()}
    of_folds = {f"fold_{fold}/{name}" for fold in (0, 1)
                for name in ("checkpoint_final.pth", "progress.png", "validation/summary.json")}  # fmt: skip
    of_crossval = {f"crossval_results_folds_0_1/{name}"
                   for name in ("postprocessing.pkl", "postprocessing.json", "summary.json", "plans.json")}  # fmt: skip
    known = {"plans.json", "dataset.json", "dataset_fingerprint.json"} | of_folds | of_crossval
    assert files - {"fold_0/network_architecture.pdf", "fold_1/network_architecture.pdf"} == known
    for folder in (done.folder, done.folder / "crossval_results_folds_0_1"):
        plans = json.loads((folder / "plans.json").read_text())
        original = json.loads((model / "plans.json").read_text())
        assert "genesis" in original
        assert plans == {key: value for key, value in original.items() if key != "genesis"}
    for fold in done.folds:
        ours, theirs = (torch.load(path / fold / "checkpoint_final.pth", weights_only=True)
                        for path in (model, done.folder))  # fmt: skip
        assert theirs["trainer_name"] == "nnUNetTrainer"
        assert theirs["init_args"]["plans"] == plans
        assert theirs["genesis"] == ours["genesis"]
        assert set(theirs) == set(ours)
        for name, tensor in ours["network_weights"].items():
            assert torch.equal(theirs["network_weights"][name], tensor)


def test_another_checkpoint_and_no_volumes(model, trained):
    shutil.rmtree(trained / "nnUNet_preprocessed")
    (model / "fold_1/checkpoint_final.pth").rename(model / "fold_1/checkpoint_mine.pth")
    done = export(model, "checkpoint_mine.pth")
    assert (done.folds, done.compared) == (["fold_1"], "2 random patches")
    assert not (done.folder / "fold_0").exists()


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_patches_are_the_middle_of_the_volumes_that_the_network_reads(configuration, trained):
    folder = trained / "nnUNet_preprocessed/Dataset004_Target"
    plans, dataset_json = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    patches, compared = exporting._patches(plans, configuration, dataset_json)
    assert compared == "patches of case0, case1"
    for case, patch in zip(("case0", "case1"), patches, strict=True):
        volume = blosc2.open(str(folder / f"nnUNetPlans_{configuration}/{case}.b2nd"), mode="r")[:]
        first = [(edge - 16) // 2 for edge in volume.shape[1:]]
        last = [start + 16 for start in first]
        if configuration == "2d":
            first[0] = (volume.shape[1] - 1) // 2
            last[0] = first[0] + 1
        expected = volume[:, first[0] : last[0], first[1] : last[1], first[2] : last[2]]
        np.testing.assert_array_equal(patch.numpy(), expected)


def test_patches_of_a_cascade_have_channels_for_the_labels(trained):
    folder = trained / "nnUNet_preprocessed/Dataset004_Target"
    plans, dataset_json = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    plans["configurations"]["cascade"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_fullres"}
    patches, compared = exporting._patches(plans, "cascade", dataset_json)
    assert compared == "2 random patches"
    assert [tuple(patch.shape) for patch in patches] == [(3, 16, 16, 16)] * 2


def test_a_refusal_is_the_only_thing_that_is_said(model, genesis, capsys):
    assert genesis("export", model, "-chk", "checkpoint_none.pth") == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)


def refused(model: Path, kind: type[Exception], message: str, checkpoint: str = "checkpoint_final.pth") -> None:
    before = sorted(model.parent.rglob("*"))
    known = os.environ.get("nnUNet_extTrainer")
    with pytest.raises(kind, match=message):
        export(model, checkpoint)
    assert sorted(model.parent.rglob("*")) == before
    assert os.environ.get("nnUNet_extTrainer") == known


def test_a_volume_that_cannot_be_read_is_said_in_one_line(trained, model):
    for path in (trained / "nnUNet_preprocessed/Dataset004_Target/nnUNetPlans_3d_fullres").glob("*.b2nd"):
        path.write_bytes(path.read_bytes()[:40])
    refused(model, DatasetError, "The preprocessed case case0 in .* cannot be read .*Preprocess it again")


def test_an_existing_folder_is_left_alone(model):
    export(model)
    refused(model, DatasetError, "exists: it is a finished export, .* remove or rename it to export again")


def test_what_a_killed_process_left_is_replaced(model):
    draft = model.with_name(f".incomplete_{STOCK}3d_fullres")
    draft.mkdir()
    (draft / "strange").touch()
    assert not (export(model).folder / "strange").exists()
    assert not draft.exists()


@pytest.mark.parametrize("name", ["nnUNetTrainer__nnUNetPlans__3d_fullres", "fold_0"])
def test_other_folders_are_refused(name, model):
    other = model.with_name(name)
    other.mkdir()
    refused(other, CheckpointError, "not the results folder of a fine-tuned model")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"The results folder .*elsewhere does not exist\. Check the path\."):
        export(tmp_path / "elsewhere")


def test_a_model_without_checkpoints_is_refused(model):
    refused(model, DatasetError, "No fold in .* has a checkpoint_none.pth", "checkpoint_none.pth")


def test_own_network_is_refused_with_the_reason(model):
    plans = json.loads((model / "plans.json").read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    arguments = {"features_per_stage": [4, 8], "strides": [[1, 1, 1], [2, 2, 2]]}
    architecture |= {"network_class_name": "nnunet_genesis.unet3d.UNet3D", "arch_kwargs": arguments}
    architecture["_kw_requires_import"] = []
    (model / "plans.json").write_text(json.dumps(plans))
    refused(model, CheckpointError, "UNet3D is a class of nnunet-genesis.*without this package")


def edited(path: Path, **changes: object) -> None:
    torch.save(torch.load(path, weights_only=True) | changes, path)


def test_a_fold_of_another_trainer_is_refused(model):
    edited(model / "fold_1/checkpoint_final.pth", trainer_name="nnUNetTrainer")
    refused(model, CheckpointError, "is of nnUNetTrainer, 3d_fullres, not of")


def test_an_incomplete_checkpoint_is_refused(model):
    edited(model / "fold_1/checkpoint_final.pth", init_args=None)
    refused(model, CheckpointError, "is incomplete")


def test_code_in_a_checkpoint_is_not_run(model):
    torch.save({"network_weights": {}, "x": Path("x")}, model / "fold_1/checkpoint_final.pth")
    refused(model, CheckpointError, "refused: reading it would run code")


@pytest.mark.parametrize("trainers", [None, "elsewhere"])
def test_weights_that_do_not_fit_are_refused(trainers, model, monkeypatch):
    monkeypatch.delenv("nnUNet_extTrainer")
    if trainers:
        monkeypatch.setenv("nnUNet_extTrainer", trainers)
    path = model / "fold_1/checkpoint_final.pth"
    weights = torch.load(path, weights_only=True)["network_weights"]
    weights.popitem()
    edited(path, network_weights=weights)
    refused(model, CheckpointError, "nnU-Net cannot load .*fold_1")


@pytest.mark.parametrize("change", ["weight", "mirroring"])
def test_other_checkpoints_stop_the_export(change, model, monkeypatch):
    """A fault where checkpoints are written: the last bit of one weight, or other axes, in the second fold only."""
    write = exporting._stock_checkpoint

    def faulty(path: Path, configuration: str, trainer: str):
        content = write(path, configuration, trainer)
        if "fold_1" in str(path):
            bias = content["network_weights"]["decoder.seg_layers.1.bias"]
            if change == "mirroring":
                content["inference_allowed_mirroring_axes"] = (0,)
            else:
                bias[0] = torch.nextafter(bias[0], torch.tensor(10.0))
        return content

    monkeypatch.setattr(exporting, "_stock_checkpoint", faulty)
    refused(model, CheckpointError, "fold_1 is not exported: nnU-Net's own trainer predicts otherwise")


def test_another_function_of_the_same_weights_stops_the_export(model, monkeypatch):
    write = exporting._stock_plans

    def faulty(plans: dict):
        changed = json.loads(json.dumps(write(plans)))
        arguments = changed["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        arguments["nonlin_kwargs"]["negative_slope"] = 0.0101
        return changed

    monkeypatch.setattr(exporting, "_stock_plans", faulty)
    refused(model, CheckpointError, "fold_0 is not exported: nnU-Net's own trainer predicts otherwise")
