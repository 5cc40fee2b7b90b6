"""Two networks' descriptions → where the target, as a whole, cannot compute what the source computes, in words."""

from __future__ import annotations

from collections.abc import Iterator

from nnunet_genesis.errors import TransferError
from nnunet_genesis.networks.layout import Layout
from nnunet_genesis.networks.wording import axes_where, times


def differences(source: Layout, target: Layout) -> Iterator[tuple[str, str]]:
    """What is not preserved, and the part where; what single convolutions lose is not listed here."""
    if source.operations != target.operations:
        gone, new = set(source.operations) - set(target.operations), set(target.operations) - set(source.operations)
        change = " → ".join(" | ".join(sorted(found)) or "none" for found in (gone, new))
        yield f"other functions than in the checkpoint: {change}", "norms and activations"
    if source.axes != target.axes:
        text = "2D networks norm slice by slice, 3D ones the whole patch: the same for features constant along z, for "
        yield text + "others slice by slice up to the first norm", f"{source.axes}D to {target.axes}D"
    shared = min(len(source.sampling), len(target.sampling))
    if len(target.sampling) > shared:
        text = "has no counterpart: the features of the stages before it are as they were, and the decoder at stage "
        yield text + f"{shared - 1} starts by passing them on, normalised", f"encoder stage {shared}"
    if len(source.sampling) > shared:
        text = "is the deepest here: the encoder's features are as they were, and the decoder reads them where the "
        yield text + "checkpoint's reads what its deeper stages made of them", f"encoder stage {shared - 1}"
    for level in range(shared):
        yield from _of_stage(source, target, level)


def refuse_other_family(source: str, target: str) -> None:
    """Stop where the encoders' blocks compute different things.

    Args:
        source: Kind of the checkpoint's blocks.
        target: The same of the target's.

    Raises:
        TransferError: Names both.
    """
    if source != target:
        planning = "nnUNetv2_plan_experiment -pl, or nnunet_genesis plan --template genesis_chest_ct for a UNet3D"
        layers, transformer = "convolutions", ""
        if "Primus" in source + target:
            layers, transformer = "layers", ", or --network for a Primus"
        raise TransferError(
            f"The checkpoint holds a {source}, the target's plans ask for a {target}: {layers} of the one have no "
            "counterpart in the blocks of the other. Use a checkpoint of the target's network class, or plan the "
            f"target with the checkpoint's ({planning}{transformer})."
        )


def resampled(source: Layout, target: Layout) -> list[str]:
    """The stages that work at another resolution than their counterpart."""
    pairs = enumerate(zip(source.sampling, target.sampling, strict=False))
    return [
        f"encoder stage {level} works on an image down-sampled {times(here)}, in the checkpoint {times(there)}"
        for level, (there, here) in pairs
        if here != there
    ]


def _of_stage(source: Layout, target: Layout, level: int) -> Iterator[tuple[str, str]]:
    strides = [_stride(layout, level) for layout in (source, target)]
    if strides[0] != strides[1]:
        axes = axes_where(a != b for a, b in zip(*strides, strict=True))
        pooling = source.pooling or target.pooling
        same = f"other windows of {pooling} pooling" if pooling else "before the norm, the same at common positions"
        text = f"another stride along {axes}: {same}; exact for images constant along {axes}, but for the padding at "
        yield text + "its ends", f"encoder stage {level}"
    for side, part in (("encoder", f"encoder stage {level}"), ("decoder", f"decoder at stage {level}")):
        before, now = source.blocks(side, level), target.blocks(side, level)
        if 0 < now < before:
            yield f"{now} of the checkpoint's {before} blocks: the features of these are as they were", part
        if now > before > 0:
            text = f"{now} blocks for the checkpoint's {before}: the others start by passing features on, a plain one "
            yield text + "normalised, a residual one through another activation", part


def _stride(layout: Layout, level: int) -> tuple[int, ...]:
    before = layout.sampling[level - 1] if level else (1,) * len(layout.sampling[level])
    return tuple(now // then for now, then in zip(layout.sampling[level], before, strict=True))
