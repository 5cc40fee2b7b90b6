"""A source layer and its counterpart → what becomes of each of the counterpart's tensors, and what is not exact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from nnunet_genesis.networks.layout import STEM, Layer
from nnunet_genesis.networks.wording import axes_where, times
from nnunet_genesis.transfer.channels import adapt_input_channels
from nnunet_genesis.transfer.kernels import fit_kernel, fit_taps, fit_vector, fit_widths, passing_on

COPIED, ADAPTED, INITIALISED = "copied", "adapted", "initialised"


class Outcome(NamedTuple):
    """One tensor of the target: its state, how or why, its value (None: as initialised), its share from the source.

    `resizable` is the share that would come from the source if other widths were asked for.
    """

    state: str
    why: str
    value: torch.Tensor | None = None
    taken: float = 0.0
    resizable: float = 0.0


def start_anew(wanted: Layer, why: str) -> dict[str, Outcome]:
    """Every tensor stays as the target was initialised."""
    return {role: Outcome(INITIALISED, why) for role in wanted.tensors}


def start_passing_on(wanted: Layer, fresh: Mapping[str, torch.Tensor], why: str) -> dict[str, Outcome]:
    """A layer without counterpart that disturbs as little as it can.

    The last norm of a residual block starts at zero: the block gives out the activation of its input. A plain
    convolution gives out its last inputs (in a decoder: the skip), which its norm and activation then change.
    """
    outcomes = start_anew(wanted, why)
    if not wanted.place.role:
        fitted = passing_on(_lifted(fresh["weight"]))
        outcomes["weight"] = Outcome(INITIALISED, f"{why}, passes its input on", fitted.reshape(fresh["weight"].shape))
    elif wanted.last:
        scales = [role for role in fresh if role in ("norm.weight", "norm.bias")] or ["weight", "bias"]
        for role in set(scales) & set(fresh):
            outcomes[role] = Outcome(INITIALISED, f"{why}, adds nothing to its skip", torch.zeros_like(fresh[role]))
    return outcomes


def carry(
    given: Layer, wanted: Layer, tensors: Mapping[str, torch.Tensor], fresh: Mapping[str, torch.Tensor],
    mixture: torch.Tensor, resize_widths: bool,
) -> tuple[dict[str, Outcome], list[str]]:  # fmt: skip
    """Carry a convolution and its norm over to their counterpart.

    Args:
        given: The source's layer.
        wanted: The target's layer.
        tensors: The source's tensors by role (`weight`, `norm.bias`, …); not changed.
        fresh: The target's, as initialised; not changed.
        mixture: Input channels, as `channel_mixture` gives it; used for the stem only.
        resize_widths: Whether layers of other widths are carried.

    Returns:
        An outcome for each role of the target, and the limits: where the layer does not respond as it did.
    """
    if "weight" not in tensors:
        return start_anew(wanted, "not in the checkpoint"), ["starts anew: not in the checkpoint"]
    stem = wanted.place.side == STEM
    resized = given.width != wanted.width or (not stem and given.inputs != wanted.inputs)
    share = min(given.width, wanted.width) / wanted.width
    if resized and not resize_widths:
        anew = start_anew(wanted, f"channels {_widths(given)} → {_widths(wanted)}")
        found = {*tensors, "bias"}  # a bias that is not there is zero
        anew = {role: outcome._replace(resizable=share * (role in found)) for role, outcome in anew.items()}
        return anew, ["starts anew where channels differ, as other widths were not asked for"]
    try:
        weight, steps, limits = _carry_weight(given, wanted, tensors["weight"], fresh["weight"], mixture)
    except ValueError as error:
        return start_anew(wanted, str(error)), [f"starts anew: {error}"]
    shifted = bias_in_norm(tensors, wanted)
    state = COPIED if weight is tensors["weight"] else ADAPTED
    outcomes = {"weight": Outcome(state, ", ".join(steps), weight, share)}
    for role in [role for role in wanted.tensors if role != "weight"]:
        outcomes[role] = _carry_vector(role, shifted.get(role, tensors.get(role)), fresh[role], share)
        if outcomes[role].value is None:
            limits.append(f"{role} is not in the checkpoint")
        elif role in shifted:
            outcomes[role] = outcomes[role]._replace(state=ADAPTED, why="less the bias, which the target lacks")
    # a norm by the statistics of what it reads cancels a bias
    cancelled = {"bias"} if shifted or "norm.weight" in fresh else set()
    limits += [
        f"the target has no {role} here, the checkpoint has" for role in tensors if role not in {*fresh, *cancelled}
    ]
    return outcomes, limits


def bias_in_norm(tensors: Mapping[str, torch.Tensor], wanted: Layer) -> dict[str, torch.Tensor]:
    """The running mean of a norm less the bias of the convolution before it, where the target has no bias.

    In evaluation, the norm then gives out what it gave out, exactly. Empty where nothing is to be done.
    """
    mean = "norm.running_mean"
    if "bias" in wanted.tensors or mean not in wanted.tensors or not {"bias", mean} <= set(tensors):
        return {}
    return {mean: tensors[mean] - tensors["bias"]}


def _carry_weight(
    given: Layer, wanted: Layer, weight: torch.Tensor, fresh: torch.Tensor, mixture: torch.Tensor
) -> tuple[torch.Tensor, list[str], list[str]]:
    """The weight in the target's shape (the source's own tensor if nothing changes), the steps, and the limits."""
    steps, limits, up = [], [], wanted.place.side == "up"
    fitted, start = (tensor.transpose(0, 1) if up else tensor for tensor in (_lifted(weight), _lifted(fresh)))
    if wanted.place.side == STEM and not _is_identity(mixture):
        fitted = adapt_input_channels(fitted, mixture)
        steps.append("input channels mixed")
    kernel = tuple(fitted.shape[2:])
    if kernel != wanted.kernel:
        fitted = (fit_taps if up else fit_kernel)(fitted, wanted.kernel)
        steps.append(f"{'up-sampling' if up else 'kernel'} {times(kernel)} → {times(wanted.kernel)}")
        limits += _tap_limits(kernel, wanted.kernel) if up else _kernel_limits(kernel, wanted.kernel)
    if fitted.shape[:2] != start.shape[:2] or (wanted.place.side != STEM and given.inputs != wanted.inputs):
        inputs = given.inputs if wanted.place.side != STEM else wanted.inputs
        fitted = fit_widths(fitted, start, inputs, wanted.inputs)
        steps.append(f"channels {_widths(given)} → {_widths(wanted)}")
        if given.width > wanted.width or any(a > b for a, b in zip(inputs, wanted.inputs, strict=True)):
            limits.append("narrower: the leading filters without the inputs that are gone, which is another function")
    if given.stride != wanted.stride and not up:
        steps.append(f"stride {times(given.stride)} → {times(wanted.stride)}")
    if weight.ndim != fresh.ndim:
        steps.insert(0, f"{weight.ndim - 2}D → {fresh.ndim - 2}D")
    if all(step.startswith("stride") for step in steps):
        return weight, steps, limits
    return (fitted.transpose(0, 1) if up else fitted).reshape(fresh.shape), steps, limits


def _carry_vector(role: str, tensor: torch.Tensor | None, fresh: torch.Tensor, share: float) -> Outcome:
    """A bias or a part of a norm; a bias that the source lacks is zero."""
    if tensor is None:
        if role == "bias":
            return Outcome(ADAPTED, "no bias in the checkpoint: zero", torch.zeros_like(fresh), 1.0)
        return Outcome(INITIALISED, "not in the checkpoint")
    if tensor.shape == fresh.shape:
        return Outcome(COPIED, "", tensor, 1.0)
    return Outcome(ADAPTED, f"width {len(tensor)} → {len(fresh)}", fit_vector(tensor, fresh), share)


def _kernel_limits(given: tuple[int, ...], wanted: tuple[int, ...]) -> list[str]:
    axes = axes_where(a > b for a, b in zip(given, wanted, strict=True))
    return (
        [f"shorter kernel along {axes}: exact for features constant along {axes}, away from its ends"] if axes else []
    )


def _tap_limits(given: tuple[int, ...], wanted: tuple[int, ...]) -> list[str]:
    more = axes_where(a < b for a, b in zip(given, wanted, strict=True))
    fewer = axes_where(a > b for a, b in zip(given, wanted, strict=True))
    limits = [f"up-samples along {more} by repetition: exact for features constant along {more}"] if more else []
    text = f"up-samples along {fewer} to the average of the checkpoint's output; later layers respond otherwise"
    return limits + ([text] if fewer else [])


def _lifted(weight: torch.Tensor) -> torch.Tensor:
    """(…, y, x) → (…, 1, y, x); 3D stays."""
    return weight.unsqueeze(2) if weight.ndim == 4 else weight


def _is_identity(mixture: torch.Tensor) -> bool:
    return mixture.shape[0] == mixture.shape[1] and torch.equal(mixture, torch.eye(len(mixture)))


def _widths(layer: Layer) -> str:
    return f"({'+'.join(map(str, layer.inputs))} in, {layer.width} out)"
