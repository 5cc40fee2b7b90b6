"""Checkpoint and target plans → target-shaped weights beside the plans, and plans that point to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from nnunet_genesis.checkpoints.case_files import carry_record
from nnunet_genesis.checkpoints.reading import read_pretrained
from nnunet_genesis.checkpoints.saving import save_tensors, versions
from nnunet_genesis.errors import TransferError
from nnunet_genesis.files import read_json, sha256, write_json, written_atomically
from nnunet_genesis.hub.locating import located, origin, source_of
from nnunet_genesis.named_classes import names_primus
from nnunet_genesis.networks.build import target_network
from nnunet_genesis.networks.outputs import KEPT_ROWS, outputs_of
from nnunet_genesis.networks.pretrained import PretrainedNetwork
from nnunet_genesis.nnunet_dataset import (
    check_configuration,
    configuration_of,
    new_plans_file,
    read_dataset_json,
    read_plans,
)
from nnunet_genesis.settings import OF_TRANSFORMERS, FineTuningSettings
from nnunet_genesis.transfer.axes import to_zyx
from nnunet_genesis.transfer.comparison import largest_difference
from nnunet_genesis.transfer.matching import match
from nnunet_genesis.transfer.report import TransferReport

SCHEDULE = ("epochs", "iterations", "warmup", "optimizer", "learning_rate", "weight_decay", "freeze_epochs",
            "encoder_lr_scale", "layer_lr_decay", "beta2", "gradient_clipping", "batch_per_device", "seed")  # fmt: skip
"""The settings of fine-tuning that a user chooses when transferring."""

REPORT = "transfer_report.json"
"""Beside the weights: name of a file of weights → report of its transfer."""

MIN_COVERAGE = 0.5
"""Share of the encoder's parameters that must come from the checkpoint, unless the user names another."""


@dataclass(frozen=True)
class Transferred:
    """Result of a transfer; `report` is None for the control arm that trains from scratch."""

    plans_file: Path
    report: TransferReport | None


def transfer(
    checkpoint: str | Path | None, dataset: str, plans_name: str, configuration: str, new_plans_name: str,
    schedule: dict[str, Any], min_coverage: float = MIN_COVERAGE, resize_widths: bool = False,
    leaks: list[str] | None = None, keep_labels: bool = True, axes: str | None = None,
) -> Transferred:  # fmt: skip
    """Carry a checkpoint's weights into the network that a dataset's plans describe.

    Writes `<new plans>_<configuration>.pth` and `<new plans>.json` into the dataset's preprocessed folder, and an entry
    of `transfer_report.json` there. The new plans differ from the old ones by name and genesis block, and read the
    same preprocessed data. The weights file also serves stock `nnUNetv2_train -pretrained_weights`.

    Args:
        checkpoint: Path or address of any kind that `read_pretrained` knows; None writes plans that train from scratch
            with the same settings.
        dataset: Name of the target dataset.
        plans_name: Its plans.
        configuration: Configuration whose network receives the weights.
        new_plans_name: Name of the plans to write; other configurations' weights in a file of that name are kept.
        schedule: Some of `SCHEDULE`; a missing warm-up is a twentieth of the epochs, at most 50.
        min_coverage: Smallest share of the encoder's parameters that comes from the checkpoint, 0 to 1.
        resize_widths: Whether stages of other widths take over the leading channels.
        leaks: What was found of cases that the checkpoint was pre-trained on, for the report; None if nobody looked.
        keep_labels: Whether rows of the segmentation heads are carried where labels have the same name.
        axes: Order of the axes of the checkpoint's volumes, "xyz" or "zyx"; None for what is known of its kind.

    Raises:
        CheckpointError, HubError: The checkpoint cannot be read, or fetched.
        TransferError: The network of the target cannot be built, is of another kind, or takes over too little.
        DatasetError: Dataset, plans or configuration are missing, the new name cannot be one, or it is of other plans.
        SettingsError: A value of the schedule is out of range.
    """
    plans = read_plans(dataset, plans_name)
    check_configuration(plans, configuration)
    if new_plans_name == plans_name:
        raise TransferError(f"The plans {plans_name} would be overwritten. Name others with --to.")
    path = new_plans_file(dataset, new_plans_name, "fine_tuning")
    settings, report = scheduled(schedule, plans, configuration), None
    if checkpoint is not None:
        weights = path.with_name(f"{path.stem}_{configuration}.pth")
        settings, report = start_from(
            located(checkpoint), plans, configuration, read_dataset_json(dataset), settings, weights, min_coverage,
            resize_widths, leaks, keep_labels, axes,
        )  # fmt: skip
    blocks = _other_configurations(path, plans) | {configuration: settings.block()}
    write_json({**plans, "plans_name": new_plans_name, "genesis": {"fine_tuning": blocks}}, path)
    return Transferred(path, report)


def scheduled(schedule: dict[str, Any], plans: dict[str, Any], configuration: str) -> FineTuningSettings:
    """Settings of fine-tuning with some of `SCHEDULE`; a missing warm-up is a twentieth of the epochs, at most 50.

    What else is missing follows from the optimiser, and where the plans name a Primus it is what nnU-Net's own trainers
    have, unless SGD is asked for.
    """
    default = {"warmup": min(50, schedule.get("epochs", FineTuningSettings.epochs) // 20)}
    if names_primus(str(configuration_of(plans, configuration).network_arch_class_name)):
        default |= OF_TRANSFORMERS if schedule.get("optimizer", "adamw") == "adamw" else {}
    return FineTuningSettings(**default | schedule)


def start_from(
    checkpoint: Path,
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    settings: FineTuningSettings,
    weights: Path,
    min_coverage: float = MIN_COVERAGE,
    resize_widths: bool = False,
    leaks: list[str] | None = None,
    keep_labels: bool = True,
    axes: str | None = None,
) -> tuple[FineTuningSettings, TransferReport]:
    """Write a checkpoint's weights, in the shapes of the plans' network, into the file `weights`, its report beside it.

    Returns:
        The settings with what identifies both files, and the report.

    Raises:
        CheckpointError, TransferError, DatasetError: As `transfer`.
    """
    network, channels = target_network(plans, configuration, dataset_json)
    source = to_zyx(read_pretrained(checkpoint), axes)
    outputs = outputs_of(dataset_json) if keep_labels else None
    report = match(source, network, channels, resize_widths, outputs)
    _fill(network, channels, source, report, min_coverage)
    settings = _write(network, report, checkpoint, settings, weights, source.cases)
    _write_report(report, settings, weights, {} if leaks is None else {"leaks": leaks})
    return settings, report


def _fill(
    network: nn.Module, channels: list[str], source: PretrainedNetwork, report: TransferReport, min_coverage: float
) -> None:
    """Write a checkpoint's weights into a network, and run both where no rule says that they differ."""
    report.refuse_low_coverage(min_coverage)
    report.apply(network)
    if not report.limits:
        report.difference = largest_difference(source, network, channels)


def _write(
    network: nn.Module, report: TransferReport, checkpoint: Path, settings: FineTuningSettings, path: Path, cases: Any
) -> FineTuningSettings:
    """Write weights, with the record of the cases behind them; the settings with what identifies both files."""
    states = {record.name: {"state": record.state.value, "reason": record.reason} for record in report.records}
    facts = {
        "source": origin(checkpoint) or checkpoint.name,
        "coverage": report.coverage,
        "tensors": states,
        "versions": versions(),
        KEPT_ROWS: report.kept_rows,
    }
    if cases is not None:
        facts["cases"] = cases  # so that leaks are found in the file of weights too
        carry_record(cases, checkpoint, path.parent)
    with written_atomically(path) as temporary:
        save_tensors({"network_weights": network.state_dict(), "genesis": facts}, temporary)
    return replace(
        settings,
        weights=path.name,
        sha256=sha256(path),
        source=source_of(checkpoint),
        source_sha256=sha256(checkpoint),
        coverage=round(report.coverage, 6),
    )


def _write_report(
    report: TransferReport, settings: FineTuningSettings, weights: Path, leaks: dict[str, list[str]]
) -> None:
    """Add a transfer to the report beside its weights; entries of other weights are kept."""
    path = weights.with_name(REPORT)
    entry = {"source": settings.source, "source_sha256": settings.source_sha256, "sha256": settings.sha256}
    others = read_json(path, "The report", "Remove it.") if path.is_file() else {}
    write_json({**others, weights.name: entry | leaks | report.json()}, path)


def _other_configurations(path: Path, plans: dict[str, Any]) -> dict[str, Any]:
    """Blocks of earlier transfers into the same plans; none if the plans themselves have changed since."""
    if not path.is_file():
        return {}
    before = read_plans(path.parent.name, path.stem)
    if before.get("configurations") != plans["configurations"]:
        return {}
    return dict(before.get("genesis", {}).get("fine_tuning", {}))
