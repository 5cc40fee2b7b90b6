"""Checkpoints: read without executing code from them, written complete, in plain types, describing themselves."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nnunet_genesis.errors import CheckpointError
from nnunet_genesis.files import written_atomically

PREFIXES = ("module.", "_orig_mod.")
"""Put before every name by distributed training and by torch.compile, in any order."""


def bare(network: nn.Module) -> nn.Module:
    """The network without the wrappers of distributed training and torch.compile."""
    while True:
        inner = getattr(network, "module", None) or getattr(network, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU; tensors and plain types only.

    nnU-Net's own files also hold numpy scalars (log, best score), which are let through.

    Raises:
        CheckpointError: The file is missing, cut off, no checkpoint, or asks for code to be run on loading.
    """
    if not path.is_file():
        raise CheckpointError(f"The checkpoint {path} does not exist.")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        if "Unsupported global" in reason or "Unsupported class" in reason or "GLOBAL" in reason:
            raise CheckpointError(
                f"{path} is refused: reading it would run code that it names ({_named_global(reason)}). "
                "Only files of tensors and plain types are read."
            ) from None
        raise CheckpointError(f"{path} is not a checkpoint of PyTorch.") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} cannot be read; it is cut off or no checkpoint ({' '.join(str(error).split())[:120]})."
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint.")
    return content


def network_weights(checkpoint: Mapping[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The state dict of an nnU-Net v2 checkpoint, without the wrappers' prefixes.

    Raises:
        CheckpointError: There is none; the message lists what the file holds.
    """
    weights = checkpoint.get("network_weights")
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise CheckpointError(
            f'{path} is not a checkpoint of nnU-Net v2: it has no "network_weights" (it holds: '
            f"{', '.join(map(str, list(checkpoint)[:6])) or 'nothing'})."
        )
    return {_without_prefixes(name): tensor for name, tensor in weights.items()}


def save_plain(save: Callable[[io.BytesIO], None], description: Mapping[str, Any], path: Path) -> None:
    """Write what `save` writes, with numpy scalars made plain and `description` added as "genesis", atomically.

    Args:
        save: Writes a checkpoint to a stream; nnU-Net's `save_checkpoint`.
        description: What a later reader should know, in plain types.
        path: File to write.
    """
    stream = io.BytesIO()
    save(stream)
    stream.seek(0)
    with torch.serialization.safe_globals(_numpy_scalars()):
        checkpoint = torch.load(stream, map_location="cpu", weights_only=True)
    del stream
    with written_atomically(path) as temporary:
        torch.save(plain(checkpoint) | {"genesis": plain(dict(description))}, temporary)


def plain(value: Any) -> Any:
    """The value with numpy scalars turned into Python numbers, in dictionaries, lists and tuples alike."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return type(value)((plain(key), plain(entry)) for key, entry in value.items())
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(plain(entry) for entry in value)
    return value


def versions() -> dict[str, str]:
    """Versions of the packages that made a checkpoint."""
    return {name: version(name) for name in ("nnunet-genesis", "nnunetv2", "torch", "numpy")}


def _without_prefixes(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _numpy_scalars() -> list[Any]:
    """What torch.load must allow for numpy scalars, also those written by numpy 1 (numpy.core)."""
    core = getattr(np, "_core", None) or np.core
    scalar = core.multiarray.scalar
    kinds = [type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")]
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]


def _named_global(reason: str) -> str:
    words = [word.strip(".`") for word in reason.split() if "." in word.strip(".`")]
    after = reason.split("GLOBAL ", 1)
    return after[1].split()[0] if len(after) == 2 else (words[0] if words else "unknown")
