"""A network → its description: stem, stages, blocks, convolutions with their norms, up-samplings, heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from nnunet_genesis.errors import TransferError
from nnunet_genesis.networks.tied_names import name_groups

HEADS = "segmentation heads"
STEM = "stem"
AXES = 3
"""Every network is described with three spatial axes; a 2D one has kernels and strides 1 along the first."""

ASIDE = ("inplace", "momentum", "num_features", "num_channels", "normalized_shape")
"""Constants of norms and activations that do not change what a trained layer computes, or are its width."""


class Place(NamedTuple):
    """Where a convolution sits. Two convolutions of equal place in two networks are counterparts.

    `side` is stem, encoder, decoder, up or head; `level` the encoder stage of the same resolution, 0 = finest; `block`
    the position in the stage; `role` the position in a residual block (conv1, conv2, …, skip), else empty.
    """

    side: str
    level: int
    block: int = 0
    role: str = ""


@dataclass(frozen=True)
class Layer:
    """A convolution with its norm.

    Attributes:
        place: Where it sits.
        kernel: Edge lengths of the kernel; those of an up-sampling are its stride.
        stride: Strides of a convolution.
        inputs: Widths of what it reads, in order: in a decoder's first convolution the up-sampled and the skip.
        width: Output channels.
        tensors: `weight`, `bias`, `norm.weight`, … → first name in the state dict.
        last: Whether it is the last convolution before its block's output is added to the skip.
    """

    place: Place
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    inputs: tuple[int, ...]
    width: int
    tensors: dict[str, str]
    last: bool = False

    @property
    def part(self) -> str:
        """Its row in a report."""
        side, level = self.place[:2]
        rows = {"stem": STEM, "head": HEADS, "encoder": f"encoder stage {level}"}
        return rows.get(side, f"decoder at stage {level}")


@dataclass(frozen=True)
class Layout:
    """A network's description.

    Attributes:
        family: Kind of its encoder's blocks; weights are carried within a family only.
        axes: Spatial axes, 2 or 3.
        layers: In the order of computation.
        sampling: Down-sampling of each encoder stage against the image, per axis.
        operations: Norms and activations in their order, e.g. "InstanceNorm (eps 1e-05, affine), ReLU".
        pooling: "average" where skips of the encoder are pooled (residual blocks), "maximum" where features are.
    """

    family: str
    axes: int
    layers: dict[Place, Layer]
    sampling: list[tuple[int, ...]]
    operations: tuple[str, ...]
    pooling: str

    def blocks(self, side: str, level: int) -> int:
        """Number of blocks of a stage; in a plain encoder the stem is the first of the finest stage."""
        stem = ((STEM, 0),) if (side, level) == ("encoder", 0) else ()
        return len({place.block for place in self.layers if place[:2] in ((side, level), *stem)})


def describe(network: nn.Module) -> Layout:
    """Walk a U-Net of nnU-Net (PlainConvUNet, ResidualEncoderUNet) or the original UNet3D, on any device.

    Raises:
        TransferError: It is built in another way, or holds tensors that the description has no place for.
    """
    encoder: Any = getattr(network, "encoder", None)
    decoder: Any = getattr(network, "decoder", None)
    if not (hasattr(encoder, "stages") and hasattr(decoder, "transpconvs") and hasattr(decoder, "seg_layers")):
        raise TransferError(f"A {type(network).__name__} is no U-Net of nnU-Net: its stages cannot be told apart.")
    tensors = network.state_dict(keep_vars=True)
    names = {id(tensors[name]): name for name in name_groups(network)}
    layers = {layer.place: layer for layer in _walk(network, names)}
    unknown = set(names.values()) - {name for layer in layers.values() for name in layer.tensors.values()}
    if unknown:
        raise TransferError(f"The {type(network).__name__} has tensors of an unknown kind, e.g. {min(unknown)}.")
    sampling = [(1,) * AXES]
    for stride in encoder.strides:
        sampling.append(tuple(a * b for a, b in zip(sampling[-1], _three_axes(stride), strict=True)))
    units = [unit for _, unit in _units(network)]
    stage = _blocks(encoder.stages[0])[0]
    family = type(network).__name__ + (f" ({type(stage).__name__})" if hasattr(stage, "conv1") else "")
    axes, kinds = units[0].conv.weight.ndim - 2, " ".join(type(module).__name__ for module in encoder.modules())
    pooling = "average" if "AvgPool" in kinds else "maximum" if "MaxPool" in kinds else ""
    return Layout(family, axes, layers, sampling[1:], _operations(network), pooling)


def _walk(network: Any, names: dict[int, str]) -> Iterator[Layer]:
    """All convolutions from the image to the heads."""
    encoder, decoder = network.encoder, network.decoder
    stem = getattr(encoder, "stem", None)
    for level, stage in enumerate(encoder.stages):
        if level == 0 and stem is not None:
            yield _layer(Place(STEM, 0), stem.convs[0], names)
        for block, module in enumerate(_blocks(stage)):
            plain_stem = stem is None and level == block == 0
            yield from _block(Place(STEM if plain_stem else "encoder", level, block), module, names)
    deepest = len(encoder.stages) - 1
    for index, (up, stage) in enumerate(zip(decoder.transpconvs, decoder.stages, strict=True)):
        level = deepest - 1 - index
        yield _layer(Place("up", level), up, names)
        for block, module in enumerate(_blocks(stage)):
            yield from _block(Place("decoder", level, block), module, names, 0 if block else up.out_channels)
    for index, head in enumerate(decoder.seg_layers):
        yield _layer(Place("head", deepest - 1 - index), head, names)


def _blocks(stage: Any) -> Any:
    """The residual blocks of a stage, or its convolutions; those of a plain encoder are wrapped once more."""
    stacked = stage if hasattr(stage, "convs") or hasattr(stage, "blocks") else stage[-1]
    return stacked.blocks if hasattr(stacked, "blocks") else stacked.convs


def _units(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Convolutions with norm and activation below a module, with their path; each once."""
    for path, inner in module.named_modules():
        if isinstance(getattr(inner, "conv", None), _ConvNd):
            yield path, inner


def _block(place: Place, block: nn.Module, names: dict[int, str], up_sampled: int = 0) -> Iterator[Layer]:
    """The convolutions of a block; the first `up_sampled` channels that it reads are up-sampled, the others a skip."""
    units = [(path.split(".")[0], unit) for path, unit in _units(block)]
    roles = [role for role, _ in units if role.startswith("conv")]
    for role, unit in units:
        yield _layer(place._replace(role=role), unit, names, up_sampled, last=roles[-1:] == [role])


def _layer(place: Place, unit: Any, names: dict[int, str], up_sampled: int = 0, last: bool = False) -> Layer:
    """Describe a convolution alone, or a unit with `conv` and `norm`."""
    conv = unit if isinstance(unit, _ConvNd) else unit.conv
    tensors = {role: names[id(tensor)] for role, tensor in conv.state_dict(keep_vars=True).items()}
    norm = getattr(unit, "norm", None)
    if norm is not None:
        tensors |= {f"norm.{role}": names[id(tensor)] for role, tensor in norm.state_dict(keep_vars=True).items()}
    width, reads = int(conv.out_channels), int(conv.in_channels)
    inputs = (up_sampled, reads - up_sampled) if 0 < up_sampled < reads else (reads,)
    return Layer(place, _three_axes(conv.kernel_size), _three_axes(conv.stride), inputs, width, tensors, last)


def _three_axes(edges: Iterable[int]) -> tuple[int, ...]:
    """Edges per axis with 1 put before those of 2D."""
    found = tuple(int(edge) for edge in edges)
    return (1,) * (AXES - len(found)) + found


def _operations(network: nn.Module) -> tuple[str, ...]:
    """The different sequences of norm and activation, in words; dropout, which has no part at inference, aside."""
    found = set()
    for _, unit in _units(network):
        steps = [
            step
            for step in getattr(unit, "all_modules", ())
            if not isinstance(step, _ConvNd) and "Drop" not in type(step).__name__
        ]
        found.add(", ".join(map(_operation, steps)))
    for path, module in network.named_modules():
        if path.rpartition(".")[2][:-1] == "nonlin":
            found.add(_operation(module))
    return tuple(sorted(found - {""}))


def _operation(module: nn.Module) -> str:
    """A norm or activation with what PyTorch declares constant in it, e.g. "InstanceNorm (eps 1e-05, affine)"."""
    constants = {key: getattr(module, key) for key in getattr(module, "__constants__", ()) if key not in ASIDE}
    words = [key if value is True else f"{key} {value}" for key, value in constants.items() if value is not False]
    name = type(module).__name__.removesuffix("2d").removesuffix("3d")
    return f"{name} ({', '.join(words)})" if words else name
