"""nnU-Net trainer that starts from transferred weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import nn

from nnunet_genesis.batches import SeededBatches, load, no_loading_processes
from nnunet_genesis.checkpoints.reading import network_weights, read_checkpoint
from nnunet_genesis.checkpoints.saving import save_plain, versions
from nnunet_genesis.errors import CheckpointError, TransferError, one_line, reason
from nnunet_genesis.files import sha256
from nnunet_genesis.named_classes import is_primus, names_primus
from nnunet_genesis.networks.build import build_network, is_head, unwrap
from nnunet_genesis.networks.depths import encoder_depths
from nnunet_genesis.networks.outputs import KEPT_ROWS, with_kept_rows
from nnunet_genesis.preflight import (
    check_before_training,
    refuse_missing_first_stage,
    refuse_missing_gpu,
    refuse_missing_labels,
    volumes_folder,
)
from nnunet_genesis.ranks import RankedTrainer
from nnunet_genesis.settings import FineTuningSettings


class WarmupPoly(PolyLRScheduler):
    """Linear warm-up, then nnU-Net's poly schedule over the remaining epochs; the encoder's groups may lag behind."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, settings: FineTuningSettings, shares: Sequence[float] = (1.0,)
    ) -> None:
        """The rate of the epochs before the end of the warm-up is `learning_rate * (epoch + 1) / (warmup + 1)`.

        Args:
            optimizer: Its first group are the layers outside the encoder, the others are the encoder's.
            settings: Rates, warm-up and freezing.
            shares: For each of the encoder's groups, its rate as share of that of the encoder.
        """
        self.settings, self.shares = settings, shares
        super().__init__(optimizer, settings.rates()[0], settings.epochs - settings.warmup)

    def step(self, current_step: int | None = None) -> None:
        """Set the learning rates of epoch `current_step`; that of a frozen encoder is 0."""
        epoch = 0 if current_step is None else current_step
        super().step(max(0, epoch - self.settings.warmup))
        rest, *encoder = self.optimizer.param_groups
        if epoch < self.settings.warmup:
            rest["lr"] = self.initial_lr * (epoch + 1) / (self.settings.warmup + 1)
        for group, share in zip(encoder, self.shares, strict=True):
            group["lr"] = rest["lr"] * self.settings.encoder_lr_scale * share * (epoch >= self.settings.freeze_epochs)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def encoder_groups(network: nn.Module, layer_lr_decay: float) -> list[tuple[list[nn.Parameter], float]]:
    """Parameters of stem and encoder in groups of one learning rate, and its share of the encoder's.

    With a decay of 1 there is one group, as in checkpoints of trainings that knew no other. Otherwise block i of n has
    the share `layer_lr_decay ** (n + 1 - i)`, and what comes before the blocks that of i = 0, as in SelfMedMAE
    (arXiv 2203.05573) and BEiT; blocks of a U-Net are its stages.
    """
    depths = encoder_depths(network)
    if layer_lr_decay == 1:
        return [([parameter for group in depths for parameter in group], 1.0)]
    return [(group, layer_lr_decay ** (len(depths) - 1 - depth)) for depth, group in enumerate(depths) if group]


class nnUNetTrainerGenesisFinetune(RankedTrainer):  # noqa: N801
    """Fine-tune from the weights that the plans' genesis block names (written by `nnunet_genesis transfer`).

    Start, length, optimiser, learning rate and seed are the plans'; all else is nnU-Net's. A fresh training refuses to
    start when the weights are missing, altered or do not fit; a resumed one, validation and prediction never need them.
    """

    build_network_architecture = staticmethod(build_network)

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
            self.settings = FineTuningSettings.of_plans(plans, configuration).resolved()
            check_before_training(plans, configuration, cascade=True)
            refuse_missing_labels(plans["dataset_name"], dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.settings.epochs
        self.num_iterations_per_epoch = self.settings.iterations
        self.initial_lr, self.weight_decay = self.settings.rates()
        self.enable_deep_supervision = not names_primus(self.configuration_manager.network_arch_class_name)
        self.has_resumed = False

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """nnU-Net's optimiser or AdamW, with groups for the encoder; nnU-Net's schedule after a warm-up."""
        if self.settings.optimizer == "adamw":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                self.network.parameters(),
                self.initial_lr,
                betas=(0.9, self.settings.beta2),
                weight_decay=self.weight_decay,
            )
        else:
            optimizer, _ = super().configure_optimizers()
        groups = encoder_groups(unwrap(self.network), self.settings.layer_lr_decay)
        within = {id(parameter) for parameters, _ in groups for parameter in parameters}
        (rest,) = optimizer.param_groups
        rest["params"] = [parameter for parameter in rest["params"] if id(parameter) not in within]
        for parameters, _ in groups:
            optimizer.add_param_group({"params": parameters})
        if self.settings.gradient_clipping < FineTuningSettings.gradient_clipping:
            optimizer.register_step_pre_hook(self._clip)
        return optimizer, WarmupPoly(optimizer, self.settings, [share for _, share in groups])

    def _clip(self, *_: Any) -> None:
        """Clip gradients further than nnU-Net's step does, which has unscaled them."""
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_clipping)

    def on_train_epoch_start(self) -> None:
        """As in nnU-Net; an encoder that thaws starts without the moments of the gradients that it did not follow."""
        if self.current_epoch == self.settings.freeze_epochs > 0 and not self.losses_before:
            for group in self.optimizer.param_groups[1:]:
                for parameter in group["params"]:
                    self.optimizer.state.pop(parameter, None)
        super().on_train_epoch_start()

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """As in nnU-Net; a Primus has none."""
        if not is_primus(unwrap(self.network)):
            super().set_deep_supervision_enabled(enabled)

    def initialize(self) -> None:
        """As in nnU-Net, with seeded initial weights, after a look for the preprocessed volumes and the GPU."""
        with one_line(), torch.random.fork_rng(devices=[]):
            volumes_folder(self.plans_manager.plans, self.configuration_name)
            refuse_missing_first_stage(self)
            refuse_missing_gpu(self.device)
            torch.manual_seed(self.settings.seed)
            super().initialize()

    def get_dataloaders(self) -> tuple[Iterator[dict[str, Any]], Iterator[dict[str, Any]]]:
        """nnU-Net's batches, which the seed decides, whatever the number of loading processes and restarts."""
        workers = get_allowed_n_proc_DA()
        with no_loading_processes():
            training, validation = super().get_dataloaders()
        streams = (
            (training, self.num_iterations_per_epoch, len(self.losses_before), workers),
            (validation, self.num_val_iterations_per_epoch, 0, (workers + 1) // 2),
        )
        first, second = (
            load(
                SeededBatches(batches, (self.settings.seed, stream, self.local_rank)),
                itertools.count(self.current_epoch * per_epoch + done),
                processes,
                self.device.type == "cuda",
            )
            for stream, (batches, per_epoch, done, processes) in enumerate(streams)
        )
        return self.after_steps_done(first), second

    def on_train_end(self) -> None:
        """As in nnU-Net, then end the loaders: no thread may run while processes for the final validation fork."""
        super().on_train_end()
        self.dataloader_train = self.dataloader_val = None

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Resume: the network is this training's own from here on."""
        super().load_checkpoint(filename_or_checkpoint)
        self.has_resumed = True
        for state in self.optimizer.state.values():
            if "step" in state:
                state["step"] = state["step"].cpu()  # AdamW reads it there without waiting for the GPU

    def on_train_start(self) -> None:
        """Load the transferred weights into a fresh training, then as in nnU-Net."""
        own = self.settings
        self.print_to_log_file(
            f"Fine-tuning with {own.optimizer}: learning rate {own.learning_rate:g} after {own.warmup} epochs of "
            f"warm-up, weight decay {own.weight_decay:g}, rates of layers fall by {own.layer_lr_decay:g}, gradients "
            f"are clipped at {own.gradient_clipping:g}"
        )
        if not self.has_resumed:
            with one_line():
                if self.was_initialized and self.settings.weights:
                    raise TransferError(
                        "-pretrained_weights was given, but the plans name transferred weights already. Leave "
                        "-pretrained_weights out, or train with another trainer."
                    )
                self._start_from_transferred_weights()
        super().on_train_start()

    @property
    def weights_folder(self) -> Path:
        """Where the transferred weights lie: beside the plans."""
        return Path(self.preprocessed_dataset_folder_base)

    def _start_from_transferred_weights(self) -> None:
        """Replace the network's weights by the file's.

        Raises:
            CheckpointError: The file is missing, altered or unreadable.
            TransferError: It does not fit the network.
        """
        again = "Run nnunet_genesis transfer again."
        if not self.settings.weights:
            self.print_to_log_file("TRAINING FROM SCRATCH, as the plans ask: this is the control arm.")
            return
        path = self.weights_folder / self.settings.weights
        if not path.is_file():
            raise CheckpointError(f"The transferred weights {path} do not exist. {again}")
        if sha256(path) != self.settings.sha256:
            raise CheckpointError(f"The transferred weights {path} were altered after the transfer. {again}")
        content = read_checkpoint(path)
        weights = network_weights(content, path)
        if not self.was_initialized:
            self.initialize()
        try:
            weights |= self._own_heads(weights, content)
            unwrap(self.network).load_state_dict(weights, strict=True)
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise TransferError(
                f"The transferred weights {path} do not fit this network: {reason(error, 300)}. {again}"
            ) from None
        self.print_to_log_file(
            f"Starting from {self.settings.source} (SHA-256 {self.settings.source_sha256[:12]}...): "
            f"{self.settings.coverage:.1%} of the parameters, segmentation heads aside, come from it."
        )

    def _own_heads(self, weights: dict[str, torch.Tensor], content: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Heads belong to the task: this training's seed decides them, but for rows of labels that were kept."""
        kept = content.get("genesis", {}).get(KEPT_ROWS, {})
        own = {name: tensor for name, tensor in unwrap(self.network).state_dict().items() if is_head(name)}
        return own | {name: with_kept_rows(own[name], weights[name], rows) for name, rows in kept.items()}

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint, written atomically and in plain types, with where the weights came from."""
        if self.local_rank == 0 and not self.disable_checkpointing:
            facts = {"task": "fine-tuning", "settings": self.settings.block(), "versions": versions()}
            save_plain(super().save_checkpoint, facts | self.progress(), Path(filename))
        else:
            super().save_checkpoint(filename)
