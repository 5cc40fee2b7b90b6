"""A trainer's checkpoint → a complete file in plain types that describes itself."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_genesis.checkpoints.safe_numpy import stand_ins
from nnunet_genesis.files import written_atomically


def save_plain(save: Callable[[io.BytesIO], None], description: Mapping[str, Any], path: Path) -> None:
    """Write what `save` writes, with numpy's values made plain and `description` added as "genesis", atomically.

    Args:
        save: Writes a checkpoint to a stream; nnU-Net's `save_checkpoint`.
        description: What a later reader should know, in plain types.
        path: File to write.
    """
    stream = io.BytesIO()
    save(stream)
    stream.seek(0)
    with torch.serialization.safe_globals(stand_ins()):
        checkpoint = torch.load(stream, map_location="cpu", weights_only=True)
    del stream
    with written_atomically(path) as temporary:
        torch.save(plain(checkpoint) | {"genesis": plain(dict(description))}, temporary)


def plain(value: Any) -> Any:
    """The value with numpy scalars and arrays as numbers and lists, in dictionaries, lists and tuples alike."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return type(value)((plain(key), plain(entry)) for key, entry in value.items())
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(plain(entry) for entry in value)
    return value


def versions() -> dict[str, str]:
    """Versions of the packages that made a checkpoint."""
    return {name: version(name) for name in ("nnunet-genesis", "nnunetv2", "torch", "numpy")}
