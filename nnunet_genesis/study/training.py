"""One run of a study → a trained network, its predictions of the test cases, and one JSON of results."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_genesis.checkpoints.saving import versions
from nnunet_genesis.errors import StudyError
from nnunet_genesis.files import read_json, write_json, written_atomically
from nnunet_genesis.finetuning import nnUNetTrainerGenesisFinetune
from nnunet_genesis.nnunet_dataset import preprocessed_folder, read_dataset_json
from nnunet_genesis.study.arms import FOLDER as ARMS
from nnunet_genesis.study.arms import plans_of
from nnunet_genesis.study.design import Run, Study
from nnunet_genesis.study.evaluation import defined, evaluate

RESULTS, TIMES, PREDICTIONS, TRAININGS = "results", "times", "predictions", "trainings"
"""Folders of a study."""
STEPS = 3
"""Training steps that are measured, after a first one."""


class StudyTrainer(nnUNetTrainerGenesisFinetune):
    """Fine-tuning on the labeled cases of a run, in the study's folder; the test cases only draw its curve."""

    labeled: list[str]
    test: list[str]
    arms: Path

    def do_split(self) -> tuple[list[str], list[str]]:
        """The labeled cases of the run, and the test cases of the study."""
        return self.labeled, self.test

    @property
    def weights_folder(self) -> Path:
        """The arms' folder."""
        return self.arms


def trainer_of(study: Study, run: Run, folder: Path, device: str) -> StudyTrainer:
    """The trainer of a run; `nnUNet_results` must name the study's folder of trainings when nnU-Net is imported."""
    plans = plans_of(study, run, folder)
    description = read_dataset_json(study.dataset)
    # nnU-Net takes this entry out of the plans again
    trainer = StudyTrainer(
        {**plans, "continue_training": False}, study.configuration, "all", description, torch.device(device)
    )
    trainer.labeled, trainer.test = study.cases(run), study.test
    trainer.arms = (folder / ARMS).resolve()
    trainer.num_val_iterations_per_epoch = study.validation_iterations
    trainer.save_every = max(1, trainer.num_epochs // 10)
    # a picture of every epoch takes longer than small networks train; the report draws all curves
    trainer.logger.local_logger.plot_progress_png = lambda folder: None
    return trainer


def finish(study: Study, run: Run, folder: Path, device: str, keep_models: bool) -> None:
    """Train, predict and evaluate one run, from where an earlier attempt was interrupted; write its results.

    Raises:
        GenesisError: Weights, volumes or the GPU are missing.
    """
    if device == "cpu":
        torch.set_num_threads(1)  # the number of threads would change sums, and with them the results
    began = time.perf_counter()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), _errors_not_exits():
        trainer = trainer_of(study, run, folder, device)
        output = Path(trainer.output_folder)
        before = _seconds(output)
        _train(trainer, output, before, began)
        predictions = folder / PREDICTIONS / run.name
        predict(trainer, study, predictions)
    content = {
        "study": study.digest,
        "run": run.name,
        "arm": run.arm,
        "labels": run.labels,
        "seed": run.seed,
        "cases": _scores(trainer, study, predictions),
        "curve": _curve(trainer),
        "versions": versions(),
        "device": device,
    }
    for name in (RESULTS, TIMES):
        (folder / name).mkdir(exist_ok=True)
    seconds = round(before + time.perf_counter() - began, 1)
    write_json({"seconds": seconds, "device": _device_name(device)}, folder / TIMES / f"{run.name}.json")
    write_json(content, folder / RESULTS / f"{run.name}.json")
    if not keep_models:
        shutil.rmtree(output.parent, ignore_errors=True)


def _train(trainer: StudyTrainer, output: Path, before: float, began: float) -> None:
    """Train to the end, from the last checkpoint if there is one."""
    for name in ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth"):
        if (output / name).is_file():
            trainer.initialize()
            trainer.load_checkpoint(str(output / name))
            break
    if trainer.current_epoch < trainer.num_epochs:
        trainer.run_training()
    write_json({"seconds": before + time.perf_counter() - began}, output / "seconds.json")


def _seconds(output: Path) -> float:
    """Seconds that earlier attempts took, as far as known."""
    path = output / "seconds.json"
    return float(read_json(path, "The time", "Remove it.")["seconds"]) if path.is_file() else 0.0


@contextlib.contextmanager
def _errors_not_exits() -> Iterator[None]:
    """Our trainers end their process with a line; in a study that ends one run."""
    try:
        yield
    except SystemExit as end:
        raise StudyError(str(end).removeprefix("nnunet_genesis: ")) from None


def predict(trainer: StudyTrainer, study: Study, folder: Path) -> None:
    """Predict the test cases by nnU-Net's sliding window, as its final validation does, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    ending = trainer.dataset_json["file_ending"]
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(use_mirroring=study.mirroring, device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, None, trainer.dataset_json,
        type(trainer).__name__, trainer.inference_allowed_mirroring_axes,
    )  # fmt: skip
    volumes = trainer.dataset_class(trainer.preprocessed_dataset_folder, study.test)
    for case in study.test:
        volume, _, _, properties = volumes.load_case(case)
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(volume[:])).cpu()
        with written_atomically(folder / f"{case}{ending}") as temporary:
            stem = str(temporary).removesuffix(ending)
            export_prediction_from_logits(
                logits, properties, trainer.configuration_manager, trainer.plans_manager, trainer.dataset_json, stem,
                num_threads_torch=1,
            )  # fmt: skip


def measure(study: Study, folder: Path, device: str) -> tuple[float, float]:
    """Seconds of a training step and of the prediction of one test case, with the study's first run.

    `nnUNet_results` must name a folder that may be thrown away.
    """
    if device == "cpu":
        torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), _errors_not_exits():
        trainer = trainer_of(study, study.runs()[-1], folder, device)
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        times = []
        for _ in range(1 + STEPS):
            began = time.perf_counter()
            trainer.train_step(next(trainer.dataloader_train))  # type: ignore[call-overload]  # waits for the loss
            times.append(time.perf_counter() - began)
        trainer.on_train_end()
        began = time.perf_counter()
        predict(trainer, replace(study, test=study.test[:1]), Path(trainer.output_folder) / PREDICTIONS)
    return sum(times[1:]) / STEPS, time.perf_counter() - began


def _scores(trainer: StudyTrainer, study: Study, predictions: Path) -> dict[str, Any]:
    """Case → label → metric → value."""
    references = preprocessed_folder(study.dataset) / "gt_segmentations"
    reader, ending = trainer.plans_manager.image_reader_writer_class(), trainer.dataset_json["file_ending"]
    return {
        case: evaluate(
            predictions / f"{case}{ending}", references / f"{case}{ending}", reader, trainer.dataset_json,
            study.tolerance_mm,
        )
        for case in study.test
    }  # fmt: skip


def _curve(trainer: StudyTrainer) -> dict[str, list[Any]]:
    """Mean Dice on patches of the test cases, and training loss, after every epoch."""
    log = trainer.logger.local_logger.my_fantastic_logging
    return {
        "steps": [(epoch + 1) * trainer.num_iterations_per_epoch for epoch in range(trainer.num_epochs)],
        "dice": [defined(value) for value in log["mean_fg_dice"]],
        "loss": [defined(value) for value in log["train_losses"]],
    }


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device
