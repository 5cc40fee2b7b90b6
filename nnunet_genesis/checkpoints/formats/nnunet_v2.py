"""Plans and dataset.json of nnU-Net v2, in a checkpoint or not → architecture, and facts about the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_genesis.architecture_checks import MOST_STAGES
from nnunet_genesis.checkpoints.plain_types import plain
from nnunet_genesis.checkpoints.trainers import NNUNET_V2
from nnunet_genesis.errors import CheckpointError, reason
from nnunet_genesis.networks.outputs import outputs_of
from nnunet_genesis.nnunet_dataset import FORMER_CHANNELS, configuration_of, input_channels

BATCH_NORM = "nnUNetTrainerBN"
"""The one trainer of nnU-Net 2.8.1 that builds another U-Net than the plans say."""

PRETRAINING = "GenesisPretrain"
"""End of the names of trainers whose networks restore images."""


def trainer_of(content: Mapping[str, Any]) -> str:
    """The name of the trainer that wrote a checkpoint."""
    return str(content.get("trainer_name") or "unknown trainer")[:100]


def unknown_trainer(name: str) -> tuple[str, ...]:
    """A note on what plans may not tell: tensors show neither activations nor all norms."""
    if name in NNUNET_V2:
        return ()
    return (f"its trainer ({name}) is none of nnU-Net's own: activations and norms are assumed to be as in its plans",)


def plans_of(content: Mapping[str, Any]) -> tuple[Any, dict[str, Any], tuple[str, ...]]:
    """Architecture block; `channels`, `patch_size`, … of a `PretrainedNetwork`; notes.

    Raises:
        CheckpointError: The plans inside the checkpoint are incomplete.
    """
    try:
        given = content["init_args"]
        _refuse_many_stages(given["plans"]["configurations"])
        # resolves "inherits_from", and the way in which plans of 2023 describe networks
        plans = dict(given["plans"])
        manager = configuration_of(plans, given["configuration"])
        described = given.get("dataset_json") or {}
        named = _are_named(described.get("channel_names", described.get(FORMER_CHANNELS)))
        facts = {
            "channels": input_channels(plans, given["configuration"], described) if named else None,
            "patch_size": [int(size) for size in manager.patch_size],
            "spacing": [float(size) for size in manager.spacing],
            "normalisation": [str(scheme) for scheme in manager.normalization_schemes],
            "outputs": outputs_of(described) if _segments(content) else None,
        }
        notes = () if named else ("its input channels have no names: it holds no dataset.json that names them",)
        architecture = plain(manager.configuration["architecture"], as_json=True)
    except Exception as error:  # nnU-Net works on plans that may be anybody's
        raise CheckpointError(f"has incomplete plans inside ({reason(error, 100)}).") from None
    if trainer_of(content) == BATCH_NORM:
        _with_batch_norm(architecture)
    return architecture, facts, notes


def _segments(content: Mapping[str, Any]) -> bool:
    """Whether the network gives out labels, not images as those of our pre-training do."""
    return not trainer_of(content).endswith(PRETRAINING)


def _are_named(channels: Any) -> bool:
    """Whether every channel has a name that can be read."""
    return isinstance(channels, Mapping) and all(str(name).strip() for name in channels.values())


def _refuse_many_stages(configurations: Mapping[str, Mapping[str, Any]]) -> None:
    """Plans of 2023 name poolings, from which nnU-Net would compute a width per stage, however many there are."""
    for configuration in configurations.values():
        if len(configuration.get("pool_op_kernel_sizes", ())) > MOST_STAGES:
            raise ValueError(f"more than {MOST_STAGES} stages")


def _with_batch_norm(architecture: Any) -> None:
    """Change the block as nnU-Net's trainer does."""
    arguments = architecture.get("arch_kwargs") or {}
    dimensions = str(arguments.get("conv_op"))[-2:]
    arguments |= {"norm_op": f"torch.nn.modules.batchnorm.BatchNorm{dimensions}",
                  "norm_op_kwargs": {"eps": 1e-5, "affine": True}}  # fmt: skip
