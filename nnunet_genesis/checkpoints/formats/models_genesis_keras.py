"""Layers of the original Models Genesis 3D U-Net in Keras → names and shapes of the same network in PyTorch."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from nnunet_genesis.errors import CheckpointError

MARK = "depth_0_conv/kernel"
"""Name of the weight that reads the image."""

BLOCKS = ("down_tr64", "down_tr128", "down_tr256", "down_tr512", "up_tr256", "up_tr128", "up_tr64")
"""Those of the network in PyTorch, of two convolutions each: layers of Keras are numbered through."""
ENCODER_LAYERS = 8
LAYER = re.compile(r"depth_(\d{1,2})_(conv|bn)/(\w+)")
UP = re.compile(r"conv3d_transpose(?:_(\d{1,6}))?/(kernel|bias)")
NAMES = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias",
         "moving_mean": "running_mean", "moving_variance": "running_var"}  # fmt: skip

KIND = "Models Genesis (original 3D U-Net, Keras)"
DIFFERENCES = (
    "Keras adds 0.001 to the variance that a norm divides by, and normalises by moving statistics when it predicts; "
    "as in the PyTorch file of Models Genesis, it is 0.00001 and the statistics of the batch here"
)
REPEATS = "its decoder up-samples by repetition, with which the transposed convolutions start"


def is_keras(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether these are arrays of that network."""
    return MARK in weights


def to_original(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Rename and transpose.

    Args:
        weights: `depth_0_conv/kernel` (x, y, z, in, out), `depth_0_bn/gamma`, …; the head has a name of its own.

    Returns:
        `down_tr64.ops.0.conv1.weight` (out, in, x, y, z), … ; and notes on what differs or is left out.

    Raises:
        CheckpointError: There are other convolutions.
    """
    found: dict[str, torch.Tensor] = {}
    others, ups = list[str](), dict[int, dict[str, torch.Tensor]]()
    for name, array in weights.items():
        value = array.permute(4, 3, 0, 1, 2).contiguous() if array.ndim == 5 else array
        if (layer := LAYER.fullmatch(name)) and int(layer[1]) < 2 * len(BLOCKS) and layer[3] in NAMES:
            number = int(layer[1])
            found[f"{BLOCKS[number // 2]}.ops.{number % 2}.{layer[2]}1.{NAMES[layer[3]]}"] = value
        elif up := UP.fullmatch(name):
            ups.setdefault(int(up[1] or 0), {})[NAMES[up[2]]] = value
        elif array.ndim == 5 and array.shape[:3] == (1, 1, 1) and name.endswith("/kernel"):
            bias = name.replace("/kernel", "/bias")
            parts = {"weight": value} | ({"bias": weights[bias]} if bias in weights else {})
            if "out_tr.final_conv.weight" in found:
                raise CheckpointError(f"holds a further head, {name[:100]}; the original 3D U-Net of Keras has one.")
            found |= {f"out_tr.final_conv.{part}": tensor for part, tensor in parts.items()}
        elif array.ndim == 5:
            raise CheckpointError(f"holds {name[:100]}, which the original 3D U-Net of Keras does not have.")
        elif name.replace("/bias", "/kernel") not in weights or weights[name.replace("/bias", "/kernel")].ndim != 5:
            others.append(name)
    notes = (DIFFERENCES, *_up_samplings(found, ups))
    if others:
        notes += (f"{len(others)} tensors belong to neither and are not used, e.g. {others[0][:100]}",)
    return found, notes


def _up_samplings(found: dict[str, torch.Tensor], ups: Mapping[int, Mapping[str, torch.Tensor]]) -> tuple[str, ...]:
    """Enter the decoder's up-samplings: weights of the file, or repetition, which has none; notes on these."""
    blocks = [block for block in BLOCKS[ENCODER_LAYERS // 2 :] if f"{block}.ops.0.conv1.weight" in found]
    if ups and len(ups) != len(blocks):
        raise CheckpointError(f"has {len(ups)} transposed convolutions for {len(blocks)} stages of a decoder.")
    for block, (_, given) in zip(blocks, sorted(ups.items()), strict=False):
        found |= {f"{block}.up_conv.{part}": tensor for part, tensor in given.items()}
    for block in [] if ups else blocks:
        before = BLOCKS[BLOCKS.index(block) - 1]
        width, reads = found[last].shape[:2] if (last := f"{before}.ops.1.conv1.weight") in found else (0, 0)
        if width > 2 * reads:  # so that what is made here is no larger than what the file holds
            raise CheckpointError("has the layers of the original 3D U-Net of Keras, but not its widths.")
        repeats = torch.eye(width).reshape(width, width, 1, 1, 1).repeat(1, 1, 2, 2, 2)
        found |= {f"{block}.up_conv.weight": repeats, f"{block}.up_conv.bias": torch.zeros(width)}
    return () if ups or not blocks else (REPEATS,)
