"""An architecture block from anywhere → nothing, or one line on the network that is not run or has no bounds.

The same rule holds for plans and for checkpoints; small files may ask for networks of millions of layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nnunet_genesis.errors import DatasetError, printable
from nnunet_genesis.named_classes import resolved

MOST_STAGES = 20
MOST_LAYERS = 512
"""Convolutions or residual blocks of a whole network."""
MOST_PARAMETERS = 2_000_000_000
"""Constants for each token included."""
LARGEST = 100_000
"""Number among the arguments of a network."""
COUNTS = ("features_per_stage", "kernel_sizes", "strides")
"""Arguments of networks that hold whole numbers and nothing else, as do those that begin with "n_"."""
OF_PRIMUS = {"eva_depth": 100, "eva_numheads": 1_000, "embed_dim": 20_000, "num_register_tokens": 1_000,
             "input_shape": 2_000, "patch_embed_size": 2_000, "depth_per_level": MOST_STAGES,
             "ch_per_level": 20_000}  # fmt: skip
"""Arguments of a transformer that hold whole numbers → the largest."""
MOST_MLP_RATIO = 16
"""Width in the blocks of a transformer, in widths of its tokens: 8/3 in a Primus, 4 in ViT (arXiv 2010.11929)."""
MAY_BE_NONE = ("num_register_tokens",)
"""Those of them that may be 0."""
BOUNDS = OF_PRIMUS | {"n_stages": MOST_STAGES, "mlp_ratio": MOST_MLP_RATIO}
ADVICE = "Correct the file, or plan again."


def check_architecture(architecture: Any, where: str, channels: int = 1, classes: int = 2) -> None:
    """Refuse an architecture block that names foreign classes or makes no network of reasonable size.

    Nothing is built but on torch's meta device, where tensors take no memory.

    Raises:
        DatasetError: Says what is wrong.
    """
    import torch

    try:
        network, values = resolved(architecture)
    except DatasetError as error:
        raise DatasetError(f"{where} {error}. {ADVICE}") from None
    if wrong := wrong_size(values):
        raise DatasetError(f"{where} {wrong}. {ADVICE}")
    try:
        with torch.device("meta"):
            built = network(input_channels=channels, num_classes=classes, **{**values, "deep_supervision": True})
        # a transformer keeps sines and cosines for all of its tokens
        numbers = sum(tensor.numel() for tensor in (*built.parameters(), *built.buffers()))
    except Exception as error:  # whatever the constructor of any network raises
        why = printable(f"{type(error).__name__}: {error}", 200)
        raise DatasetError(f"{where} describes a network that cannot be built ({why}). {ADVICE}") from None
    if numbers > MOST_PARAMETERS:
        much = f"{numbers:,} parameters, more than {MOST_PARAMETERS:,}"
        raise DatasetError(f"{where} describes a network of {much}. {ADVICE}")


def wrong_size(arguments: Mapping[str, Any]) -> str:
    """What among the arguments of a network would take memory or time without bounds; empty if nothing."""
    layers = 0
    for key, value in arguments.items():
        counts, entries = str(key).startswith("n_"), list(_flat(value))
        most = BOUNDS.get(key, MOST_LAYERS if counts else LARGEST)
        has = f'has "{printable(key, 60)}": {printable(value, 60)}, where'
        if len(entries) > 10 * MOST_STAGES or any(_exceeds(entry, most) for entry in entries):
            return f"{has} numbers are at most {most:,}, and those of at most {MOST_STAGES} stages"
        least = 0 if key in MAY_BE_NONE else 1
        whole = all(is_whole(entry, most, least) for entry in entries)
        if (key in COUNTS or key in OF_PRIMUS or counts) and not whole:
            return f"{has} whole numbers from {least} to {most:,} are needed"
        if counts and key != "n_stages":
            layers += sum(entries) * (1 if isinstance(value, list | tuple) else MOST_STAGES)
    return f"has more than {MOST_LAYERS} convolutions or blocks" if layers > MOST_LAYERS else ""


def is_whole(value: Any, most: int, least: int = 1) -> bool:
    """Whether it is an integer from `least` to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _flat(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _flat(entry)
    elif isinstance(value, Mapping):
        yield from _flat(list(value.values()))
    else:
        yield value


def _exceeds(entry: Any, most: int) -> bool:
    return isinstance(entry, int | float) and not abs(entry) <= most
