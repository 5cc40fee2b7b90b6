"""Results folder of a fine-tuned model → results folder of stock nnU-Net that predicts the same, bit for bit."""

from __future__ import annotations

import copy
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunet_genesis.checkpoints.reading import network_weights, read_checkpoint
from nnunet_genesis.checkpoints.saving import save_tensors
from nnunet_genesis.errors import CheckpointError, DatasetError, printable, reason
from nnunet_genesis.files import read_json, write_json
from nnunet_genesis.named_classes import PRIMUS, names_primus
from nnunet_genesis.nnunet_dataset import check_configuration, configuration_of
from nnunet_genesis.plans_checks import check_description, is_plain_name
from nnunet_genesis.primus_plans import stock_trainer
from nnunet_genesis.resources import trainers_folder

OURS = "nnUNetTrainerGenesisFinetune"
STOCK = "nnUNetTrainer"
LIBRARY = "dynamic_network_architectures.architectures.primus."

KEPT = ("dataset.json", "dataset_fingerprint.json")
KEPT_OF_FOLD = ("progress.png", "network_architecture.pdf", "validation/summary.json")
KEPT_OF_FOLDS = ("summary.json", "postprocessing.pkl", "postprocessing.json", "dataset.json")
"""Files that nnU-Net's prediction, zip export and post-processing read, besides plans and checkpoints."""

FOLD = re.compile(r"fold_(all|[0-9]{1,4})")
PATCHES = 2
"""Patches that are predicted with both models."""


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        folder: The new results folder.
        folds: Names of the folds in it.
        unfinished: Folds left out, since they lack the checkpoint.
        compared: What both models predicted, in words.
    """

    folder: Path
    folds: list[str]
    unfinished: list[str]
    compared: str


def export(
    folder: Path, checkpoint: str = "checkpoint_final.pth", before_comparing: Callable[[], None] = lambda: None
) -> Exported:
    """Make a fine-tuned model one of stock nnU-Net: no trainer of this package, no genesis block in its plans.

    Written beside the original as `<trainer>__<plans>__<configuration>`, the trainer being `nnUNetTrainer`, or for a
    Primus the one that builds it, e.g. `nnUNet_Primus_M_Trainer`, once nnU-Net's predictor has computed
    equal logits from both, fold by fold. Nothing is left behind otherwise. Optimiser, log and the note on where the
    weights came from stay in the checkpoints.

    Args:
        folder: `…/nnUNetTrainerGenesisFinetune__<plans>__<configuration>` below nnUNet_results.
        checkpoint: File name of the checkpoint in each fold.
        before_comparing: Called when all files were found to be in order, before the networks run, which takes minutes.

    Raises:
        CheckpointError: It is another trainer's model, its network is a class of this package, a checkpoint cannot be
            read, or the predictions differ.
        DatasetError: Files are missing or not as nnU-Net needs them, or the new folder exists.
    """
    if not is_plain_name(checkpoint):
        raise DatasetError(f"-chk takes the name of a file in each fold, not {printable(checkpoint, 80)}.")
    folder = folder.resolve()
    _refuse_other_folders(folder)
    plans = read_json(folder / "plans.json", "The plans file", "Name the folder that holds the folds.")
    configuration = folder.name.split("__")[-1]
    described = _checked(folder, plans, configuration)
    trainer = _trainer(plans, configuration)
    target = _target(folder, trainer)
    folds = sorted(found.name for found in folder.glob("fold_*") if found.is_dir() and FOLD.fullmatch(found.name))
    finished = [fold for fold in folds if (folder / fold / checkpoint).is_file()]
    if not finished:
        raise DatasetError(f"No fold in {folder} has a {checkpoint}. Finish the training, or name another with -chk.")
    with _complete_or_gone(target) as draft:
        _copy(folder, draft, KEPT)
        write_json(_stock_plans(plans), draft / "plans.json")
        for results in folder.glob("crossval_results_folds_*"):
            _copy(results, draft / results.name, KEPT_OF_FOLDS)
            write_json(_stock_plans(plans), draft / results.name / "plans.json")
        for fold in finished:
            _copy(folder / fold, draft / fold, KEPT_OF_FOLD)
            content = _stock_checkpoint(folder / fold / checkpoint, configuration, trainer)
            save_tensors(content, draft / fold / checkpoint)
        patches, compared = _patches(plans, configuration, described)
        before_comparing()
        for fold in finished:  # nnU-Net's own reading would run code in a checkpoint: all were read above without
            _compare(folder, draft, fold, checkpoint, patches)
    return Exported(target, finished, [fold for fold in folds if fold not in finished], compared)


def _refuse_other_folders(folder: Path) -> None:
    if not folder.is_dir():
        raise DatasetError(f"The results folder {folder} does not exist. Check the path.")
    if not folder.name.startswith(f"{OURS}__"):
        raise CheckpointError(
            f"{folder.name} is not the results folder of a fine-tuned model: its name would be "
            f"{OURS}__PLANS__CONFIGURATION. Models of nnU-Net's own trainers need no export."
        )


def _target(folder: Path, trainer: str) -> Path:
    target = folder.with_name(folder.name.replace(OURS, trainer, 1))
    if target.exists():
        raise DatasetError(
            f"{target} exists: it is a finished export, for one that is interrupted leaves no such folder, or "
            f"{trainer} was trained there. Use it, or remove or rename it to export again."
        )
    return target


def _checked(folder: Path, plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """The model's dataset.json; it and the plans are as nnU-Net needs them, and name nothing that is not run."""
    try:
        check_configuration(plans, configuration)
    except DatasetError as error:
        raise DatasetError(f"{folder / 'plans.json'}: {error}") from None
    path = folder / "dataset.json"
    described = read_json(path, "The dataset description", "Name a complete results folder.")
    check_description(described, f"The dataset description {path}")
    return described


def _trainer(plans: dict[str, Any], configuration: str) -> str:
    """Name of the trainer of nnU-Net that builds the network."""
    name = str(configuration_of(plans, configuration).network_arch_class_name)
    if not name.startswith("nnunet_genesis."):
        return STOCK
    trainer = stock_trainer(plans, configuration) if names_primus(name) else None
    if trainer is None:
        why = "nnU-Net has no trainer that builds a Primus of this size (it has S, B, M and L): " * names_primus(name)
        raise CheckpointError(
            f"The network {name} is a class of nnunet-genesis: {why}no model with it can predict without this package. "
            f"Share the folder as it is; nnUNetv2_predict needs nnunet-genesis and -tr {OURS}."
        )
    return trainer


def _stock_plans(plans: dict[str, Any]) -> dict[str, Any]:
    """Plans that name nothing of this package: of a Primus the library's class, which nnU-Net's trainers build."""
    stock = {key: copy.deepcopy(value) for key, value in plans.items() if key != "genesis"}
    for block in stock["configurations"].values():
        name = block.get("architecture", {}).get("network_class_name", "")
        if names_primus(name):
            block["architecture"]["network_class_name"] = LIBRARY + name.removeprefix(PRIMUS)
    return stock


def _stock_checkpoint(path: Path, configuration: str, stock: str) -> dict[str, Any]:
    """A checkpoint's content with nnU-Net's trainer in place of ours."""
    content = read_checkpoint(path)
    network_weights(content, path)
    try:
        trainer, arguments = content["trainer_name"], dict(content["init_args"])
        arguments["plans"] = _stock_plans(arguments["plans"])
        given = arguments["configuration"]
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(f'{path} is incomplete: "trainer_name" or "init_args" are not nnU-Net\'s.') from None
    if (trainer, given) != (OURS, configuration):
        raise CheckpointError(f"{path} is of {trainer}, {given}, not of {OURS}, {configuration}, as its folder says.")
    return {**content, "trainer_name": stock, "init_args": arguments}


def _copy(source: Path, target: Path, names: tuple[str, ...]) -> None:
    """Copy the files of these names that exist."""
    target.mkdir(exist_ok=True)
    for name in names:
        if (source / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)


@contextmanager
def _complete_or_gone(target: Path) -> Iterator[Path]:
    """A new folder under a temporary name, renamed when the block ends well, removed when it raises."""
    draft = target.with_name(f".incomplete_{target.name}")
    shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
    draft.mkdir()
    try:
        yield draft
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _patches(plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> tuple[list[torch.Tensor], str]:
    """Patches (C, *spatial), three axes, from the middle of preprocessed volumes, else random; and what they are."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = configuration_of(plans, configuration)
    channels = determine_num_input_channels(PlansManager(plans), manager, dataset_json)
    size = [1] * (3 - len(manager.patch_size)) + list(manager.patch_size)
    folder = Path(os.environ.get("nnUNet_preprocessed", "")) / plans["dataset_name"] / manager.data_identifier
    if any(folder.glob("*.b2nd")) or any(folder.glob("*.npz")):
        kind = infer_dataset_class(str(folder))
        cases = sorted(kind.get_identifiers(str(folder)))[:PATCHES]
        dataset = kind(str(folder), cases)
        patches = [_middle(_volume(dataset, case), size) for case in cases]
        # a cascade's second stage also reads the first one's segmentations, which are not among the volumes
        if all(len(patch) == channels for patch in patches):
            return patches, f"patches of {', '.join(cases)}"
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(channels, *size, generator=generator) for _ in range(PATCHES)], f"{PATCHES} random patches"


def _volume(dataset: Any, case: str) -> Any:
    try:
        return dataset.load_case(case)[0]
    except RuntimeError as error:  # blosc2's: damaged, or no memory
        raise DatasetError(
            f"The preprocessed case {case} in {dataset.source_folder} cannot be read ({reason(error)}). Preprocess it "
            "again if it is damaged."
        ) from None


def _middle(volume: Any, size: list[int]) -> torch.Tensor:
    starts = [max(0, (edge - part) // 2) for edge, part in zip(volume.shape[1:], size, strict=True)]
    window = (slice(None), *(slice(start, start + part) for start, part in zip(starts, size, strict=True)))
    return torch.as_tensor(volume[window]).float()


def _compare(ours: Path, stock: Path, fold: str, checkpoint: str, patches: list[torch.Tensor]) -> None:
    """Predict with both models as nnU-Net does.

    Raises:
        CheckpointError: A model cannot be loaded, or weights, logits or axes of mirroring differ.
    """
    before = _predictor(ours, fold, checkpoint, str(trainers_folder()))
    after = _predictor(stock, fold, checkpoint, "")
    weights, exported = (model.list_of_parameters[0] for model in (before, after))
    same = before.allowed_mirroring_axes == after.allowed_mirroring_axes and weights.keys() == exported.keys()
    # nnU-Net rounds logits to half precision, so that they alone would not show every change of a weight
    same = same and all(torch.equal(weights[name], exported[name]) for name in weights)
    for patch in patches:
        logits = [_logits(model, patch, ours / fold) for model in (before, after)]
        same = same and torch.equal(logits[0], logits[1])
    if not same:
        raise CheckpointError(
            f"{ours / fold} is not exported: nnU-Net's own trainer predicts otherwise. Nothing was written; use the "
            "model with this package installed."
        )


def _logits(predictor: Any, patch: torch.Tensor, fold: Path) -> torch.Tensor:
    try:
        return predictor.predict_logits_from_preprocessed_data(patch)  # type: ignore[no-any-return]
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        raise CheckpointError(f"nnU-Net cannot predict with {fold}: {reason(error)}.") from None


def _predictor(folder: Path, fold: str, checkpoint: str, trainers: str) -> Any:
    """nnU-Net's predictor with one fold, on the CPU, where equal computations give equal bits."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    known = os.environ.get("nnUNet_extTrainer")
    os.environ["nnUNet_extTrainer"] = trainers
    try:
        with redirect_stdout(io.StringIO()):
            predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
            name = fold.removeprefix("fold_")
            predictor.initialize_from_trained_model_folder(str(folder), (name,), checkpoint)
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise CheckpointError(f"nnU-Net cannot load {folder / fold / checkpoint}: {reason(error)}.") from None
    finally:
        os.environ.pop("nnUNet_extTrainer")
        if known is not None:
            os.environ["nnUNet_extTrainer"] = known
    return predictor
