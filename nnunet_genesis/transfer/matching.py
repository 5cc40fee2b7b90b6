"""A source and a target network → the ledger of what each of the target's tensors receives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from nnunet_genesis.errors import TransferError
from nnunet_genesis.networks.build import skeleton
from nnunet_genesis.networks.layout import HEADS, STEM, Layer, Layout, Place, describe
from nnunet_genesis.networks.pretrained import PretrainedNetwork
from nnunet_genesis.networks.tied_names import effective
from nnunet_genesis.transfer.channels import channel_limit, channel_mixture
from nnunet_genesis.transfer.differences import differences, resampled
from nnunet_genesis.transfer.layers import INITIALISED, Outcome, bias_in_norm, carry, start_anew, start_passing_on
from nnunet_genesis.transfer.report import Ledger, Line

NO_TWIN = "no such convolution in the checkpoint's block"


def match(
    source: PretrainedNetwork, network: nn.Module, channels: Sequence[str], resize_widths: bool = False
) -> Ledger:
    """Find out what each tensor of a network receives from a source.

    Both are described as stem, stages, blocks and convolutions; encoder stages are counterparts by index from the
    finest, decoder stages and up-samplings by the encoder stage that they return to, blocks by position. Segmentation
    heads stay at initialisation: they belong to the source's task.

    Args:
        source: Weights, architecture, channel names; not changed.
        network: The target, freshly initialised; not changed.
        channels: Names of its input channels.
        resize_widths: Whether stages of other widths take the leading channels; otherwise they stay initialised.

    Raises:
        TransferError: The networks are of different families, or the source contradicts itself.
    """
    given, wanted = describe(skeleton(source.architecture, source.input_channels)), describe(network)
    refuse_other_family(given, wanted)
    if wanted.layers[Place(STEM, 0)].inputs != (len(channels),):
        raise TransferError(f"{len(channels)} names for {wanted.layers[Place(STEM, 0)].inputs[0]} input channels.")
    held = {place: _held(layer, given, source) for place, layer in given.layers.items()}
    mixture, rule = channel_mixture(source.channel_labels, channels)
    target, ledger = network.state_dict(), Ledger(remarks=[*source.notes, *resampled(given, wanted)])
    ledger.remarks += _channel_remark(source, channels, rule)
    for text, part in differences(given, wanted):
        _limit(ledger, text, part)
    _limit(ledger, channel_limit(mixture, source.channel_labels), STEM)
    for place, layer in wanted.layers.items():
        fresh = {role: target[name] for role, name in layer.tensors.items()}
        why = _without_counterpart(place, given)
        if why:
            outcomes, limits = _alone(layer, given, fresh, why), [f"starts anew: {why}"] if why == NO_TWIN else []
        else:
            outcomes, limits = carry(given.layers[place], layer, held[place], fresh, mixture, resize_widths)
        for role, outcome in outcomes.items():
            outcome = outcome._replace(why=outcome.why.replace("input channels mixed", f"input channels {rule}"))
            _enter(ledger, layer, layer.tensors[role], fresh[role], outcome)
        for text in limits:
            _limit(ledger, text, layer.part)
    _list_unused(ledger, given, wanted, held, source)
    return ledger


def refuse_other_family(given: Layout, wanted: Layout) -> None:
    """Stop where the encoders' blocks compute different things.

    Raises:
        TransferError: Names both.
    """
    if given.family != wanted.family:
        planning = "nnUNetv2_plan_experiment -pl, or nnunet_genesis plan --template genesis_chest_ct for a UNet3D"
        raise TransferError(
            f"The checkpoint holds a {given.family}, the target's plans ask for a {wanted.family}: convolutions of the "
            "one have no counterpart in the blocks of the other. Use a checkpoint of the target's network class, or "
            f"plan the target with the checkpoint's ({planning})."
        )


def _channel_remark(source: PretrainedNetwork, channels: Sequence[str], rule: str) -> list[str]:
    """How input channels were matched, unless all have the same names in the same order."""
    theirs, ours = source.channel_labels, ", ".join(channels)
    if [name.casefold() for name in theirs] == [name.casefold() for name in channels]:
        return []
    if source.channels is None:
        return [f"the checkpoint does not name its {len(theirs)} input channel(s); assumed for {ours}: {rule}"]
    return [f"input channels {ours} for {', '.join(theirs)}: {rule}"]


def _held(layer: Layer, given: Layout, source: PretrainedNetwork) -> dict[str, torch.Tensor]:
    """The source's tensors of a layer by role, those that it has.

    Kernels are taken from the weights: nnU-Net v1 builds decoders with kernels that no architecture block expresses.
    Half precision becomes float32.

    Raises:
        TransferError: A tensor has other channels than the architecture says.
    """
    found = {role: effective(given.names[name], source.weights) for role, name in layer.tensors.items()}
    held = {role: _single(tensor) for role, tensor in found.items() if tensor is not None}
    if layer.part == HEADS:
        return held
    channels = (layer.width, sum(layer.inputs))
    for role, tensor in held.items():
        expected = (channels[::-1] if layer.place.side == "up" else channels) if role == "weight" else (layer.width,)
        axes = given.axes + 2 if role == "weight" else len(tensor.shape[:1])
        if tensor.ndim != axes or tuple(tensor.shape[: len(expected)]) != expected[: tensor.ndim]:
            raise TransferError(
                f"{layer.tensors[role]} of the checkpoint is {_shape(tensor.shape)}, but the architecture that comes "
                f"with it asks for {_shape(expected)}{' and a kernel' if role == 'weight' else ''}: one of the two is "
                "not this checkpoint's."
            )
    return held


def _single(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision → float32, exactly, so that adapting does not round; others stay as they are."""
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize < torch.float32.itemsize else tensor


def _without_counterpart(place: Place, given: Layout) -> str:
    """Why a layer of the target has no counterpart; "" if it has one."""
    if place.side == "head":
        return "heads belong to the task"
    if place in given.layers:
        return ""
    blocks = given.blocks(place.side, place.level)
    if blocks == 0:
        return f"the checkpoint has {len(given.sampling)} stages"
    if place.block >= blocks:
        return "the checkpoint has fewer blocks in this stage"
    return NO_TWIN


def _alone(layer: Layer, given: Layout, fresh: dict[str, torch.Tensor], why: str) -> dict[str, Outcome]:
    """What a layer without counterpart starts from."""
    side, level = layer.place[:2]
    replaces_bottleneck = side == "decoder" and level == len(given.sampling) - 1
    additional = side in ("encoder", "decoder") and given.blocks(side, level) > 0
    if why != NO_TWIN and (replaces_bottleneck or additional):
        return start_passing_on(layer, fresh, why)
    return start_anew(layer, why)


def _enter(ledger: Ledger, layer: Layer, name: str, fresh: torch.Tensor, outcome: Outcome) -> None:
    taken = round(fresh.numel() * outcome.taken) if outcome.state != INITIALISED else 0
    ledger.lines.append(Line(name, layer.part, fresh.numel(), outcome.state, outcome.why, taken))
    ledger.resizable[name] = round(fresh.numel() * outcome.resizable)
    if outcome.value is not None:
        ledger.values[name] = outcome.value


def _limit(ledger: Ledger, text: str, part: str) -> None:
    if text and part not in ledger.limits.setdefault(text, []):
        ledger.limits[text].append(part)


def _list_unused(
    ledger: Ledger, given: Layout, wanted: Layout, held: dict[Place, dict[str, torch.Tensor]], source: PretrainedNetwork
) -> None:
    """Enter the source's tensors that no line uses, under their first names, and those of unknown names."""
    used = {line.name for line in ledger.lines if line.state != INITIALISED}
    for place, tensors in held.items():
        if place.side == "head":
            continue
        layer, counterpart = given.layers[place], wanted.layers.get(place)
        for role, tensor in tensors.items():
            ledger.source_parameters += tensor.numel()
            moved = list(bias_in_norm(tensors, counterpart)) if counterpart is not None and role == "bias" else []
            if counterpart is None or counterpart.tensors.get(*moved or [role]) not in used:
                ledger.unused[layer.tensors[role]] = tensor.numel()
        if counterpart is None and place.block < wanted.blocks(place.side, place.level):
            _limit(ledger, f"the block has no counterpart of the checkpoint's {place.role}", layer.part)
    known = {name for names in given.names.values() for name in names}
    ledger.unused |= {name: tensor.numel() for name, tensor in source.weights.items() if name not in known}


def _shape(shape: Sequence[int]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
