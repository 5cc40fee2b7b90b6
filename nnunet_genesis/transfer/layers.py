"""A source layer and its counterpart → what becomes of each of the counterpart's tensors, and what is not exact."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from nnunet_genesis.networks.layout import STEM, Layer
from nnunet_genesis.networks.wording import axes_where, times
from nnunet_genesis.transfer.channels import ChannelMixture, adapt_input_channels
from nnunet_genesis.transfer.kernels import (
    identity_kernel,
    resize_kernel,
    resize_transposed_kernel,
    resize_vector,
    resize_widths,
)
from nnunet_genesis.transfer.records import Cause, Reason, State, TensorRecord


def start_anew(target: Layer, initial: Mapping[str, torch.Tensor], reason: Reason) -> list[TensorRecord]:
    """Every tensor stays as the target was initialised."""
    return [record_of(target, role, initial, State.INITIALISED, (reason,)) for role in target.tensors]


def start_anew_limited(
    target: Layer, initial: Mapping[str, torch.Tensor], reason: Reason
) -> tuple[list[TensorRecord], list[str]]:
    """The same, and the limit that follows: the source has something else, or nothing, in this place."""
    return start_anew(target, initial, reason), [f"starts anew: {reason}"]


def start_as_identity(target: Layer, initial: Mapping[str, torch.Tensor], reason: Reason) -> list[TensorRecord]:
    """A layer without counterpart that disturbs as little as it can.

    The last norm of a residual block starts at zero: the block gives out the activation of its input. A plain
    convolution gives out its last inputs (in a decoder: the skip), which its norm and activation then change.
    """
    if not target.place.role:
        cause, values = Cause.IDENTITY, {"weight": identity_kernel(initial["weight"])}
    else:
        added = [role for role in ("norm.weight", "norm.bias") if role in initial] or ["weight", "bias"]
        zeros = {role: torch.zeros_like(tensor) for role, tensor in initial.items() if role in added}
        cause, values = Cause.ZERO_RESIDUAL, zeros if target.last else {}
    records = []
    for role in target.tensors:
        reasons = (reason, Reason(cause)) if role in values else (reason,)
        records.append(record_of(target, role, initial, State.INITIALISED, reasons, values.get(role)))
    return records


def transfer_layer(
    source: Layer, target: Layer, tensors: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor],
    channels: ChannelMixture, other_widths: bool,
) -> tuple[list[TensorRecord], list[str]]:  # fmt: skip
    """Carry a convolution and its norm over to their counterpart.

    Args:
        source: The source's layer.
        target: The target's layer.
        tensors: The source's tensors by role (`weight`, `norm.bias`, …); not changed.
        initial: The target's, as initialised; not changed.
        channels: How input channels are matched; used for the stem only.
        other_widths: Whether layers of other widths are carried.

    Returns:
        A record for each role of the target, and the limits: where the layer does not respond as it did.
    """
    if "weight" not in tensors:
        return start_anew_limited(target, initial, Reason(Cause.NO_TENSOR))
    resized = source.width != target.width or (target.place.side != STEM and source.inputs != target.inputs)
    share = min(source.width, target.width) / target.width
    if resized and not other_widths:
        reasons = (widths_changed(source, target),)
        shares = {"bias": 1.0, **dict.fromkeys(tensors, share)}  # a bias that is not there is zero
        anew = [
            record_of(target, role, initial, State.INITIALISED, reasons, resizable=shares.get(role, 0.0))
            for role in target.tensors
        ]
        return anew, ["starts anew where channels differ, as other widths were not asked for"]
    try:
        weight, steps, limits = _transfer_weight(source, target, tensors["weight"], initial["weight"], channels)
    except ValueError:
        kernel = _three_axes(tensors["weight"]).shape[2:]
        return start_anew_limited(target, initial, Reason(Cause.NO_CENTRE, (times(kernel), times(target.kernel))))
    state = State.COPIED if weight is tensors["weight"] else State.ADAPTED
    moved = bias_in_norm(tensors, target)
    records = {"weight": record_of(target, "weight", initial, state, steps, weight, share)}
    for role in [role for role in target.tensors if role != "weight"]:
        records[role] = _transfer_vector(target, role, tensors, moved, initial, share)
        if records[role].value is None:
            limits.append(f"{role} is not in the checkpoint")
    # a norm by the statistics of what it reads cancels a bias
    cancelled = {"bias"} if moved or "norm.weight" in initial else set()
    limits += [
        f"the target has no {role} here, the checkpoint has" for role in tensors if role not in {*initial, *cancelled}
    ]
    return list(records.values()), limits


def bias_in_norm(tensors: Mapping[str, torch.Tensor], target: Layer) -> dict[str, torch.Tensor]:
    """The running mean of a norm less the bias of the convolution before it, where the target has no bias.

    In evaluation, the norm then gives out what it gave out, exactly. Empty where nothing is to be done.
    """
    mean = "norm.running_mean"
    if "bias" in target.tensors or mean not in target.tensors or not {"bias", mean} <= set(tensors):
        return {}
    return {mean: tensors[mean] - tensors["bias"]}


def record_of(
    target: Layer, role: str, initial: Mapping[str, torch.Tensor], state: State, reasons: tuple[Reason, ...],
    value: torch.Tensor | None = None, share: float = 0.0, resizable: float = 0.0,
) -> TensorRecord:  # fmt: skip
    """The record of a layer's tensor; shares of its parameters, 0 to 1, become numbers."""
    count = initial[role].numel()
    numbers = {"taken": round(count * share), "resizable": round(count * resizable)}
    return TensorRecord(target.tensors[role], target.part, count, state, reasons, value, **numbers)


def _transfer_weight(
    source: Layer, target: Layer, weight: torch.Tensor, initial: torch.Tensor, channels: ChannelMixture
) -> tuple[torch.Tensor, tuple[Reason, ...], list[str]]:
    """The weight in the target's shape (the source's own tensor if nothing changes), the steps, and the limits."""
    steps, limits, place = [], [], target.place
    up, stem = place.side == "up", place.side == STEM
    value, start = (tensor.transpose(0, 1) if up else tensor for tensor in map(_three_axes, (weight, initial)))
    if weight.ndim != initial.ndim:
        steps.append(Reason(Cause.AXES, (weight.ndim - 2, initial.ndim - 2)))
    if stem and not channels.identical:
        value = adapt_input_channels(value, channels.matrix)
        steps.append(Reason(Cause.INPUT_CHANNELS, (channels.rule,)))
    kernel = tuple(value.shape[2:])
    if kernel != target.kernel:
        value = (resize_transposed_kernel if up else resize_kernel)(value, target.kernel)
        cause = Cause.UP_SAMPLING if up else Cause.KERNEL
        steps.append(Reason(cause, (times(kernel), times(target.kernel))))
        limits += (_up_sampling_limits if up else _kernel_limits)(kernel, target.kernel)
    inputs = target.inputs if stem else source.inputs
    if value.shape[:2] != start.shape[:2] or inputs != target.inputs:
        value = resize_widths(value, start, inputs, target.inputs)
        steps.append(widths_changed(source, target))
        if source.width > target.width or any(a > b for a, b in zip(inputs, target.inputs, strict=True)):
            limits.append("narrower: the leading filters without the inputs that are gone, which is another function")
    unchanged = not steps
    if source.stride != target.stride and not up:
        steps.append(Reason(Cause.STRIDE, (times(source.stride), times(target.stride))))
    if not unchanged:
        weight = (value.transpose(0, 1) if up else value).reshape(initial.shape)
    return weight, tuple(steps), limits


def _transfer_vector(
    target: Layer, role: str, tensors: Mapping[str, torch.Tensor], moved: Mapping[str, torch.Tensor],
    initial: Mapping[str, torch.Tensor], share: float,
) -> TensorRecord:  # fmt: skip
    """A bias or a part of a norm, in place of which comes what is in `moved`; a bias that the source lacks is zero."""
    start = initial[role]
    if role in moved:
        value, reasons = resize_vector(moved[role], start), (Reason(Cause.BIAS_MOVED),)
        return record_of(target, role, initial, State.ADAPTED, reasons, value, share)
    if role not in tensors and role == "bias":
        return record_of(target, role, initial, State.ADAPTED, (Reason(Cause.NO_BIAS),), torch.zeros_like(start), 1.0)
    if role not in tensors:
        return record_of(target, role, initial, State.INITIALISED, (Reason(Cause.NO_TENSOR),))
    vector = tensors[role]
    if vector.shape == start.shape:
        return record_of(target, role, initial, State.COPIED, (), vector, 1.0)
    reasons = (Reason(Cause.WIDTH, (len(vector), len(start))),)
    return record_of(target, role, initial, State.ADAPTED, reasons, resize_vector(vector, start), share)


def _kernel_limits(source: tuple[int, ...], target: tuple[int, ...]) -> list[str]:
    axes = axes_where(a > b for a, b in zip(source, target, strict=True))
    return (
        [f"shorter kernel along {axes}: exact for features constant along {axes}, away from its ends"] if axes else []
    )


def _up_sampling_limits(source: tuple[int, ...], target: tuple[int, ...]) -> list[str]:
    more = axes_where(a < b for a, b in zip(source, target, strict=True))
    fewer = axes_where(a > b for a, b in zip(source, target, strict=True))
    limits = [f"up-samples along {more} by repetition: exact for features constant along {more}"] if more else []
    text = f"up-samples along {fewer} to the average of the checkpoint's output; later layers respond otherwise"
    return limits + ([text] if fewer else [])


def _three_axes(weight: torch.Tensor) -> torch.Tensor:
    """(…, y, x) → (…, 1, y, x); 3D stays."""
    return weight.unsqueeze(2) if weight.ndim == 4 else weight


def widths_changed(source: Layer, target: Layer) -> Reason:
    """What a layer reads and gives out in both networks."""
    texts = [f"({'+'.join(map(str, layer.inputs))} in, {layer.width} out)" for layer in (source, target)]
    return Reason(Cause.CHANNELS, tuple(texts))
