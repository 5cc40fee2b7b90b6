"""A trainer's checkpoint → a complete file in plain types that describes itself."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from nnunet_genesis.checkpoints.plain_types import plain
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
        save_tensors(plain(checkpoint) | {"genesis": plain(dict(description))}, temporary)


def save_tensors(content: Any, path: Path) -> None:
    """Write what torch.save would write.

    Raises:
        OSError: The file cannot be written; says why. PyTorch, given a path, has a RuntimeError of many lines.
    """
    try:
        with path.open("wb") as stream:
            torch.save(content, stream)
    except RuntimeError as error:  # PyTorch comes upon the end of a file that could not be written
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def versions() -> dict[str, str]:
    """Versions of the packages that made a checkpoint."""
    return {name: version(name) for name in ("nnunet-genesis", "nnunetv2", "torch", "numpy")}
