"""Folders of nnU-Net for one test, tiny datasets in them, and nnU-Net's commands run in this process."""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("nnUNet_n_proc_DA", "0")  # nnU-Net reads some of these when it is imported
os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("nnUNet_compile", "0")

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_genesis import cli
from nnunet_genesis.locations import trainers_folder

REPOSITORY = Path(__file__).parents[1]
torch.set_num_threads(2)


@pytest.fixture
def nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nnUNet_raw, nnUNet_preprocessed and nnUNet_results, which the environment names."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers_folder()))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return tmp_path


@pytest.fixture
def shared_data() -> Path:
    """Real scans that lie beside a development checkout."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        warnings.warn(f"SKIPPED: tests on real scans need {folder}", stacklevel=1)
        pytest.skip(f"no real scans in {folder}")
    return folder


def blob(seed: int, shape: tuple[int, int, int] = (20, 24, 22), channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A synthetic head: (C, z, y, x) float32 intensities with air around, and labels 0, 1, 2."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    centre = rng.uniform(-0.15, 0.15, (3, 1, 1, 1))
    radius = np.sqrt((((grid - centre) * rng.uniform(1.0, 1.4, (3, 1, 1, 1))) ** 2).sum(0))
    labels = (radius < 0.8).astype(np.uint8) + (radius < 0.45)
    contrast = np.cumsum(rng.uniform(60, 140, (channels, 3)), axis=1) - 60
    image = contrast[:, labels] + rng.normal(0, 8, (channels, *shape))
    return np.clip(image, 1, None).astype(np.float32), labels


@pytest.fixture
def make_dataset(nnunet: Path) -> Callable[..., Path]:
    """Write an nnU-Net raw dataset of blobs."""

    def make(number: int, name: str, cases: int, channels: tuple[str, ...] = ("T1",), labeled: bool = True) -> Path:
        folder = nnunet / "nnUNet_raw" / f"Dataset{number:03d}_{name}"
        (folder / "imagesTr").mkdir(parents=True)
        if labeled:
            (folder / "labelsTr").mkdir()
        for i in range(cases):
            image, labels = blob(1000 * number + i, channels=len(channels))
            for c, channel in enumerate(image):
                sitk.WriteImage(sitk.GetImageFromArray(channel), str(folder / "imagesTr" / f"case{i}_{c:04d}.nii.gz"))
            if labeled:
                sitk.WriteImage(sitk.GetImageFromArray(labels), str(folder / "labelsTr" / f"case{i}.nii.gz"))
        description = {
            "channel_names": {str(c): channel for c, channel in enumerate(channels)},
            "labels": {"background": 0, "shell": 1, "core": 2} if labeled else {"background": 0},
            "numTraining": cases,
            "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": "SimpleITKIO",
        }
        (folder / "dataset.json").write_text(json.dumps(description))
        return folder

    return make


@pytest.fixture
def genesis() -> Callable[..., int]:
    """Run `nnunet_genesis` with some arguments; the exit code."""
    return lambda *arguments: cli.main([str(argument) for argument in arguments])


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run one of nnU-Net's own commands, as its console script would, in this process."""
    entries = {
        "nnUNetv2_train": ("nnunetv2.run.run_training", "run_training_entry"),
        "nnUNetv2_predict": ("nnunetv2.inference.predict_from_raw_data", "predict_entry_point"),
        "nnUNetv2_preprocess": (
            "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
            "preprocess_entry",
        ),
    }

    def run(command: str, *arguments: object) -> None:
        module, function = entries[command]
        monkeypatch.setattr("sys.argv", [command, *map(str, arguments)])
        getattr(importlib.import_module(module), function)()

    return run


@pytest.fixture
def small_plans(nnunet: Path) -> Callable[..., None]:
    """Shrink plans of a dataset so that a step takes milliseconds."""

    def shrink(dataset: str, plans_name: str = "nnUNetPlans") -> None:
        path = nnunet / "nnUNet_preprocessed" / dataset / f"{plans_name}.json"
        plans = json.loads(path.read_text())
        for name, configuration in plans["configurations"].items():
            kwargs = configuration["architecture"]["arch_kwargs"]
            kwargs["features_per_stage"] = [4, 6, 8]
            configuration["patch_size"] = [16, 16] if name == "2d" else [16, 16, 16]
            configuration["batch_size"] = 2
        path.write_text(json.dumps(plans))

    return shrink
