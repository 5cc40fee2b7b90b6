"""A checkpoint that was trained on volumes with axes x, y, z → the same function of volumes with axes z, y, x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nnunet_genesis.checkpoints.architectures import PER_AXIS
from nnunet_genesis.errors import TransferError, printable
from nnunet_genesis.named_classes import names_primus
from nnunet_genesis.networks.pretrained import AXES_OF_NNUNET, AXES_REVERSED, PretrainedNetwork

ORDERS = (AXES_REVERSED, AXES_OF_NNUNET)


def to_zyx(source: PretrainedNetwork, axes: str | None = None) -> PretrainedNetwork:
    """Reverse kernels, strides, patch and spacing of a network whose volumes have axes x, y, z.

    Its features of a volume are then, transposed, those that it had of the transposed volume, up to rounding.

    Args:
        source: A checkpoint; not changed, and its tensors are not copied.
        axes: Order of the axes of the volumes that it was trained on, "xyz" or "zyx"; None for what is known of its
            kind of file.

    Raises:
        TransferError: The order has no such name, or is to be reversed in a Primus.
    """
    if axes not in (None, *ORDERS):
        raise TransferError(f"Axes are in the order {' or '.join(ORDERS)}, not {printable(axes, 40)}.")
    if (axes or source.axes) == AXES_OF_NNUNET:
        return replace(source, axes=AXES_OF_NNUNET)
    if names_primus(str(source.architecture["network_class_name"])):
        raise TransferError("--axes is for kernels of U-Nets: those of a Primus, and its positions, are not reversed.")
    arguments: dict[str, Any] = dict(source.architecture["arch_kwargs"])
    for key in [key for key in PER_AXIS if key in arguments]:
        arguments[key] = [entry if isinstance(entry, int) else _reversed(entry) for entry in arguments[key]]
    how = "--axes" if axes else "kind of file"
    note = f"its volumes have axes x, y, z ({how}), those of nnU-Net z, y, x: kernels and strides were reversed"
    return replace(
        source,
        weights={
            # all but kernels are vectors
            name: tensor.permute(0, 1, *range(tensor.ndim - 1, 1, -1)) if tensor.ndim > 1 else tensor
            for name, tensor in source.weights.items()
        },
        architecture={**source.architecture, "arch_kwargs": arguments},
        patch_size=source.patch_size and _reversed(source.patch_size),
        spacing=source.spacing and _reversed(source.spacing),
        notes=(*source.notes, note),
        axes=AXES_OF_NNUNET,
    )


def _reversed(entries: Sequence[Any]) -> list[Any]:
    return list(reversed(entries))
