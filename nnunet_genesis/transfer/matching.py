"""A source and a target network → the report of what each of the target's tensors receives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from nnunet_genesis.errors import TransferError
from nnunet_genesis.named_classes import is_primus
from nnunet_genesis.networks.build import skeleton
from nnunet_genesis.networks.layout import HEADS, STEM, Layer, Layout, Place, describe
from nnunet_genesis.networks.outputs import Outputs
from nnunet_genesis.networks.pretrained import PretrainedNetwork
from nnunet_genesis.transfer.channels import channel_limit, channel_mixture, channel_remark
from nnunet_genesis.transfer.differences import differences, refuse_other_family, resampled
from nnunet_genesis.transfer.heads import HeadRows, head_rows, keep_rows
from nnunet_genesis.transfer.kernels import single_precision
from nnunet_genesis.transfer.layers import (
    bias_in_norm,
    start_anew,
    start_anew_limited,
    start_as_identity,
    transfer_layer,
)
from nnunet_genesis.transfer.of_transformers import match_primus
from nnunet_genesis.transfer.records import Cause, Reason, State, TensorRecord
from nnunet_genesis.transfer.report import TransferReport


def match(
    source: PretrainedNetwork,
    network: nn.Module,
    channels: Sequence[str],
    resize_widths: bool = False,
    outputs: Outputs | None = None,
) -> TransferReport:
    """Find out what each tensor of a network receives from a source.

    Both are described as stem, stages, blocks and convolutions; encoder stages are counterparts by index from the
    finest, decoder stages and up-samplings by the encoder stage that they return to, blocks by position. Rows of
    segmentation heads are counterparts by the names of their labels, the others stay at initialisation.

    Args:
        source: Weights, architecture, channel names; not changed.
        network: The target, freshly initialised; not changed.
        channels: Names of its input channels.
        resize_widths: Whether stages of other widths take the leading channels; otherwise they stay initialised.
        outputs: What the target's outputs stand for; None for heads that start anew.

    Raises:
        TransferError: The networks are of different families, or the source contradicts itself.
    """
    built = skeleton(source.architecture, source.input_channels)
    heads = head_rows(source.outputs, outputs)
    if is_primus(built) and is_primus(network):
        report = match_primus(source, built, network, channels)
        report.remarks += ["heads start anew, also for labels that remain: it is a Primus"] if heads.rows else []
        return report
    if is_primus(built) or is_primus(network):
        refuse_other_family(type(built).__name__, type(network).__name__)
    return _match_unets(source, built, network, channels, resize_widths, heads)


def _match_unets(
    source: PretrainedNetwork, built: nn.Module, network: nn.Module, channels: Sequence[str], resize_widths: bool,
    heads: HeadRows,
) -> TransferReport:  # fmt: skip
    """As `match`; `built` is the source's network without its weights."""
    source_layout, target_layout = describe(built), describe(network)
    refuse_other_family(source_layout.family, target_layout.family)
    inputs = sum(target_layout.layers[Place(STEM, 0)].inputs)
    if inputs != len(channels):
        raise TransferError(f"{len(channels)} names for {inputs} input channels.")
    axes, layers = source_layout.axes, source_layout.layers
    tensors = {place: _tensors(layer, axes, source.weights) for place, layer in layers.items()}
    mixture = channel_mixture(source.channel_labels, channels)
    report = TransferReport(remarks=[*source.notes, *resampled(source_layout, target_layout)])
    report.remarks += channel_remark(source, channels, mixture.rule)
    report.remarks += [heads.remark] if heads.remark else []
    report.labels, report.head_rows = dict(heads.names), list(heads.rows)
    for text, part in differences(source_layout, target_layout):
        report.add_limit(text, part)
    report.add_limit(channel_limit(mixture.matrix, source.channel_labels), STEM)
    initial = network.state_dict()
    for place, layer in target_layout.layers.items():
        start = {role: initial[name] for role, name in layer.tensors.items()}
        if place.side == "head":
            own = tensors.get(place, {})
            report.records += keep_rows(layers.get(place), layer, own, start, heads.rows, resize_widths)
            continue
        reason = _without_counterpart(place, source_layout)
        if reason is None:
            records, limits = transfer_layer(
                source_layout.layers[place], layer, tensors[place], start, mixture, resize_widths
            )
        else:
            records, limits = _initialised(layer, source_layout, start, reason)
        report.records += records
        for text in limits:
            report.add_limit(text, layer.part)
    _list_unused(report, source_layout, target_layout, tensors)
    known = built.state_dict()
    report.unused |= {name: tensor.numel() for name, tensor in source.weights.items() if name not in known}
    return report


def _tensors(layer: Layer, axes: int, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The source's tensors of a layer by role, those that it has.

    Kernels are taken from the weights: nnU-Net v1 builds decoders with kernels that no architecture block expresses.
    Half precision becomes float32.

    Raises:
        TransferError: A tensor has other channels than the architecture says.
    """
    found = {role: single_precision(weights[name]) for role, name in layer.tensors.items() if name in weights}
    if layer.part == HEADS:
        return found
    channels = (layer.width, sum(layer.inputs))
    for role, tensor in found.items():
        expected = (channels[::-1] if layer.place.side == "up" else channels) if role == "weight" else (layer.width,)
        rank = axes + 2 if role == "weight" else len(tensor.shape[:1])
        if tensor.ndim != rank or tuple(tensor.shape[: len(expected)]) != expected[: tensor.ndim]:
            raise TransferError(
                f"{layer.tensors[role]} of the checkpoint is {_shape(tensor.shape)}, but the architecture that comes "
                f"with it asks for {_shape(expected)}{' and a kernel' if role == 'weight' else ''}: one of the two is "
                "not this checkpoint's."
            )
    return found


def _without_counterpart(place: Place, source: Layout) -> Reason | None:
    """Why a layer of the target has no counterpart; None if it has one."""
    if place in source.layers:
        return None
    blocks = source.blocks(place.side, place.level)
    if blocks == 0:
        return Reason(Cause.NO_STAGE, (len(source.sampling),))
    return Reason(Cause.NO_BLOCK if place.block >= blocks else Cause.NO_CONVOLUTION)


def _initialised(
    layer: Layer, source: Layout, initial: dict[str, torch.Tensor], reason: Reason
) -> tuple[list[TensorRecord], list[str]]:
    """What a layer without counterpart starts from."""
    if reason.cause is Cause.NO_CONVOLUTION:
        return start_anew_limited(layer, initial, reason)
    replaces_bottleneck = layer.place[:2] == ("decoder", len(source.sampling) - 1)
    if replaces_bottleneck or reason.cause is Cause.NO_BLOCK:
        return start_as_identity(layer, initial, reason), []
    return start_anew(layer, initial, reason), []


def _list_unused(
    report: TransferReport, source: Layout, target: Layout, tensors: Mapping[Place, Mapping[str, torch.Tensor]]
) -> None:
    """Enter the source's tensors that no record uses."""
    used = {record.name for record in report.records if record.state is not State.INITIALISED}
    for place, layer in source.layers.items():
        if place.side == "head":
            continue
        counterpart = target.layers.get(place)
        for role, tensor in tensors[place].items():
            report.source_parameters += tensor.numel()
            moved = list(bias_in_norm(tensors[place], counterpart)) if counterpart and role == "bias" else []
            if counterpart is None or counterpart.tensors.get(*moved or [role]) not in used:
                report.unused[layer.tensors[role]] = tensor.numel()
        if counterpart is None and place.block < target.blocks(place.side, place.level):
            report.add_limit(f"the block has no counterpart of the checkpoint's {place.role}", layer.part)


def _shape(shape: Sequence[int]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
