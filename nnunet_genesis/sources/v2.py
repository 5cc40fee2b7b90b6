"""Content of an nnU-Net v2 checkpoint → architecture in its plans, and facts about the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_genesis.errors import CheckpointError
from nnunet_genesis.sources.architectures import plain


def plans_of(content: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Architecture block, and `channels`, `patch_size`, `spacing` and `normalisation` of a `Source`.

    Raises:
        CheckpointError: The plans inside the checkpoint are incomplete.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        given = content["init_args"]
        # resolves "inherits_from", and the way in which plans of 2023 describe networks
        manager = PlansManager(dict(given["plans"])).get_configuration(given["configuration"])
        names = given["dataset_json"]["channel_names"]
        facts = {
            "channels": [str(names[key]) for key in sorted(names, key=int)],
            "patch_size": [int(size) for size in manager.patch_size],
            "spacing": [float(size) for size in manager.spacing],
            "normalisation": [str(scheme) for scheme in manager.normalization_schemes],
        }
        return plain(manager.configuration["architecture"]), facts
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
        raise CheckpointError(f"has incomplete plans inside ({' '.join(str(error).split())[:100]}).") from None
