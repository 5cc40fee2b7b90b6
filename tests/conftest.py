"""Folders of nnU-Net for one test, tiny datasets in them, and nnU-Net's commands run in this process."""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("nnUNet_n_proc_DA", "0")  # nnU-Net reads some of these when it is imported
os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("nnUNet_compile", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also in processes that tests start

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
from nnunetv2.utilities import utils as nnunet_lists

from nnunet_genesis import cli
from nnunet_genesis.resources import trainers_folder

REPOSITORY = Path(__file__).parents[1]
WITH_PROCESSES = ("preprocessing.preprocessors.default_preprocessor", "training.nnUNetTrainer.nnUNetTrainer",
                  "evaluation.evaluate_predictions", "experiment_planning.dataset_fingerprint.fingerprint_extractor")  # fmt: skip
"""Files of nnU-Net that start processes whatever the settings: preprocessing, the final validation and its scores, and
fingerprints."""
torch.set_num_threads(1)  # patches this small gain nothing from a second one
nnunet_lists.create_lists_from_splitted_dataset_folder.__defaults__ = (None, 1)  # twelve processes sort file names


@pytest.fixture
def nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nnUNet_raw, nnUNet_preprocessed and nnUNet_results, which the environment names."""
    return use_folders(tmp_path, monkeypatch)


def use_folders(base: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make the three folders of nnU-Net below `base` and point the environment at them."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (base / name).mkdir()
        patch.setenv(name, str(base / name))
    patch.setenv("nnUNet_extTrainer", str(trainers_folder()))
    patch.setenv("nnUNet_n_proc_DA", "0")
    return base


@pytest.fixture(scope="session")
def ready_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset 501 (unlabeled) ready to pre-train on, dataset 4 (labeled) ready to fine-tune on; do not change it."""
    with pytest.MonkeyPatch.context() as patch:
        base = use_folders(tmp_path_factory.mktemp("ready"), patch)
        write_dataset(base, 4, "Target", 5)
        write_dataset(base, 501, "Scans", 4, labeled=False)
        assert run_genesis("plan", "-d", 4, "--template", "tiny", "-p", "nnUNetPlans") == 0
        shrink_plans(base / "nnUNet_preprocessed" / "Dataset004_Target" / "nnUNetPlans.json")
        preprocess = ("-d", 4, "-plans_name", "nnUNetPlans", "-c", "3d_fullres", "-np", 1)
        run_stock(patch, "nnUNetv2_preprocess", *preprocess)
        lengths = ("--epochs", 4, "--iterations", 2, "--validation-iterations", 2, "--save-every", 1, "--plot-every",
                   100)  # fmt: skip
        assert run_genesis("plan", "-d", 501, "--like", 4, *lengths) == 0
        assert run_genesis("preprocess", "-d", 501, "-c", "3d_fullres", "-np", 1) == 0
    return base


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
    return lambda *arguments, **options: write_dataset(nnunet, *arguments, **options)


def write_dataset(
    base: Path, number: int, name: str, cases: int, channels: tuple[str, ...] = ("T1",), labeled: bool = True
) -> Path:
    """Write a raw dataset of blobs below `base`; its folder."""
    folder = base / "nnUNet_raw" / f"Dataset{number:03d}_{name}"
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


@pytest.fixture
def genesis() -> Callable[..., int]:
    """Run `nnunet_genesis` with some arguments; the exit code."""
    return run_genesis


def run_genesis(*arguments: object) -> int:
    """Run `nnunet_genesis` in this process; the exit code."""
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run one of nnU-Net's own commands, as its console script would, in this process."""
    return lambda *arguments: run_stock(monkeypatch, *arguments)


def run_stock(patch: pytest.MonkeyPatch, command: str, *arguments: object, processes: bool = False) -> None:
    """Run a command of nnU-Net in this process.

    Where nnU-Net starts processes, which import everything anew for seconds, threads do their work, unless `processes`.
    """
    entries = {
        "nnUNetv2_train": ("nnunetv2.run.run_training", "run_training_entry"),
        "nnUNetv2_predict": ("nnunetv2.inference.predict_from_raw_data", "predict_entry_point"),
        "nnUNetv2_preprocess": ("nnunetv2.experiment_planning.plan_and_preprocess_entrypoints", "preprocess_entry"),
        "nnUNetv2_plan_and_preprocess": (
            "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
            "plan_and_preprocess_entry",
        ),
    }
    module, function = entries[command]
    patch.setattr("sys.argv", [command, *map(str, arguments)])
    patch.setattr(torch, "set_num_threads", lambda count: None)  # nnU-Net would take one for each core
    with pytest.MonkeyPatch.context() as pools:
        if not processes:
            threads_for_processes(pools)
        getattr(importlib.import_module(module), function)()


def threads_for_processes(patch: pytest.MonkeyPatch) -> None:
    """Let threads do the work of processes that nnU-Net starts whatever the settings."""
    pools = SimpleNamespace(get_context=lambda method: SimpleNamespace(Pool=ThreadPool))
    for place in WITH_PROCESSES:
        patch.setattr(importlib.import_module(f"nnunetv2.{place}"), "multiprocessing", pools)
    extractor = fingerprint_extractor.DatasetFingerprintExtractor
    collect = extractor.collect_foreground_intensities  # draws 100 million voxels, however small the dataset
    patch.setattr(extractor, "collect_foreground_intensities", lambda labels, images, **_: collect(labels, images))


def shrink_plans(path: Path) -> None:
    """Shrink the plans in a file so that a training step takes milliseconds."""
    plans = json.loads(path.read_text())
    for name, configuration in plans["configurations"].items():
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 6, 8]
        configuration["patch_size"] = [16, 16] if name == "2d" else [16, 16, 16]
        configuration["batch_size"] = 2
    path.write_text(json.dumps(plans))
