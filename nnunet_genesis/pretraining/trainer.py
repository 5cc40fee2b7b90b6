"""nnU-Net trainer that restores corrupted patches of unlabeled volumes."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import autocast, nn

from nnunet_genesis.batches import load
from nnunet_genesis.checkpoints.case_files import kept_record
from nnunet_genesis.checkpoints.saving import save_plain, versions
from nnunet_genesis.corruption import Recipe, compile_loops
from nnunet_genesis.errors import one_line
from nnunet_genesis.files import write_json
from nnunet_genesis.leaks.case_record import KEY, CaseRecord, record_in
from nnunet_genesis.named_classes import is_primus, names_primus
from nnunet_genesis.networks.build import build_network, unwrap
from nnunet_genesis.nnunet_dataset import channel_names, configuration_of
from nnunet_genesis.preflight import check_before_training, refuse_missing_gpu
from nnunet_genesis.pretraining.infilling import guesses
from nnunet_genesis.pretraining.loss import (
    RestorationLoss,
    freeze_unused_heads,
    mean_errors,
    restoration_errors,
    told,
    validation_loss,
)
from nnunet_genesis.pretraining.optimiser import StepSchedule, optimiser_of
from nnunet_genesis.pretraining.patches import TRAINING, VALIDATION, PatchBatches, fitted
from nnunet_genesis.pretraining.restoration_log import RestorationLog, draw_restored
from nnunet_genesis.pretraining.volumes import Indexes, changed_since, in_words, refuse_too_few, split, volumes_folders
from nnunet_genesis.ranks import RankedTrainer
from nnunet_genesis.settings import CONVOLUTIONAL, TRANSFORMER, PretrainingSettings

TASK = "restoration of corrupted patches (Models Genesis)"
HIDDEN_TASK = "restoration of hidden cells (masked autoencoder)"


class NoImprovement(Exception):  # noqa: N818 (no error)
    """Held-out restoration no longer improves: nnU-Net's loop over epochs has no other way out."""


class nnUNetTrainerGenesisPretrain(RankedTrainer):  # noqa: N801
    """Pre-train the network of the plans by restoring corrupted patches (Models Genesis, Zhou et al. 2019, 2021).

    Settings come from `plans["genesis"]["pretraining"]`; without that block the defaults hold. The output has as
    many channels as the input. Labels are never read: volumes of `nnunet_genesis preprocess` and of
    `nnUNetv2_preprocess` serve alike.
    """

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        """As in nnU-Net; ends with one line where plans or settings are wrong."""
        with one_line():
            check_before_training(plans, configuration)
            architecture = configuration_of(plans, configuration).network_arch_class_name
            self.kind = TRANSFORMER if names_primus(architecture) else CONVOLUTIONAL
            self.settings = PretrainingSettings.of_plans(plans).resolved(self.kind)
            self.recipe = fitted(self.settings.recipe, plans, configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.settings.epochs
        self.num_iterations_per_epoch = self.settings.iterations
        self.num_val_iterations_per_epoch = self.settings.validation_iterations
        self.initial_lr, self.weight_decay = self.settings.learning_rate, self.settings.weight_decay
        self.save_every = self.settings.save_every
        self.enable_deep_supervision = False
        self.logger.local_logger = RestorationLog(hidden=self.cell is not None)
        self.seen: dict[str, Any] = {}  # the cases; rank 0 alone fills it, when training starts
        self.resumed_from: list[CaseRecord | None] = []
        if "pretraining" not in plans.get("genesis", {}):
            self.print_to_log_file("These plans have no settings for pre-training: the defaults hold.")
        self.print_to_log_file(f"Pre-training settings: {self.settings.block()}")

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        """The plans' network with as many outputs as inputs and no deep supervision; a Primus `for_pretraining`.

        Raises:
            TransferError: nnU-Net cannot build it, or it is neither a U-Net nor a Primus.
        """
        network = build_network(plans_manager, configuration_manager, num_input_channels, num_input_channels, False)
        if not is_primus(network):
            return freeze_unused_heads(network)
        from nnunet_genesis.pretraining.masked_autoencoder import for_pretraining  # imports transformers

        settings = PretrainingSettings.of_plans(plans_manager.plans)
        return for_pretraining(network, configuration_manager.network_arch_init_kwargs, settings)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """AdamW and the schedule that the settings name."""
        return optimiser_of(self.network, self.settings)

    def _build_loss(self) -> nn.Module:
        return RestorationLoss(self.settings.loss, self.cell if self.settings.normalises else None)

    @property
    def cell(self) -> tuple[int, ...] | None:
        """Edges of the cells of which the network gets the visible ones alone; None: it gets whole patches."""
        masking = self.recipe.masking
        return masking.edges(self.configuration_manager.patch_size) if masking.leaves_out else None

    def _do_i_compile(self) -> bool:
        """As in nnU-Net, but where the number of visible cells decides about shapes: each would be compiled anew."""
        return self.cell is None and bool(super()._do_i_compile())

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """As in nnU-Net; a Primus has none."""
        if self.kind == CONVOLUTIONAL:
            super().set_deep_supervision_enabled(enabled)

    def initialize(self) -> None:
        """As in nnU-Net, with seeded initial weights, after a look for the preprocessed volumes and the GPU."""
        with one_line(), torch.random.fork_rng(devices=[]):
            self.folders()
            refuse_missing_gpu(self.device)
            torch.manual_seed(self.settings.seed)
            super().initialize()

    def do_split(self) -> tuple[list[str], list[str]]:
        """Training and validation cases: nnU-Net's splits for a numbered fold, a seeded hold-out for fold `all`.

        Further datasets have no part in nnU-Net's splits: all of their cases are trained on. Without those that the
        settings exclude; where these are the whole fold, a hold-out of the others validates.
        """
        if self.fold == "all":
            return self._held_out(self._admitted(self.indexes.readable()))
        with one_line():
            refuse_too_few(self.indexes.parts[""], Path(self.preprocessed_dataset_folder_base))
        training, validation = super().do_split()
        training, validation = self._admitted([*training, *self.indexes.of_further()]), self._admitted(validation)
        return (training, validation) if validation and training else self._held_out(training)

    def folders(self) -> dict[str, Path]:
        """Where the volumes of all datasets lie."""
        return volumes_folders(self.plans_manager.plans, self.configuration_name, self.settings)

    @cached_property
    def indexes(self) -> Indexes:
        """Those of the preprocessed volumes, which one process brings up to date while the others wait."""
        with one_line(), self.first_alone():
            indexes = Indexes.of(self.folders())
        for warning in indexes.warnings():
            self.print_to_log_file(f"WARNING: {warning}")
        return indexes

    def _admitted(self, cases: Iterable[str]) -> list[str]:
        return self.indexes.admitted(cases, self.settings.exclude)

    def _held_out(self, cases: list[str]) -> tuple[list[str], list[str]]:
        with one_line():
            training, validation = split(cases, self.settings)
        if training == validation:
            self.print_to_log_file("WARNING: there is one volume only; restoration is validated on that volume itself.")
        return training, validation

    def get_dataloaders(self) -> tuple[Iterator[dict[str, Any]], Iterator[dict[str, Any]]]:
        """Endless batches of corrupted and original patches; validation repeats the same ones every epoch."""
        training, validation = self.do_split()
        self.print_to_log_file(f"{len(training)} volumes to train on, {len(validation)} held out")
        with one_line():
            shares = in_words(self.indexes.volumes(training), self.settings, self.plans_manager.dataset_name)
        if shares:
            self.print_to_log_file(shares)
        self.validation_cases = validation
        self._record_cases({*training, *validation})
        workers = get_allowed_n_proc_DA()
        # a resumed training goes on where the stream of batches stopped
        numbers = itertools.count(self.current_epoch * self.num_iterations_per_epoch + len(self.losses_before))
        compile_loops()
        train = load(self._batches(training, TRAINING), numbers, workers, self.device.type == "cuda")
        loading = f"by {workers} loading processes" if workers else "in the training process"
        self.print_to_log_file(f"Patches are corrupted {loading}")
        repeated = itertools.cycle(range(self.num_val_iterations_per_epoch))
        held_out = self._batches(validation, VALIDATION)
        return self.after_steps_done(train), load(held_out, repeated, (workers + 1) // 2, self.device.type == "cuda")

    def _record_cases(self, cases: set[str]) -> None:
        """Note for `leaks` which images this training sees: those that validate choose the best checkpoint.

        Those from before a restart, too; nothing where part of them is not known.
        """
        if self.settings.exclude:
            self.print_to_log_file(f"Left out, as the settings say: {', '.join(self.settings.exclude)}")
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        known = [record for record in self.resumed_from if record is not None]
        if len(known) == len(self.resumed_from):
            now = self.indexes.record(sorted(cases))
            for warning in filter(None, (changed_since(before, now) for before in known)):
                self.print_to_log_file(warning)
            record = reduce(CaseRecord.joined, [*known, now])
            self.seen = {KEY: kept_record(record.block(), Path(self.output_folder))}

    def _batches(self, cases: list[str], stream: int, recipe: Recipe | None = None) -> PatchBatches:
        everything = self.configuration_manager.batch_size
        ranks = self.processes
        # the first ranks take one patch more where the batch does not divide evenly: nnU-Net's rule
        first = self.local_rank * (everything // ranks) + min(self.local_rank, everything % ranks)
        return PatchBatches(
            volumes=self.indexes.volumes(cases),
            patch_size=tuple(self.configuration_manager.patch_size),
            batch_size=self.batch_size,
            global_batch_size=everything,
            first=first,
            recipe=recipe or self.recipe,
            seed=self.settings.seed,
            stream=stream,
            minimum_contrast=self.settings.minimum_contrast,
            crops_per_volume=self.settings.crops_per_volume,
            weights=self.settings.dataset_weights,
        )

    def run_training(self) -> None:
        """As in nnU-Net, to the last epoch or to that after which patience has come to an end."""
        try:
            super().run_training()
        except NoImprovement as reason:
            self.print_to_log_file(str(reason))
            self.on_train_end()

    def on_epoch_start(self) -> None:
        """As in nnU-Net.

        Raises:
            NoImprovement: There is patience, and it came to an end, now or before the training was resumed. Processes
                log the same losses, so that all of them stop.
        """
        idle = self.logger.local_logger.epochs_without_improvement()
        if 0 < self.settings.patience <= idle:
            raise NoImprovement(
                f"Stopped before epoch {self.current_epoch} of {self.num_epochs}: "
                f"{idle} epochs without a smaller val_loss (patience: {self.settings.patience})"
            )
        super().on_epoch_start()

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """As in nnU-Net; AdamW's step counters stay on the CPU, where it reads them without waiting for the GPU."""
        super().load_checkpoint(filename_or_checkpoint)
        if isinstance(filename_or_checkpoint, str):
            with one_line():
                self.resumed_from = [record_in(Path(filename_or_checkpoint))]
            if self.resumed_from == [None]:
                self.print_to_log_file(
                    "WARNING: that checkpoint does not say which cases it saw; nor will this training's"
                )
        for state in self.optimizer.state.values():
            state["step"] = state["step"].cpu()

    def on_train_end(self) -> None:
        """As in nnU-Net, then end the loaders: no thread may run while processes for the final validation fork."""
        super().on_train_end()
        self.dataloader_train = self.dataloader_val = None

    def on_train_epoch_start(self) -> None:
        """As in nnU-Net; a schedule by the step goes on after those that were done before."""
        super().on_train_epoch_start()
        if isinstance(self.lr_scheduler, StepSchedule):
            self.lr_scheduler.advance(len(self.losses_before))

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Errors of each patch of a batch."""
        corrupted = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"].to(self.device, non_blocking=True)
        with torch.no_grad(), autocast(self.device.type, enabled=self.device.type == "cuda"):
            restored = self.network(corrupted)
        guessed = {"copy_mse": corrupted} if self.cell is None else guesses(corrupted, self.cell)
        guessed = {name: self.loss.in_unit(guess, target) for name, guess in guessed.items()}
        errors = restoration_errors(restored, self.loss.in_unit(target, target), guessed)
        self.stop_if_asked()
        return {"errors": errors}

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Log the errors of restoration and of baselines over the patches of all processes."""
        errors = self._gathered(val_outputs)
        self.logger.log("val_losses", validation_loss(self.settings.loss, errors), self.current_epoch)
        for name, metric in self.logger.local_logger.errors.items():
            self.logger.log(name, errors[metric], self.current_epoch)

    def _gathered(self, outputs: list[dict[str, Any]]) -> dict[str, float]:
        errors = [error for output in outputs for error in output["errors"]]
        return mean_errors([error for gathered in self.gathered(errors) for error in gathered])

    def on_epoch_end(self) -> None:
        """Report the epoch, save checkpoints, draw progress and restored patches."""
        self.logger.log("epoch_end_timestamps", time.time(), self.current_epoch)
        done = self.current_epoch + 1
        for line in self.logger.local_logger.report(self.num_epochs - done):
            self.print_to_log_file(line)
        self._save_if_best()  # before the latest checkpoint, which has to know the best loss when it is resumed
        if done % self.save_every == 0 and done < self.num_epochs:
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
        if self.local_rank == 0:
            self.logger.plot_progress_png(self.output_folder)
            if done % self.settings.plot_every == 0 or done == self.num_epochs:
                self.draw_sheet(f"restoration_epoch_{done:04d}.png", f"epoch {done}")
        self.current_epoch += 1

    def _save_if_best(self) -> None:
        """Write `checkpoint_best.pth` if no epoch had so small a validation loss; NaN is never the best."""
        loss = self.logger.get_value("val_losses", step=-1)
        # nnU-Net keeps its best score under this name, in checkpoints too
        if math.isfinite(loss) and (self._best_ema is None or loss < self._best_ema):
            self._best_ema: float | None = loss
            self.print_to_log_file(f"New best val_loss {loss:.4f}")
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_best.pth"))

    @torch.no_grad()
    def draw_sheet(self, name: str, title: str) -> None:
        """Draw original, corrupted and restored patches of held-out volumes, not mirrored, into the output folder."""
        recipe = replace(self.recipe, flip_probability=0.0)
        batches = self._batches(self.validation_cases, VALIDATION, recipe)
        network = unwrap(self.network).eval()
        heading = f"{self.plans_manager.dataset_name} {self.configuration_name}: held-out patches, {title}"
        draw_restored(batches, network, self.loss, self.device, heading, Path(self.output_folder) / name)

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint, written atomically, in plain types, with a description of what it is."""
        if self.local_rank == 0 and not self.disable_checkpointing:
            save_plain(super().save_checkpoint, self.describe(), Path(filename))
        else:
            super().save_checkpoint(filename)

    def describe(self) -> dict[str, Any]:
        """What a reader of the checkpoint should know, in plain types."""
        return (
            {
                "task": HIDDEN_TASK if self.settings.recipe.masking.leaves_out else TASK,
                "channel_names": channel_names(self.dataset_json),
                "spacing": list(self.configuration_manager.spacing),
                "patch_size": list(self.configuration_manager.patch_size),
                "normalization_schemes": list(self.configuration_manager.normalization_schemes),
                "architecture": self.configuration_manager.configuration["architecture"],
                "settings": self.settings.block(),
                "versions": versions(),
            }
            | self.seen
            | self.progress()
        )

    @torch.no_grad()
    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Write `restoration_summary.json` and `restoration_final.png` in place of nnU-Net's final validation.

        The summary holds MSE, MAE, PSNR and SSIM on held-out patches for the recipe and for each corruption alone,
        with the MSE of baselines; of a masked autoencoder only for what hides cells. `save_probabilities` (`--npz`) has
        no meaning here.
        """
        _, self.validation_cases = self.do_split()
        self.set_deep_supervision_enabled(False)
        self.network.eval()
        summary = {"recipe": self.errors_on_held_out(self.recipe)} | {
            f"{name} alone": self.errors_on_held_out(recipe)
            for name, recipe in self.recipe.alone().items()
            if self.cell is None or recipe.masking.probability > 0
        }
        if self.local_rank == 0:
            unit = "units of each cell's deviation" if self.settings.normalises else "normalised intensities"
            facts = {"unit": f"MSE and MAE in {unit}, PSNR in dB, SSIM up to 1",
                     "epochs": self.current_epoch, "held_out": self.validation_cases, "errors": summary}  # fmt: skip
            write_json(facts, Path(self.output_folder) / "restoration_summary.json")
            self.draw_sheet("restoration_final.png", f"after {self.current_epoch} epochs")
            for name, errors in summary.items():
                self.print_to_log_file(
                    f"{name:<22} {told(errors)}  PSNR {errors['psnr']:.2f} dB  SSIM {errors['ssim']:.3f}"
                )
                self.logger.log_summary(f"restoration/{name}/mse", errors["mse"])
        if self.is_ddp:
            dist.barrier()

    def errors_on_held_out(self, recipe: Recipe) -> dict[str, float]:
        """Mean errors of restoring held-out patches, the same ones every time, that a recipe corrupted."""
        batches = self._batches(self.validation_cases, VALIDATION, recipe)
        numbers = range(self.num_val_iterations_per_epoch)
        workers = (get_allowed_n_proc_DA() + 1) // 2
        loaded = load(batches, numbers, workers, self.device.type == "cuda")
        return self._gathered([self.validation_step(batch) for batch in loaded])
