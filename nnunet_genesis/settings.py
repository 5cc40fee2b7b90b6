"""The `"genesis"` block of a plans file: what pre-training and fine-tuning read their settings from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nnunet_genesis.corruption import RECIPES, Recipe, read_recipe
from nnunet_genesis.errors import SettingsError, printable
from nnunet_genesis.plans_checks import is_name_of_dataset
from nnunet_genesis.settings_base import Settings, setting

DEFAULT_RECIPE = "paper"

OPTIMIZERS: dict[str, dict[str, float]] = {
    "sgd": {"learning_rate": 1e-2, "weight_decay": 3e-5},
    "adamw": {"learning_rate": 1e-4, "weight_decay": 5e-2},
}
"""Optimisers of the fine-tuning, with what holds where the settings do not say otherwise: nnU-Net's own values, and
those with which it fine-tunes pre-trained transformers (the rate is that of AMAES, arXiv 2408.00640, too)."""

MOST_DATASETS = 100
"""Datasets of one pre-training."""

CONVOLUTIONAL, TRANSFORMER = "convolutional", "transformer"
"""Kinds of networks."""

BY_KIND: dict[str, dict[str, Any]] = {
    CONVOLUTIONAL: {"learning_rate": 1e-3, "weight_decay": 1e-2, "beta2": 0.999, "schedule": "poly", "warmup": 0.0,
                    "gradient_clipping": 12.0},
    TRANSFORMER: {"learning_rate": 1.5e-4, "weight_decay": 5e-2, "beta2": 0.95, "schedule": "cosine",
                  "gradient_clipping": 1.0},
}  # fmt: skip
"""What holds in a pre-training where its settings do not say otherwise. Transformers: SelfMedMAE (Zhou et al., ISBI
2023) and He et al. (CVPR 2022); gradients are clipped as nnU-Net does for Primus. Their warm-up is a twentieth of the
epochs."""

OF_TRANSFORMERS: dict[str, Any] = {
    "optimizer": "adamw",
    "learning_rate": 3e-4,
    "weight_decay": 5e-2,
    "beta2": 0.98,
    "gradient_clipping": 1.0,
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
    learning_rate: float | None = setting(
        None,
        "AdamW's largest learning rate; it falls to 0; by default 0.001, for a transformer 0.00015",
        above=0,
    )
    weight_decay: float | None = setting(
        None, "AdamW's weight decay; by default 0.01, for a transformer 0.05", at_least=0
    )
    beta2: float | None = setting(
        None,
        "AdamW's decay of squared gradients; by default 0.999, for a transformer 0.95",
        at_least=0,
        at_most=0.999999,
    )
    schedule: str = setting(
        "auto",
        "how the learning rate falls: nnU-Net's poly, or half a cosine; auto: cosine for a transformer",
        choices=("auto", "poly", "cosine"),
    )
    warmup: float | None = setting(
        None,
        "epochs in which the learning rate rises linearly; by default 0, for a transformer a twentieth of all",
        at_least=0,
    )
    gradient_clipping: float | None = setting(
        None, "largest norm of the gradient; by default 12 as in nnU-Net, for a transformer 1", above=0, at_most=12
    )
    drop_path: float = setting(
        0.0,
        "share of the paths of a transformer's last block that are dropped in a step; less in those before it",
        at_least=0,
        at_most=0.9,
    )
    decoder_depth: int = setting(
        2,
        "blocks of the decoder that is left behind, of a transformer that gets visible cells alone",
        at_least=1,
        at_most=100,
    )
    normalised_targets: str = setting(
        "auto",
        "whether each cell is restored in units of its own mean and deviation; auto: where a transformer gets visible "
        "cells alone",
        choices=("auto", "yes", "no"),
    )
    batch_per_device: int = setting(
        0, "patches per step and process, of which each has a GPU; 0: processes share the plans' batch", at_least=0
    )
    validation_share: float = setting(
        0.1, "share of the volumes held out for validation (fold all)", above=0, at_most=0.5
    )
    minimum_contrast: float = setting(
        0.2,
        "crops that vary less than this share of their volume's variation are empty air",
        at_least=0,
        at_most=1,
    )
    crops_per_volume: int = setting(
        1, "training patches in succession that are cut from one volume, which is opened once for them", at_least=1
    )
    plot_every: int = setting(50, "epochs between pictures of restored patches", at_least=1, formerly="sheet_every")
    save_every: int = setting(50, "epochs between checkpoints", at_least=1)
    seed: int = setting(0, "seed of hold-out, initial weights, crops and corruptions", at_least=0)
    exclude: tuple[str, ...] = setting((), "cases left out, by name, or .txt files of names: those to be tested on")
    datasets: tuple[str, ...] = setting(
        (), "further datasets, by name, whose volumes are pre-trained on together with those of this one", flag=False
    )
    dataset_weights: tuple[float, ...] = setting(
        (),
        "how often patches come from each dataset, in the order of -d; by default every volume is equally likely",
        above=0,
        at_most=1e6,
        entries=float,
    )
    recipe: Recipe = field(default=RECIPES[DEFAULT_RECIPE])

    def __post_init__(self) -> None:
        """Check the fields, also against each other."""
        super().__post_init__()
        self._check_datasets()
        masking = self.recipe.masking
        if masking.leaves_out and masking.probability != 1:
            raise SettingsError(
                f'"masked_as" is "absent", but the probability of masking {masking.probability:g}: a network that gets '
                "visible cells alone learns from hidden ones only. Set the probability to 1 (recipe mae)."
            )
        if self.normalised_targets == "yes" and not masking.leaves_out:
            raise SettingsError(
                '"normalised_targets" is "yes", but there are no cells to normalise. Set "masked_as" to "absent" '
                '(recipe mae), or "normalised_targets" to "no".'
            )
        if self.normalises and self.loss == "ssim":
            raise SettingsError(
                'The loss "ssim" compares intensities, which normalised targets are not. Choose "mse" or "l1", or set '
                '"normalised_targets" to "no".'
            )
        if self.warmup is not None and self.warmup >= self.epochs:
            raise SettingsError(f'"warmup" ({self.warmup:g}) must be below "epochs" ({self.epochs}).')

    def _check_datasets(self) -> None:
        count = 1 + len(self.datasets)
        if count > MOST_DATASETS:
            raise SettingsError(f"A pre-training takes at most {MOST_DATASETS} datasets, not {count}.")
        if wrong := [name for name in self.datasets if not is_name_of_dataset(name)]:
            raise SettingsError(
                f'"datasets" must be names such as Dataset502_ChestCT, which "{printable(wrong[0], 80)}" is not.'
            )
        if self.dataset_weights and (count == 1 or len(self.dataset_weights) != count):
            raise SettingsError(
                f'"dataset_weights" has {len(self.dataset_weights)} numbers, for {count} datasets. Give a number for '
                "each of several, that which is trained first, or none."
            )

    def of_further(self, dataset: str) -> PretrainingSettings:
        """Settings with which one of the further datasets is pre-trained on alone: its own cases are left out."""
        own = tuple(by_dataset(self.exclude).get(dataset, ()))
        return replace(self, datasets=(), dataset_weights=(), exclude=own)

    @property
    def normalises(self) -> bool:
        """Whether targets are normalised, cell by cell."""
        return self.normalised_targets == "yes" or (
            self.normalised_targets == "auto" and self.recipe.masking.leaves_out
        )

    def resolved(self, kind: str) -> PretrainingSettings:
        """A copy in which all that follows from the kind of network is named.

        Raises:
            SettingsError: The kind is `CONVOLUTIONAL`, but there is `drop_path`.
        """
        if self.drop_path and kind == CONVOLUTIONAL:
            raise SettingsError(f'"drop_path" is {self.drop_path:g}, but the network has no such paths. Set it to 0.')
        unset = {"warmup": self.epochs / 20, **BY_KIND[kind]}
        return replace(self, **{name: value for name, value in unset.items() if getattr(self, name) in (None, "auto")})

    @classmethod
    def of_plans(cls, plans: Mapping[str, Any]) -> PretrainingSettings:
        """Settings in a plans file; the defaults where it has no genesis block.

        Raises:
            SettingsError: Unknown key, wrong type or value out of range; the message names the key.
        """
        where = f'the block "genesis" / "pretraining" of the plans {plans.get("plans_name", "")}'
        block = dict(_block(_genesis(plans).get("pretraining", {}), where))
        block.pop("corrupt_on", None)  # of plans and checkpoints of before: loading processes corrupt, whatever it says
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
    beta2: float = setting(0.999, "AdamW's decay of squared gradients", at_least=0, at_most=0.999999)
    gradient_clipping: float = setting(
        12.0, "largest norm of the gradient; nnU-Net clips at 12 in any case", above=0, at_most=12
    )
    batch_per_device: int = setting(
        0, "patches per step and process, of which each has a GPU; 0: processes share the plans' batch", at_least=0
    )
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


def named(dataset: str, case: str) -> str:
    """Name of a case where there are several datasets; `dataset` is "" for that which is trained."""
    return f"{dataset}/{case}" if dataset else case


def by_dataset(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of cases as `named` makes them → each dataset's own names, in their order; "" is that which is trained."""
    found: dict[str, list[str]] = {}
    for name in names:
        dataset, _, case = name.rpartition("/")
        found.setdefault(dataset, []).append(case if dataset else name)  # "/case" is no other name of "case"
    return found


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
