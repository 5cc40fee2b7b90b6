"""Names in plans → the classes and functions they stand for: nnU-Net's, its networks' and torch.nn's, no others.

nnU-Net imports and calls whatever a plans file names. Plans come from other people too, so every name is looked up here
first, before anything is built.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

from nnunet_genesis.errors import DatasetError, printable, reason

OURS = (
    "nnunet_genesis.unet3d.UNet3D",
    *(f"nnunet_genesis.primus.{kind}" for kind in ("Primus", "PrimusV2", "PrimusV3")),
)
"""Networks of this package."""
PRIMUS = "nnunet_genesis.primus."
NETWORK = re.compile(r"(dynamic_network_architectures\.architectures\.[a-z0-9_]+)\.([A-Z]\w*)", re.ASCII)
BLOCK = re.compile(r"(dynamic_network_architectures\.building_blocks\.[a-z0-9_]+)\.([A-Z]\w*)", re.ASCII)
LAYER = re.compile(r"torch\.nn\.(?:modules\.[a-z]+\.)?([A-Z]\w*)", re.ASCII)
"""Paths under which networks, their building blocks and PyTorch's layers are found."""

IDENTITY = "torch.nn.modules.linear"
KINDS = {
    "conv_op": ("torch.nn.modules.conv",),
    "norm_op": (*(f"torch.nn.modules.{kind}" for kind in ("batchnorm", "instancenorm", "normalization")), IDENTITY),
    "nonlin": ("torch.nn.modules.activation", IDENTITY),
    "dropout_op": ("torch.nn.modules.dropout", IDENTITY),
}
"""Arguments of a network that name a class → modules that define what they may name."""
OTHER_KINDS = (*(place for kind in KINDS.values() for place in kind), "dynamic_network_architectures.building_blocks.")

FOUND_BY_NNUNET = {
    "image_reader_writer": ("imageio", "imageio.base_reader_writer.BaseReaderWriter"),
    "label_manager": ("utilities.label_handling", "utilities.label_handling.label_handling.LabelManager"),
    "preprocessor_name": ("preprocessing", "preprocessing.preprocessors.default_preprocessor.DefaultPreprocessor"),
    "normalization_schemes": (
        "preprocessing.normalization",
        "preprocessing.normalization.default_normalization_schemes.ImageNormalization",
    ),
    "resampling_fn_data": ("preprocessing.resampling", ""),
    "resampling_fn_seg": ("preprocessing.resampling", ""),
    "resampling_fn_probabilities": ("preprocessing.resampling", ""),
}
"""Keys of plans → where nnU-Net looks for what they name, and what it must be: a class of that base, or a function."""


def network_class(name: Any) -> type:
    """The class of a network: one of `dynamic_network_architectures`, or one of `OURS`.

    Raises:
        DatasetError: It is none of them.
    """
    if isinstance(name, str) and name in OURS:
        module, kind = name.rsplit(".", 1)
        ours: type = getattr(importlib.import_module(module), kind)
        return ours
    match = NETWORK.fullmatch(name) if isinstance(name, str) else None
    found: Any = _attribute(*match.groups()) or _moved(match[2]) if match else None
    if not _is_module(found, "dynamic_network_architectures."):
        raise DatasetError(
            f"names the network {printable(name, 100)}, which is not run: only classes of "
            f"dynamic_network_architectures.architectures and {', '.join(OURS)} are"
        )
    return found


def names_primus(name: str) -> bool:
    """Whether plans name a transformer, one of those in `nnunet_genesis.primus`."""
    return name.startswith(PRIMUS)


def is_primus(network: object) -> bool:
    """Whether a network is a Primus, of this package or of the library that it comes from; imports neither."""
    library = "dynamic_network_architectures.architectures.primus"
    return any(kind.__module__ == library for kind in type(network).__mro__)


def layer_class(name: Any, argument: str = "") -> type:
    """The class of a layer: one of `torch.nn`, or a building block of `dynamic_network_architectures`.

    Args:
        name: Its path, as plans spell it.
        argument: The argument of the network that takes it. Those in `KINDS` take their kind of layer only: other
            modules of `torch.nn`, e.g. transformers, build networks of their own.

    Raises:
        DatasetError: It is none of them.
    """
    found: Any = None
    if isinstance(name, str) and (match := LAYER.fullmatch(name)):
        found = _attribute("torch.nn", match[1])
    elif isinstance(name, str) and (match := BLOCK.fullmatch(name)):
        found = _attribute(*match.groups())
    if not _is_module(found, *KINDS.get(argument, OTHER_KINDS)):
        role = f' as its "{printable(argument, 30)}"' if argument else ""
        raise DatasetError(
            f"names {printable(name, 100)}{role}, which is no layer of torch.nn and no block of "
            "dynamic_network_architectures" + (" for it" if argument in KINDS else "")
        )
    return found


def resolved(architecture: Any) -> tuple[type, dict[str, Any]]:
    """The class and the arguments of the network that an architecture block describes.

    Args:
        architecture: The block "architecture" of a configuration: "network_class_name", "arch_kwargs", and
            "_kw_requires_import", which lists the arguments that are names of classes.

    Raises:
        DatasetError: The block is incomplete, or names something that is not run.
    """
    try:
        kind, values = architecture["network_class_name"], dict(architecture["arch_kwargs"])
        keys = list(architecture["_kw_requires_import"])
        named = {key: values[key] for key in keys if values[key] is not None}
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"does not describe a network completely ({reason(error, 80)})") from None
    return network_class(kind), values | {key: layer_class(name, key) for key, name in named.items()}


def check_names(block: Mapping[str, Any]) -> None:
    """Look up what nnU-Net would look up in its own folders: readers, normalisation, resampling, and so on.

    Args:
        block: Plans, or one of their configurations.

    Raises:
        DatasetError: There is no such thing in nnU-Net, or it is of another kind.
    """
    for key in FOUND_BY_NNUNET.keys() & block.keys():
        for name in block[key] if key == "normalization_schemes" else [block[key]]:
            if not isinstance(name, str) or not _known_to_nnunet(key, name):
                raise DatasetError(f'names {printable(name, 100)} as "{key}", which nnU-Net does not have')


@lru_cache(maxsize=256)
def _known_to_nnunet(key: str, name: str) -> bool:
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    place, base = FOUND_BY_NNUNET[key]
    if not name.isidentifier():
        return False
    folder = Path(nnunetv2.__path__[0], *place.split("."))
    found = recursive_find_python_class(str(folder), name, f"nnunetv2.{place}")
    if not base:  # functions of the file that looks them up take a folder to import from
        written = str(getattr(found, "__module__", ""))
        return inspect.isfunction(found) and written.startswith(f"nnunetv2.{place}.") and not written.endswith(".utils")
    module, kind = f"nnunetv2.{base}".rsplit(".", 1)
    return inspect.isclass(found) and issubclass(found, getattr(importlib.import_module(module), kind))


def _attribute(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return None


def _moved(name: str) -> Any:
    """A network of that name in another file of the package, as nnU-Net finds those of plans of 2023."""
    import dynamic_network_architectures
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = Path(dynamic_network_architectures.__path__[0], "architectures")
    return recursive_find_python_class(str(folder), name, "dynamic_network_architectures.architectures")


def _is_module(found: Any, *places: str) -> TypeGuard[type]:
    from torch import nn

    return inspect.isclass(found) and issubclass(found, nn.Module) and found.__module__.startswith(places)
