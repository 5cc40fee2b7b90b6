"""State dict of the original Models Genesis 3D U-Net, or SuPreM's around it → names of `unet3d.UNet3D`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from nnunet_genesis.errors import CheckpointError

MARK = "down_tr64."
"""Start of some names in every such state dict."""

WITHIN = "backbone."
"""Before these names in SuPreM's Universal_model (MrGiovanni/SuPreM), which has heads of its own beside the network."""

PLACE = {
    **{f"down_tr{64 << stage}": f"encoder.stages.{stage}.0" for stage in range(4)},
    **{f"up_tr{256 >> stage}": f"decoder.stages.{stage}" for stage in range(3)},
}
LAYER = re.compile(r"((?:down|up)_tr\d+)\.ops\.([01])\.(conv|bn)1\.(\w+)")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

CONTAINER = "net"
"""Key below which SuPreM keeps the state dict."""

GENESIS = "Models Genesis (original 3D U-Net)"
SUPREM = "SuPreM (3D U-Net of Models Genesis)"
TRAINED_ON = {
    GENESIS: "the published weights were trained on CT, HU -1000 to 1000 scaled to 0 to 1, patches of 64x64x32 with "
    "axes x, y, z",
    # defaults of its supervised_pretraining/train.py
    SUPREM: "the published weights were trained on CT, HU -175 to 250 scaled to 0 to 1, spacing 1.5 mm, patches of "
    "96x96x96 with axes x, y, z (RAS)",
}


def is_original(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether these are tensors of this network, alone or within SuPreM's model."""
    return any(name.startswith((MARK, WITHIN + MARK)) for name in weights)


def origin(weights: Mapping[str, torch.Tensor], content: Mapping[str, Any]) -> tuple[str, str]:
    """Who trained it, and on what, where the file tells; both use batch statistics in evaluation too."""
    if CONTAINER in content or any(name.startswith(WITHIN) for name in weights):
        return SUPREM, TRAINED_ON[SUPREM]
    if any(name.startswith("out_tr.") for name in weights):
        return GENESIS, TRAINED_ON[GENESIS]
    return GENESIS, "it has no restoration head: whether Models Genesis or SuPreM trained it is unknown"


def without_heads_of_suprem(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The network within SuPreM's model, whose head is made anew for each organ and has no place in a U-Net."""
    own = {name.removeprefix(WITHIN): tensor for name, tensor in weights.items() if name.startswith(WITHIN)}
    return own or dict(weights)


def to_unet3d(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename, and leave out the running statistics, which the original network never uses.

    Args:
        weights: Original names without `module.`, e.g. `down_tr64.ops.0.conv1.weight` (32, 1, 3, 3, 3).

    Returns:
        One name per tensor; the restoration head becomes the segmentation head of full resolution.

    Raises:
        CheckpointError: There are other tensors.
    """
    found = {}
    for name, tensor in weights.items():
        if (layer := LAYER.fullmatch(name)) and layer[1] in PLACE:
            if layer[4] not in STATISTICS:
                kind = "conv" if layer[3] == "conv" else "norm"
                found[f"{PLACE[layer[1]]}.convs.{layer[2]}.{kind}.{layer[4]}"] = tensor
        elif up := re.fullmatch(r"(up_tr\d+)\.up_conv\.(weight|bias)", name):
            level = PLACE.get(up[1], "").removeprefix("decoder.stages.")
            found[f"decoder.transpconvs.{level}.{up[2]}"] = tensor
        elif head := re.fullmatch(r"out_tr\.final_conv\.(weight|bias)", name):
            found[f"decoder.seg_layers.2.{head[1]}"] = tensor
        else:
            raise CheckpointError(f"holds {name[:100]}, which the original Models Genesis 3D U-Net does not have.")
    return found
