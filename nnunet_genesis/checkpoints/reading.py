"""A file of weights of any known kind → what is in it, nothing executed, or one line on what is wrong with it."""

from __future__ import annotations

import codecs
import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from nnunet_genesis.checkpoints.bounds import refuse_packed_archive, refuse_repetition
from nnunet_genesis.checkpoints.detect import detect
from nnunet_genesis.checkpoints.foreign import refuse_other_kinds
from nnunet_genesis.checkpoints.formats import published
from nnunet_genesis.checkpoints.hdf5 import is_hdf5, read_hdf5
from nnunet_genesis.checkpoints.names import without_wrappers
from nnunet_genesis.checkpoints.pickle_scan import RefusedPickleError, WholeObjectError, scan
from nnunet_genesis.checkpoints.safe_numpy import stand_ins
from nnunet_genesis.errors import CheckpointError, printable, reason
from nnunet_genesis.networks.pretrained import PretrainedNetwork

HARMLESS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": codecs.encode,
    **{name: maker for maker, name in stand_ins()},
}
"""What a file of plans of nnU-Net v1 may ask for: containers and numbers."""

OF_TORCH = {
    *HARMLESS,
    *(f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "parameter")),
    *("torch.Size", "torch.device", "torch.serialization._get_layout", "builtins.set", "builtins.complex"),
}
"""What a checkpoint may ask for; torch lets through more, e.g. a bytearray of any length."""

LEGACY_PICKLES = 5
"""In a file of torch before 1.6: magic number, version, machine, content, names of storages; then these."""

ONLY = "Only files of tensors and plain types are read."


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU; tensors and plain types only.

    nnU-Net's own files also hold numpy scalars (log, best score), which are let through, as are arrays of numbers.

    Raises:
        CheckpointError: The file is missing, cut off, damaged, no checkpoint, asks for code to be run on loading, or
            for memory beyond its size.
    """
    refuse_other_kinds(path)
    size = path.stat().st_size
    try:
        _scan_all(path, size)
        with torch.serialization.safe_globals(stand_ins()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except WholeObjectError as error:
        raise CheckpointError(
            f"{path} is a whole object in Python ({printable(error, 150)}), as torch.save(model) writes it; reading it "
            "would run code. Save its weights where that code is known: torch.save(model.state_dict(), FILE)."
        ) from None
    except RefusedPickleError as error:
        raise CheckpointError(f"{path} is refused: {printable(error, 200)}. {ONLY}") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} {_refusal(reason(error, 1000))}") from None
    except Exception as error:  # whatever torch raises for damaged and foreign files
        raise CheckpointError(
            f"{path} cannot be read; it is cut off or no checkpoint ({reason(error, 80)}). Copy or download it again."
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint.")
    _refuse_damage(path)
    with _named(path):
        refuse_repetition(content, size)
    return content


def _scan_all(path: Path, size: int) -> None:
    """Follow all pickles in a file before torch loads them.

    Raises:
        CheckpointError, RefusedPickleError: They are refused.
        Exception: Whatever else is wrong with them.
    """
    if not _is_zip(path):
        with path.open("rb") as stream:
            for _ in range(LEGACY_PICKLES):
                scan(stream, size, OF_TORCH)
        return
    refuse_packed_archive(path)
    pickled = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")  # the one that torch.load takes
    scan(io.BytesIO(pickled), size, OF_TORCH)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's name before a message."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None


def _refusal(said: str) -> str:
    """What torch says of a pickle that it does not read, in the user's terms."""
    if named := re.search(r"GLOBAL (\S+)", said):
        return f"is refused: reading it would run code that it names ({named[1]}). {ONLY}"
    if foreign := re.search(r"but got <class '([\w.]+)'>", said):
        return f"is refused: it holds a {foreign[1]}. {ONLY}"
    return "is not a checkpoint of PyTorch. Name a .pth, .pt, .model or .safetensors file."


def _refuse_damage(path: Path) -> None:
    """Compare the checksums in a zip archive, which torch.load does not; older files have none.

    Raises:
        CheckpointError: Bytes have changed since the file was written.
    """
    if not _is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            # all are 0 where torch.serialization.set_crc32_options was off
            damaged = archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None
    except zipfile.BadZipFile as error:
        damaged = str(error)
    if damaged:
        raise CheckpointError(
            f"{path} was damaged or altered after it was written: a checksum is wrong ({damaged[:100]}). Copy or "
            "download it again."
        )


def read_content(path: Path) -> dict[str, Any]:
    """Tensors and plain values of a checkpoint or a file of Keras or safetensors, with what `card` wrote beside it.

    Raises:
        CheckpointError: As `read_checkpoint`.
    """
    if is_hdf5(path):
        return read_hdf5(path)
    if not _is_safetensors(path):
        return read_checkpoint(path)
    tensors, config = _read_safetensors(path), published.config_beside(path)
    return tensors if config is None else published.content_of(path, tensors, config)


def read_pretrained(path: Path) -> PretrainedNetwork:
    """Read a checkpoint of any known kind, told by its content, without running code from it.

    Known are checkpoints of nnU-Net v2, nnU-Net v1 (with or without the `.pkl` of plans beside it), nnssl, the 3D U-Net
    of Models Genesis and SuPreM, state dicts of these networks, also as safetensors, and what `card` wrote. A file may
    ask for memory and time of its size only.

    Raises:
        CheckpointError: The file is missing, cut off, unsafe, of no known kind, or has weights that are not finite.
    """
    content = read_content(path)
    beside = path.with_name(path.name + ".pkl")
    sidecar = read_plain_pickle(beside) if beside.is_file() else None
    with _named(path):
        source = detect(content, sidecar)
    for name, tensor in source.weights.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{path} holds NaN or infinite values in {name}: its training went wrong. Take an earlier checkpoint."
            )
    facts = content.get("genesis")
    return replace(_printable(source), cases=facts.get("cases") if isinstance(facts, Mapping) else None)


def _printable(source: PretrainedNetwork) -> PretrainedNetwork:
    """Texts of the file as lines that a terminal shows."""

    def lines(texts: Sequence[str] | None) -> list[str] | None:
        return None if texts is None else [printable(text, 100) for text in texts]

    return replace(
        source,
        format=printable(source.format, 150),
        notes=tuple(printable(note, 500) for note in source.notes),
        channels=lines(source.channels),
        outputs=source.outputs and replace(source.outputs, names=lines(source.outputs.names) or []),
        normalisation=lines(source.normalisation),
    )


def read_plain_pickle(path: Path) -> dict[str, Any]:
    """Load a pickle of plain values and numpy arrays; anything else in it is refused before it is made.

    Raises:
        CheckpointError: The file asks for something else, or is no pickle of a dictionary.
    """
    data = path.read_bytes()
    try:
        scan(io.BytesIO(data), len(data), HARMLESS)
        content = _PlainUnpickler(io.BytesIO(data)).load()
    except RefusedPickleError as error:
        raise CheckpointError(
            f"{path} is refused: {_why(error)}. The checkpoint can be read without it: move it away."
        ) from None
    except Exception as error:  # pickles that are damaged or made up raise anything
        raise CheckpointError(f"{path} cannot be read; it is cut off or no pickle ({reason(error, 100)}).") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not the plans of a checkpoint.")
    with _named(path):
        refuse_repetition(content, len(data))
    return content


def _why(error: RefusedPickleError) -> str:
    whole = isinstance(error, WholeObjectError)
    return f"reading it would run code that it names ({printable(error, 150)})" if whole else printable(error, 200)


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return HARMLESS[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not known") from None


def _is_zip(path: Path) -> bool:
    """As torch tells it."""
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _is_safetensors(path: Path) -> bool:
    """Eight bytes of length, then JSON: neither a zip archive nor a pickle starts so."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, Any]:
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
            f"{', '.join(printable(key, 60) for key in list(checkpoint)[:6]) or 'nothing'})."
        )
    return {without_wrappers(name): tensor for name, tensor in weights.items()}
