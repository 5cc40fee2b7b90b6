"""The `"genesis"` block of a plans file: what pre-training and fine-tuning read their settings from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nnunet_genesis.corruption import RECIPES, Recipe, read_recipe
from nnunet_genesis.errors import SettingsError
from nnunet_genesis.settings_base import Settings, setting

DEFAULT_RECIPE = "paper"

OPTIMIZERS: dict[str, dict[str, float]] = {
    "sgd": {"learning_rate": 1e-2, "weight_decay": 3e-5},
    "adamw": {"learning_rate": 1e-4, "weight_decay": 5e-2},
}
"""Optimisers of the fine-tuning, with what holds where the settings do not say otherwise: nnU-Net's own values, and
those with which it fine-tunes pre-trained transformers (the rate is that of AMAES, arXiv 2408.00640, too)."""

OF_TRANSFORMERS: dict[str, Any] = {
    "optimizer": "adamw",
    "learning_rate": 3e-4,
    "weight_decay": 5e-2,
    "betas": (0.9, 0.98),
    "clip": 1.0,
}
"""What a Primus is fine-tuned with unless the user says otherwise: values of nnU-Net's own trainers of it."""


@dataclass(frozen=True)
class PretrainingSettings(Settings):
    """Settings of `nnUNetTrainerGenesisPretrain`: `plans["genesis"]["pretraining"]`."""

    loss: str = setting("mse", "restoration loss", choices=("mse", "l1", "ssim"))
    epochs: int = setting(1000, "number of epochs", at_least=1)
    iterations: int = setting(250, "training steps per epoch", at_least=1)
    validation_iterations: int = setting(50, "validation steps per epoch", at_least=1)
    patience: int = setting(
        0,
        "epochs without a smaller validation loss after which the training stops; 0: it does not",
        at_least=0,
    )
    learning_rate: float = setting(1e-3, "AdamW's learning rate at the start; it falls to 0 (poly)", above=0)
    weight_decay: float = setting(1e-2, "AdamW's weight decay", at_least=0)
    validation_share: float = setting(
        0.1, "share of the volumes held out for validation (fold all)", above=0, at_most=0.5
    )
    minimum_contrast: float = setting(
        0.2,
        "crops that vary less than this share of their volume's variation are empty air",
        at_least=0,
        at_most=1,
    )
    plot_every: int = setting(50, "epochs between pictures of restored patches", at_least=1, formerly="sheet_every")
    save_every: int = setting(50, "epochs between checkpoints", at_least=1)
    corrupt_on: str = setting(
        "auto",
        "who corrupts training patches: the loading processes or the device that trains; auto: a CUDA device does",
        choices=("auto", "workers", "device"),
    )
    seed: int = setting(0, "seed of hold-out, initial weights, crops and corruptions", at_least=0)
    exclude: tuple[str, ...] = setting((), "cases left out, by name, or .txt files of names: those to be tested on")
    recipe: Recipe = field(default=RECIPES[DEFAULT_RECIPE])

    @classmethod
    def of_plans(cls, plans: Mapping[str, Any]) -> PretrainingSettings:
        """Settings in a plans file; the defaults where it has no genesis block.

        Raises:
            SettingsError: Unknown key, wrong type or value out of range; the message names the key.
        """
        where = f'the block "genesis" / "pretraining" of the plans {plans.get("plans_name", "")}'
        block = dict(_block(_genesis(plans).get("pretraining", {}), where))
        if "recipe" in block:
            block["recipe"] = read_recipe(block["recipe"], f'{where} / "recipe"')
        return cls().updated(block, where)


@dataclass(frozen=True)
class FineTuningSettings(Settings):
    """Settings of `nnUNetTrainerGenesisFinetune`: `plans["genesis"]["fine_tuning"][configuration]`."""

    epochs: int = setting(1000, "number of epochs", at_least=1)
    iterations: int = setting(250, "training steps per epoch", at_least=1)
    warmup: int = setting(
        50, "epochs in which the learning rate rises linearly: by default a twentieth of all, at most", at_least=0
    )
    optimizer: str = setting("sgd", "SGD as in nnU-Net, or AdamW", choices=tuple(OPTIMIZERS))
    learning_rate: float | None = setting(
        None,
        "learning rate after warm-up; it falls to 0 (poly); by default 0.01 with sgd, 0.0001 with adamw",
        above=0,
    )
    weight_decay: float | None = setting(None, "weight decay; by default 0.00003 with sgd, 0.05 with adamw", at_least=0)
    freeze_epochs: int = setting(
        0, "epochs in which stem and encoder stay as transferred", at_least=0, formerly="frozen_encoder"
    )
    encoder_lr_scale: float = setting(
        1.0,
        "learning rate of stem and encoder, as share of that of the other layers",
        above=0,
        at_most=1,
        formerly="encoder_rate",
    )
    layer_lr_decay: float = setting(
        1.0,
        "learning rate of each stage of the encoder (a transformer: of each block), as share of that of the next",
        above=0,
        at_most=1,
    )
    betas: tuple[float, float] = setting((0.9, 0.999), "AdamW's decay of averages", at_least=0, at_most=0.99999)
    clip: float = setting(12.0, "largest norm of the gradient; nnU-Net clips at 12 in any case", above=0, at_most=12)
    seed: int = setting(0, "seed of initial weights, patches and augmentation", at_least=0)
    weights: str = setting("", 'file of weights beside the plans; "" trains from scratch (control arm)')
    sha256: str = setting("", "digest of that file")
    source: str = setting("", "name of the checkpoint that the weights came from")
    source_sha256: str = setting("", "digest of that checkpoint")
    coverage: float = setting(0.0, "share of the parameters, heads aside, that came from it", at_least=0, at_most=1)

    def __post_init__(self) -> None:
        """Check the fields, also against each other."""
        super().__post_init__()
        for name in ("warmup", "freeze_epochs"):
            if getattr(self, name) >= self.epochs:
                raise SettingsError(f'"{name}" ({getattr(self, name)}) must be below "epochs" ({self.epochs}).')

    def resolved(self) -> FineTuningSettings:
        """A copy in which learning rate and weight decay are numbers."""
        rate, decay = self.rates()
        return replace(self, learning_rate=rate, weight_decay=decay)

    def rates(self) -> tuple[float, float]:
        """Learning rate and weight decay: those of the optimiser, unless they were given."""
        own = OPTIMIZERS[self.optimizer]
        rate = own["learning_rate"] if self.learning_rate is None else self.learning_rate
        return rate, own["weight_decay"] if self.weight_decay is None else self.weight_decay

    @classmethod
    def of_plans(cls, plans: Mapping[str, Any], configuration: str) -> FineTuningSettings:
        """The block of one configuration.

        Raises:
            SettingsError: There is none, or it has an unknown key or a value out of range.
        """
        name = plans.get("plans_name", "")
        blocks = _block(_genesis(plans).get("fine_tuning", {}), 'the block "genesis" / "fine_tuning"')
        if configuration not in blocks:
            raise SettingsError(
                f"The plans {name} hold no transferred weights for {configuration} (they do for: "
                f"{', '.join(blocks) or 'none'}). Run: nnunet_genesis transfer CHECKPOINT "
                f"-d {plans.get('dataset_name', 'DATASET')} -c {configuration}"
            )
        where = f'the block "genesis" / "fine_tuning" / "{configuration}" of the plans {name}'
        return cls().updated(blocks[configuration], where)


def _genesis(plans: Mapping[str, Any]) -> Mapping[str, Any]:
    block = _block(plans.get("genesis", {}), 'the block "genesis"')
    unknown = [key for key in block if key not in ("pretraining", "fine_tuning")]
    if unknown:
        raise SettingsError(
            f'Unknown key "{unknown[0]}" in the block "genesis" of the plans {plans.get("plans_name", "")}: '
            'it holds "pretraining" and "fine_tuning".'
        )
    return block


def _block(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingsError(f"{where} must be a block of settings in braces, not {value!r}.")
    return value
