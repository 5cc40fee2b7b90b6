"""A source and a target that are both a Primus → the report of what each of the target's tensors receives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nnunet_genesis.errors import TransferError
from nnunet_genesis.networks.layout import HEADS, STEM
from nnunet_genesis.networks.pretrained import PretrainedNetwork
from nnunet_genesis.networks.primus_layout import (
    BLOCK,
    MASK_TOKEN,
    POSITIONS,
    READS_IMAGE,
    PrimusLayout,
    describe_primus,
    part_of,
)
from nnunet_genesis.networks.wording import times
from nnunet_genesis.transfer.channels import (
    ChannelMixture,
    adapt_input_channels,
    channel_limit,
    channel_mixture,
    channel_remark,
)
from nnunet_genesis.transfer.differences import refuse_other_family
from nnunet_genesis.transfer.kernels import single_precision
from nnunet_genesis.transfer.records import Cause, Reason, State, TensorRecord
from nnunet_genesis.transfer.report import TransferReport
from nnunet_genesis.transfer.tokens import resize_cells, resize_positions

PROJECTION = "down_projection.proj.weight"
SCALES = ("gamma_1", "gamma_2")
"""What a block multiplies its attention and its perceptron with, before they are added to the tokens."""
LAST_OF_BRANCH = ("attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias")
"""What makes them, where there are no such scales."""


@dataclass(frozen=True)
class _Pair:
    """Both networks, and how input channels are matched."""

    source: PrimusLayout
    target: PrimusLayout
    channels: ChannelMixture


def match_primus(
    source: PretrainedNetwork, built: nn.Module, network: nn.Module, channels: Sequence[str]
) -> TransferReport:
    """Find out what each tensor of a Primus receives from another one.

    Tensors are counterparts by name, hence blocks by position. What makes logits of tokens belongs to the task, and
    rotary positions follow from the target's grid: both stay the target's.

    Args:
        source: Weights, architecture, channel names; not changed.
        built: Its network, on any device.
        network: The target, freshly initialised; not changed.
        channels: Names of its input channels.

    Raises:
        TransferError: Tokens are made in another way, or have another width.
    """
    pair = _Pair(describe_primus(built), describe_primus(network), channel_mixture(source.channel_labels, channels))
    initial = network.state_dict()
    _refuse(pair, initial, channels)
    report = TransferReport(remarks=[*source.notes, *channel_remark(source, channels, pair.channels.rule)])
    for text, part in _differences(pair.source, pair.target):
        report.add_limit(text, part)
    report.add_limit(channel_limit(pair.channels.matrix, source.channel_labels), STEM)
    held = source.weights
    weights = {name: single_precision(held[name]) for name in pair.source.parts if name in held}
    for name, part in pair.target.parts.items():
        record, limit = _carried(name, weights, initial, pair)
        report.records.append(record)
        report.add_limit(limit, part)
    _list_unused(report, weights, pair.target)
    known = built.state_dict()
    report.unused |= {name: tensor.numel() for name, tensor in held.items() if name not in known}
    return report


def _refuse(pair: _Pair, initial: Mapping[str, torch.Tensor], channels: Sequence[str]) -> None:
    refuse_other_family(pair.source.family, pair.target.family)
    inputs = next(tensor.shape[1] for name, tensor in initial.items() if READS_IMAGE.fullmatch(name))
    if inputs != len(channels):
        raise TransferError(f"{len(channels)} names for {inputs} input channels.")
    if pair.source.width != pair.target.width:
        raise TransferError(
            f"The checkpoint's {pair.source.family} has tokens of width {pair.source.width}, the target's of width "
            f"{pair.target.width}: attention mixes all of them, so that no part of it can be carried, and "
            "--resize-widths is for convolutions. Plan the target with a Primus of the checkpoint's size."
        )


def _differences(source: PrimusLayout, target: PrimusLayout) -> Iterator[tuple[str, str]]:
    """What is not preserved of the network as a whole, and the part where."""
    if source.cell != target.cell:
        yield (
            (
                f"tokens stand for {times(target.cell)} voxels, in the checkpoint for {times(source.cell)}: exact for "
                "images constant within a cell; others are read as if resampled to the checkpoint's cell"
            ),
            STEM,
        )
    if source.grid != target.grid:
        yield (
            (
                f"{times(target.grid)} tokens, in the checkpoint {times(source.grid)}: learned positions are "
                "resized, and attention is over other tokens"
            ),
            part_of(POSITIONS),
        )
    if source.registers != target.registers:
        text = f"{target.registers} tokens that stand for no place, in the checkpoint {source.registers}"
        yield text, "encoder registers"
    for block in range(min(source.depth, target.depth)):
        if source.heads != target.heads:
            text = f"attention in {target.heads} heads, in the checkpoint {source.heads}: another function"
            yield text, f"encoder block {block}"
        if source.rotations != target.rotations:
            yield "rotary positions of another kind than in the checkpoint", f"encoder block {block}"
    if target.depth < source.depth:
        text = f"is the last here, of the checkpoint's {source.depth}: features are as they were up to there"
        yield text, f"encoder block {target.depth - 1}"


def _carried(
    name: str, weights: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor], pair: _Pair
) -> tuple[TensorRecord, str]:
    """What becomes of one tensor, and the limit that follows; "" for none."""
    start, block = initial[name], BLOCK.match(name)
    if name not in pair.source.parts and block and int(block[1]) >= pair.source.depth:
        return _of_added_block(name, name.removeprefix(block[0]), initial, pair.source.depth), ""
    if part_of(name) == HEADS:
        return _record(name, start, State.INITIALISED, (Reason(Cause.HEAD),)), ""
    if name not in weights:
        if name.endswith(SCALES):
            return _record(name, start, State.ADAPTED, (Reason(Cause.NO_SCALE),), torch.ones_like(start), 1.0), ""
        limit = (
            "" if name == MASK_TOKEN else f"{name.removeprefix(block[0]) if block else name} is not in the checkpoint"
        )
        return _record(name, start, State.INITIALISED, (Reason(Cause.NO_TENSOR),)), limit
    if name == POSITIONS:
        return _of_positions(weights[name], start, pair), ""
    value, reasons = _of_weight(name, weights[name], pair)
    if value.shape != start.shape:
        shapes = tuple(times(tensor.shape) for tensor in (value, start))
        return _record(
            name, start, State.INITIALISED, (Reason(Cause.SHAPE, shapes),)
        ), "starts anew where shapes differ"
    return _record(name, start, State.ADAPTED if reasons else State.COPIED, reasons, value, 1.0), ""


def _of_weight(name: str, value: torch.Tensor, pair: _Pair) -> tuple[torch.Tensor, tuple[Reason, ...]]:
    """The value in the target's shape where it is known how, and the steps that led there."""
    reasons = []
    if READS_IMAGE.fullmatch(name) and not pair.channels.identical:
        value = adapt_input_channels(value, pair.channels.matrix)
        reasons.append(Reason(Cause.INPUT_CHANNELS, (pair.channels.rule,)))
    if name == PROJECTION and pair.source.cell != pair.target.cell:
        value = resize_cells(value, pair.target.cell)
        reasons.append(Reason(Cause.CELL, (times(pair.source.cell), times(pair.target.cell))))
    return value, tuple(reasons)


def _of_positions(positions: torch.Tensor, start: torch.Tensor, pair: _Pair) -> TensorRecord:
    """Learned positions; those of other tokens than the checkpoint's registers stay as initialised."""
    source, target = pair.source, pair.target
    if source.grid == target.grid and source.registers == target.registers:
        return _record(POSITIONS, start, State.COPIED, (), positions, 1.0)
    grids = tuple(times(layout.grid) for layout in (source, target))
    value = resize_positions(positions, source.registers, source.grid, target.grid)
    share = 1.0
    if source.registers != target.registers:
        value = torch.cat([start[:, : target.registers], value[:, source.registers :]], 1)
        share = 1 - target.registers / start.shape[1]
    return _record(POSITIONS, start, State.ADAPTED, (Reason(Cause.GRID, grids),), value, share)


def _of_added_block(name: str, role: str, initial: Mapping[str, torch.Tensor], depth: int) -> TensorRecord:
    """A block that the checkpoint does not have adds nothing to the tokens at the start, and learns to."""
    reasons: tuple[Reason, ...] = (Reason(Cause.NO_TOKEN_BLOCK, (depth,)),)
    start, value = initial[name], None
    scaled = name.removesuffix(role) + SCALES[0] in initial
    if role in (SCALES if scaled else LAST_OF_BRANCH):
        reasons, value = (*reasons, Reason(Cause.ZERO_RESIDUAL)), torch.zeros_like(start)
    return _record(name, start, State.INITIALISED, reasons, value)


def _record(
    name: str, start: torch.Tensor, state: State, reasons: tuple[Reason, ...], value: torch.Tensor | None = None,
    share: float = 0.0,
) -> TensorRecord:  # fmt: skip
    taken = round(start.numel() * share)
    return TensorRecord(name, part_of(name), start.numel(), state, reasons, value, taken)


def _list_unused(report: TransferReport, weights: Mapping[str, torch.Tensor], target: PrimusLayout) -> None:
    """Enter the source's tensors that no record uses, and what the target lacks of them."""
    used = {record.name for record in report.records if record.state is not State.INITIALISED}
    for name, tensor in weights.items():
        if part_of(name) == HEADS:
            continue
        report.source_parameters += tensor.numel()
        if name not in used:
            report.unused[name] = tensor.numel()
        block = BLOCK.match(name)
        if name not in target.parts and (block is None or int(block[1]) < target.depth):
            role = name.removeprefix(block[0]) if block else name
            report.add_limit(f"the target has no {role} here, the checkpoint has", part_of(name))
