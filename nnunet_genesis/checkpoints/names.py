"""State dicts as files hold them → one name per tensor, in nnU-Net v2's naming, without wrappers and aliases."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from nnunet_genesis.errors import CheckpointError

PREFIXES = ("module.", "_orig_mod.")
"""Put before every name by distributed training and by torch.compile, in any order."""


def without_wrappers(name: str) -> str:
    """The name without what distributed training and torch.compile put before it, or before a part of it."""
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name.replace("._orig_mod.", ".")


def canonical_name(name: str) -> str:
    """First of the names that nnU-Net's networks give a tensor.

    A convolution block registers its layers twice, as `conv` and `norm` and as `all_modules.0` and `.1` (`.2` with
    dropout), and the decoder registers the encoder again.
    """
    name = re.sub(r"^decoder\.encoder\.", "encoder.", without_wrappers(name))
    return re.sub(r"\.all_modules\.(\d+)\.", lambda found: ".norm." if int(found[1]) else ".conv.", name)


def canonical(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights with one name per tensor.

    Raises:
        CheckpointError: Two names of one tensor hold different values.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        first = found.setdefault(canonical_name(name), tensor)
        if first is not tensor and not _same(first, tensor):
            raise CheckpointError(
                f"holds different values under two names of one tensor ({canonical_name(name)} and {name}); it was "
                "altered after training."
            )
    return found


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.data_ptr() == second.data_ptr() and first.shape == second.shape and first.stride() == second.stride():
        return True  # saved as one storage: nothing to compare
    return first.dtype == second.dtype and torch.equal(first.nan_to_num(), second.nan_to_num())
