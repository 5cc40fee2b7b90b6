"""What a trainer does as one of several processes, on one machine or many, and when it is asked to stop."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_genesis.checkpoints.reading import read_content
from nnunet_genesis.errors import DatasetError, SettingsError, one_line
from nnunet_genesis.interruption import received, unwatch, watched
from nnunet_genesis.parallel import variable

UNFINISHED = "losses_of_unfinished_epoch"
"""Entry of a checkpoint that was written within an epoch: the loss of each of its steps so far."""


class RankedTrainer(nnUNetTrainer):
    """nnU-Net's trainer for any number of machines.

    nnU-Net takes the number of a process among all of them, `local_rank`, for that of its GPU, which is right on one
    machine only. Here the GPU is PyTorch's current device, and the number decides about data and writing alone.

    Where signals are watched (`interruption`), it stops after the step in which one arrives, with
    `checkpoint_latest.pth` and the exit code 128 + signal; `--c` then goes on within the epoch.
    """

    is_ddp: bool
    network: Any
    output_folder_base: Any
    settings: Any
    """Has `batch_per_device`; set before the constructor of this class is called."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        """As in nnU-Net, on this process' own device."""
        first = not dist.is_initialized() or dist.get_rank() == 0
        with nullcontext() if first else variable("nnUNet_wandb_enabled", "0"):  # one process reports to it
            super().__init__(plans, configuration, fold, dataset_json, device)
        self.losses: list[float] = []  # of the steps of this epoch
        self.losses_before: list[float] = []  # of those before the training was resumed within it
        self.unfinished: list[float] = []  # what a checkpoint within an epoch says about it
        if self.is_ddp:
            self.device = device
            if device.type == "cuda" and torch.cuda.is_available():
                self.device = torch.device("cuda", torch.cuda.current_device())
            if self.device.type != "cuda":
                self.grad_scaler = None
        if self.settings.batch_per_device:
            self.configuration_manager.configuration["batch_size"] = self.settings.batch_per_device * self.processes

    @property
    def processes(self) -> int:
        """How many train together."""
        return dist.get_world_size() if self.is_ddp else 1

    def initialize(self) -> None:
        """As in nnU-Net, with the network on this process' own device.

        Raises:
            SettingsError: A process would have no patch.
        """
        batch = self.configuration_manager.batch_size
        if batch < self.processes:
            raise SettingsError(
                f"{self.processes} processes cannot share batches of {batch} patches. Start fewer, or set "
                '"batch_per_device" in the plans (--batch-per-device).'
            )
        if not self.is_ddp:
            super().initialize()
            return
        self.is_ddp = False  # or nnU-Net wraps the network on the GPU that has the number of this process
        try:
            super().initialize()
        finally:
            self.is_ddp = True
        self._set_batch_size_and_oversample()
        devices = [self.device] if self.device.type == "cuda" else None
        network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self.network = nn.parallel.DistributedDataParallel(network, device_ids=devices)
        self.loss = self._build_loss()  # that of several processes

    def do_split(self) -> tuple[list[str], list[str]]:
        """As in nnU-Net, where the first process to come writes the splits: here the others wait for it."""
        with self.first_alone():
            split: tuple[list[str], list[str]] = super().do_split()
        return split

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process runs the block while the others wait; then they do."""
        if self.is_ddp and self.local_rank:
            dist.barrier()
        yield
        if self.is_ddp and not self.local_rank:
            dist.barrier()

    def on_train_start(self) -> None:
        """As in nnU-Net, but the first process alone writes plans and descriptions into the results folder."""
        with one_line():
            self._refuse_different_starts()
        if not (self.is_ddp and self.local_rank):
            super().on_train_start()
            return
        with TemporaryDirectory() as nowhere:
            folder, self.output_folder_base = self.output_folder_base, nowhere
            super().on_train_start()
            self.output_folder_base = folder

    def _refuse_different_starts(self) -> None:
        """Stop processes of which some found a checkpoint that others do not see."""
        starts = sorted(set(self.gathered((self.current_epoch, len(self.losses_before)))))
        if len(starts) > 1:
            raise DatasetError(
                f"Processes would start in different epochs ({', '.join(str(epoch) for epoch, _ in starts)}): they "
                "do not see the same checkpoint. Let nnUNet_results name one folder that all machines share."
            )

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, in order of their numbers."""
        values = [value] * self.processes
        if self.is_ddp:
            dist.all_gather_object(values, value)
        return values

    def after_steps_done(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Training batches after stand-ins for those on which this epoch has trained before it was resumed."""
        return itertools.chain([{"loss": np.array(loss, np.float32)} for loss in self.losses_before], batches)

    def on_train_epoch_start(self) -> None:
        """As in nnU-Net."""
        self.losses = []
        super().on_train_epoch_start()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """As in nnU-Net; a step that was done before the training was resumed is not done again."""
        done = "loss" in batch
        outcome: dict[str, Any] = batch if done else super().train_step(batch)
        self.losses.append(float(outcome["loss"]))
        if not done:
            self.stop_if_asked()
        return outcome

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """As in nnU-Net."""
        super().on_train_epoch_end(train_outputs)
        self.losses_before = []

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """As in nnU-Net."""
        outcome: dict[str, Any] = super().validation_step(batch)
        self.stop_if_asked()
        return outcome

    def on_train_end(self) -> None:
        """As in nnU-Net; from now on there is nothing to save, and signals end the process."""
        super().on_train_end()
        if not watched():
            return
        number = self._asked()
        unwatch()
        if number:
            sys.exit(128 + number)

    def _asked(self) -> int:
        """The signal that any of the processes has noted; 0: none has."""
        if not watched():
            return 0
        number = torch.tensor(received(), device=self.device)
        if self.is_ddp:
            dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    def stop_if_asked(self) -> None:
        """End all processes after the same step, with a checkpoint, if any of them was asked to."""
        number = self._asked()
        if not number:
            return
        self.print_to_log_file(f"Signal {number}: stopping after step {len(self.losses)} of epoch {self.current_epoch}")
        self.unfinished = np.mean(self.gathered(self.losses), axis=0).tolist()
        self.current_epoch -= 1  # nnU-Net saves the number of the next epoch, which is this one again
        self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
        if self.is_ddp:
            dist.barrier()  # torchrun ends all processes when the first one ends
        sys.exit(128 + number)

    def progress(self) -> dict[str, Any]:
        """For checkpoints: what was done of an epoch that is not finished."""
        return {UNFINISHED: self.unfinished} if self.unfinished else {}

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """As in nnU-Net; of an unfinished epoch the steps that are left are to be done."""
        super().load_checkpoint(filename_or_checkpoint)
        if isinstance(filename_or_checkpoint, str):
            with one_line():
                facts = read_content(Path(filename_or_checkpoint)).get("genesis", {})
            self.losses_before = [float(loss) for loss in facts.get(UNFINISHED, [])]
            done = f"after {len(self.losses_before)} steps of epoch {self.current_epoch}"
            self.print_to_log_file(f"Going on {done}, from {filename_or_checkpoint}")
