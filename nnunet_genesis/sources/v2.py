"""Plans and dataset.json of nnU-Net v2, in a checkpoint or not → architecture, and facts about the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_genesis.datasets import FORMER_CHANNELS, channel_names
from nnunet_genesis.errors import CheckpointError
from nnunet_genesis.sources.architectures import plain
from nnunet_genesis.transfer.channels import PREVIOUS_STAGE


def plans_of(content: Mapping[str, Any]) -> tuple[Any, dict[str, Any], tuple[str, ...]]:
    """Architecture block; `channels`, `patch_size`, `spacing` and `normalisation` of a `Source`; notes on these.

    Raises:
        CheckpointError: The plans inside the checkpoint are incomplete.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        given = content["init_args"]
        # resolves "inherits_from", and the way in which plans of 2023 describe networks
        plans = dict(given["plans"])
        manager = PlansManager(plans).get_configuration(given["configuration"])
        described = given.get("dataset_json") or {}
        named = "channel_names" in described or FORMER_CHANNELS in described
        facts = {
            "channels": input_channels(plans, given["configuration"], described) if named else None,
            "patch_size": [int(size) for size in manager.patch_size],
            "spacing": [float(size) for size in manager.spacing],
            "normalisation": [str(scheme) for scheme in manager.normalization_schemes],
        }
        notes = () if named else ("its input channels have no names: it holds no dataset.json that names them",)
        return plain(manager.configuration["architecture"]), facts, notes
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
        raise CheckpointError(f"has incomplete plans inside ({' '.join(str(error).split())[:100]}).") from None


def input_channels(plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]) -> list[str]:
    """Names of a network's input channels; in a cascade's second stage the labels of the first come last."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager, names = PlansManager(dict(plans)), channel_names(dataset_json)
    if manager.get_configuration(configuration).previous_stage_name is None:
        return names
    return names + [f"{PREVIOUS_STAGE}{label}" for label in manager.get_label_manager(dataset_json).foreground_labels]
