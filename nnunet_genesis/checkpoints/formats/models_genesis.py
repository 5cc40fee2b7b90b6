"""State dict of the original Models Genesis 3D U-Net (`Genesis_Chest_CT.pt`) → names of `unet3d.UNet3D`."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from nnunet_genesis.errors import CheckpointError

MARK = "down_tr64."
"""Start of some names in every such state dict."""

PLACE = {
    **{f"down_tr{64 << stage}": f"encoder.stages.{stage}.0" for stage in range(4)},
    **{f"up_tr{256 >> stage}": f"decoder.stages.{stage}" for stage in range(3)},
}
LAYER = re.compile(r"((?:down|up)_tr\d+)\.ops\.([01])\.(conv|bn)1\.(\w+)")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


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
            raise CheckpointError(f"holds {name}, which the original Models Genesis 3D U-Net does not have.")
    return found
