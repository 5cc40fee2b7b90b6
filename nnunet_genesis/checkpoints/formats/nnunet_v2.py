"""Plans and dataset.json of nnU-Net v2, in a checkpoint or not → architecture, and facts about the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_genesis.checkpoints.architectures import plain
from nnunet_genesis.errors import CheckpointError, reason
from nnunet_genesis.nnunet_dataset import FORMER_CHANNELS, input_channels


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
        raise CheckpointError(f"has incomplete plans inside ({reason(error, 100)}).") from None
