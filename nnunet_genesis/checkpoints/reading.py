"""A file of weights of any known kind → what is in it, nothing executed, or one line on what is wrong with it."""

from __future__ import annotations

import codecs
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from nnunet_genesis.checkpoints.detect import detect
from nnunet_genesis.checkpoints.names import without_wrappers
from nnunet_genesis.checkpoints.safe_numpy import stand_ins
from nnunet_genesis.errors import CheckpointError, reason
from nnunet_genesis.networks.pretrained import PretrainedNetwork

HARMLESS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": codecs.encode,
    "__builtin__.bytes": bytes,  # what old protocols call it
    **{name: maker for maker, name in stand_ins()},
}
"""What a file of plans of nnU-Net v1 may ask for: containers and numbers."""

ENDINGS = (".pth", ".pt", ".model", ".safetensors")
"""Of checkpoints that are looked for in a folder."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU; tensors and plain types only.

    nnU-Net's own files also hold numpy scalars (log, best score), which are let through, as are arrays of numbers.

    Raises:
        CheckpointError: The file is missing, cut off, damaged, no checkpoint, or asks for code to be run on loading.
    """
    _refuse_other_kinds(path)
    try:
        with torch.serialization.safe_globals(stand_ins()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} {_refusal(reason(error, 1000))}") from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
            zipfile.BadZipFile) as error:  # fmt: skip
        raise CheckpointError(
            f"{path} cannot be read; it is cut off or no checkpoint ({reason(error, 80)}). Copy or download it again."
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint.")
    _refuse_damage(path)
    return content


def _refuse_other_kinds(path: Path) -> None:
    """Name what is often given in place of a checkpoint.

    Raises:
        CheckpointError: There is no file, or it is a folder, a Keras file or a model that nnU-Net packed.
    """
    if path.is_dir():
        inside = [found for pattern in ("*", "*/*") for found in path.glob(pattern) if found.suffix in ENDINGS]
        raise CheckpointError(f"{path} is a folder. {_choice(sorted(str(found) for found in inside))}")
    if not path.is_file():
        raise CheckpointError(f"The checkpoint {path} does not exist. Check the path.")
    with path.open("rb") as stream:
        if stream.read(4) == b"\x89HDF":
            raise CheckpointError(
                f"{path} is an HDF5 file (Keras). Only files of PyTorch and safetensors are read; Models Genesis is "
                "published as Genesis_Chest_CT.pt too."
            )
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                packed = sorted(name for name in archive.namelist() if name.endswith(".pth"))
        except zipfile.BadZipFile:
            return  # torch.load says so too
        if packed:
            raise CheckpointError(
                f"{path} is an archive, as of nnUNetv2_export_model_to_zip. Unpack it. {_choice(packed)}"
            )


def _choice(checkpoints: list[str]) -> str:
    """What to do next, with some of the checkpoints that were found."""
    if not checkpoints:
        return "Name a checkpoint; there is none in it."
    # every fold has two: the final ones say most
    shown = [name for name in checkpoints if name.endswith("checkpoint_final.pth")] or checkpoints
    more = f" (or one of {len(checkpoints) - 1} others)" if len(checkpoints) > 1 else ""
    return f"Name the checkpoint in it: {shown[0]}{more}."


def _refusal(said: str) -> str:
    """What torch says of a pickle that it does not read, in the user's terms."""
    only = "Only files of tensors and plain types are read."
    if "GLOBAL" in said or "Unsupported class" in said:
        return f"is refused: reading it would run code that it names ({_named_global(said)}). {only}"
    if foreign := re.search(r"but got <class '([\w.]+)'>", said):
        return f"is refused: it holds a {foreign[1]}. {only}"
    return "is not a checkpoint of PyTorch. Name a .pth, .pt, .model or .safetensors file."


def _refuse_damage(path: Path) -> None:
    """Compare the checksums in a zip archive, which torch.load does not; older files have none.

    Raises:
        CheckpointError: Bytes have changed since the file was written.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            # all are 0 where torch.serialization.set_crc32_options was off
            damaged = archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None
    except zipfile.BadZipFile as error:
        damaged = str(error)
    if damaged:
        raise CheckpointError(
            f"{path} was damaged or altered after it was written: a checksum is wrong ({damaged}). Copy or download it "
            "again."
        )


def read_pretrained(path: Path) -> PretrainedNetwork:
    """Read a checkpoint of any known kind, told by its content, without running code from it.

    Known are checkpoints of nnU-Net v2, nnU-Net v1 (with or without the `.pkl` of plans beside it), nnssl and the
    original Models Genesis 3D U-Net, and bare state dicts of these networks, also as safetensors.

    Raises:
        CheckpointError: The file is missing, cut off, unsafe, of no known kind, or has weights that are not finite.
    """
    content = _read_safetensors(path) if _is_safetensors(path) else read_checkpoint(path)
    beside = path.with_name(path.name + ".pkl")
    sidecar = read_plain_pickle(beside) if beside.is_file() else None
    try:
        source = detect(content, sidecar)
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None
    for name, tensor in source.weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(
                f"{path} holds NaN or infinite values in {name}: its training went wrong. Take an earlier checkpoint."
            )
    return source


def read_plain_pickle(path: Path) -> dict[str, Any]:
    """Load a pickle of plain values and numpy arrays; anything else in it is refused before it is made.

    Raises:
        CheckpointError: The file asks for something else, or is no pickle of a dictionary.
    """
    try:
        with path.open("rb") as stream:
            content = _PlainUnpickler(stream).load()
    except _ForeignGlobalError as error:
        raise CheckpointError(
            f"{path} is refused: reading it would run code that it names ({error}). The checkpoint can be read without "
            "it: move it away."
        ) from None
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, LookupError, TypeError, ValueError,
            MemoryError) as error:  # fmt: skip
        raise CheckpointError(f"{path} cannot be read; it is cut off or no pickle ({reason(error, 100)}).") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not the plans of a checkpoint.")
    return content


class _ForeignGlobalError(pickle.UnpicklingError):
    """A pickle names something that is not in `HARMLESS`."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in HARMLESS:
            raise _ForeignGlobalError(f"{module}.{name}")
        return HARMLESS[f"{module}.{name}"]


def _is_safetensors(path: Path) -> bool:
    """Eight bytes of length, then JSON: neither a zip archive nor a pickle starts so."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read; it is cut off or no safetensors file ({reason(error, 120)})."
        ) from None


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
    return {without_wrappers(name): tensor for name, tensor in weights.items()}


def _named_global(said: str) -> str:
    words = [word.strip(".`") for word in said.split() if "." in word.strip(".`")]
    after = said.split("GLOBAL ", 1)
    return after[1].split()[0] if len(after) == 2 else (words[0] if words else "unknown")
