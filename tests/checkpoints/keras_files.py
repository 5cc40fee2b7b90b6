"""The original Models Genesis 3D U-Net as Keras lays it out in HDF5: layers by number, kernels with channels last."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import torch

from tests.checkpoints.replicas import Weights

ORDER = [f"{block}.ops.{number}" for block in ("down_tr64", "down_tr128", "down_tr256", "down_tr512", "up_tr256",
                                               "up_tr128", "up_tr64") for number in (0, 1)]  # fmt: skip
PARTS = {"kernel:0": "weight", "bias:0": "bias"}
STATISTICS = {
    "gamma:0": "weight",
    "beta:0": "bias",
    "moving_mean:0": "running_mean",
    "moving_variance:0": "running_var",
}


def channels_last(kernel: torch.Tensor) -> np.ndarray:
    """(out, in, x, y, z) → (x, y, z, in, out)."""
    return np.moveaxis(kernel.numpy(), (0, 1), (4, 3)).copy()


def write_keras(path: Path, weights: Weights, whole: bool = True, transposed: bool = False) -> Path:
    """Write weights with the names of the original in PyTorch; a whole model, or its weights alone.

    Args:
        path: The file.
        weights: From `replicas.original_unet3d`.
        whole: Whether as `model.save` writes it, which puts weights into a group, or as `model.save_weights`.
        transposed: Whether the decoder has transposed convolutions; without, they are left out.
    """
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = b"2.2.4"
        root = file.create_group("model_weights") if whole else file
        if whole:
            file.attrs["model_config"] = b'{"class_name": "Lambda", "config": {"function": ["4wAAAA==", null, null]}}'
            file.create_group("optimizer_weights")["iterations:0"] = np.int64(7)
        root.create_group("input_1")
        for number, place in enumerate(ORDER):
            for layer, parts, end in (("conv", PARTS, "conv1"), ("bn", STATISTICS, "bn1")):
                for part, name in parts.items():
                    tensor = weights[f"module.{place}.{end}.{name}"]
                    value = channels_last(tensor) if tensor.ndim == 5 else tensor.numpy()
                    root[f"depth_{number}_{layer}/depth_{number}_{layer}/{part}"] = value
            root.create_group(f"depth_{number}_relu")
        for number, block in enumerate(("up_tr256", "up_tr128", "up_tr64")) if transposed else ():
            for part, name in PARTS.items():
                tensor = weights[f"module.{block}.up_conv.{name}"]
                value = channels_last(tensor) if tensor.ndim == 5 else tensor.numpy()
                root[f"conv3d_transpose_{number + 9}/conv3d_transpose_{number + 9}/{part}"] = value
        for part, name in PARTS.items():
            tensor = weights[f"module.out_tr.final_conv.{name}"]
            value = channels_last(tensor) if tensor.ndim == 5 else tensor.numpy()
            root[f"conv3d_1/conv3d_1/{part}"] = value
    return path
