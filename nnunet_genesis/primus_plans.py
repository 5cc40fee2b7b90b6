"""Plans for a U-Net → plans for nnU-Net's transformer Primus, and the trainer with which nnU-Net itself builds one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from nnunet_genesis.errors import DatasetError
from nnunet_genesis.nnunet_dataset import configuration_of

CLASSES = {"": "Primus", "v2": "PrimusV2", "v3": "PrimusV3"}
NAMES = tuple(f"primus{version}_{size}" for version in CLASSES for size in "sbml")
"""Networks that `plan --network` takes: `primus_s` … `primusv3_l`."""

DROP_PATH = 0.2
"""Of nnU-Net's trainers: share of the steps in which the last block is passed over, falling to 0 at the first."""


def architecture(name: str, patch: list[int], drop_path: float = DROP_PATH) -> dict[str, Any]:
    """The architecture block of the network that nnU-Net's trainer of that size builds.

    Args:
        name: One of `NAMES`.
        patch: Voxels along each axis, multiples of 8.
        drop_path: Stochastic depth, 0 to below 1.
    """
    from nnunet_genesis.primus import PATCH_EMBED, WIDTHS

    version, size = name.removeprefix("primus").split("_")
    width, depth, heads = WIDTHS[size]
    arguments = {
        "embed_dim": width,
        "eva_depth": depth,
        "eva_numheads": heads,
        "patch_embed_size": [PATCH_EMBED] * 3,
        "input_shape": list(patch),
        "drop_path_rate": drop_path,
        "scale_attn_inner": True,
        "init_values": 0.1,
    }
    kind = f"nnunet_genesis.primus.{CLASSES[version]}"
    return {"network_class_name": kind, "arch_kwargs": arguments, "_kw_requires_import": []}


def with_primus(plans: Mapping[str, Any], name: str, drop_path: float = DROP_PATH) -> tuple[dict[str, Any], list[str]]:
    """Plans whose 3D configurations have a Primus in place of their network, and what else changed, in words.

    Batch size and all that preprocessing reads stay, so that the preprocessed volumes serve both. Patches are rounded
    up to multiples of 8: no axis sees less than before. 2D configurations are left out.

    Args:
        plans: Plans that were checked.
        name: One of `NAMES`.
        drop_path: Stochastic depth, 0 to below 1.

    Raises:
        DatasetError: No configuration is 3D.
    """
    from nnunet_genesis.primus import PATCH_EMBED

    changed, notes = copy.deepcopy(dict(plans)), []
    blocks = changed["configurations"]
    for configuration, block in plans["configurations"].items():
        patch = [int(edge) for edge in configuration_of(plans, configuration).patch_size]
        if len(patch) != 3:
            del blocks[configuration]
            notes.append(f"{configuration} is left out: a Primus is 3D only.")
            continue
        if "inherits_from" in block and not {"patch_size", "architecture"} & block.keys():
            continue
        rounded = [-(-edge // PATCH_EMBED) * PATCH_EMBED for edge in patch]
        network = architecture(name, rounded, drop_path)
        blocks[configuration] |= {"patch_size": rounded, "architecture": network}
        if rounded != patch:
            was, now = (" x ".join(map(str, edges)) for edges in (patch, rounded))
            notes.append(
                f"{configuration}: the patch of {was} becomes {now}, as it must be divisible by {PATCH_EMBED}."
            )
    if not blocks:
        raise DatasetError(
            f"The plans {plans.get('plans_name')} have 2D configurations only, and a Primus is 3D only. Plan without "
            "--network."
        )
    return changed, notes


def stock_trainer(plans: Mapping[str, Any], configuration: str) -> str | None:
    """Name of nnU-Net's trainer that builds a Primus of this class, width, depth and heads; None: there is none."""
    from nnunet_genesis.primus import WIDTHS

    manager = configuration_of(plans, configuration)
    kind = str(manager.network_arch_class_name).rpartition(".")[2]
    arguments = manager.network_arch_init_kwargs
    shape = tuple(arguments.get(key) for key in ("embed_dim", "eva_depth", "eva_numheads"))
    sizes = [size.upper() for size, widths in WIDTHS.items() if widths == shape]
    return f"nnUNet_{kind}{'_' if kind == 'Primus' else ''}{sizes[0]}_Trainer" if sizes else None
