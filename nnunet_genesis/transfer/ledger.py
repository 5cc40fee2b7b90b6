"""Source weights and target network → one line per target tensor: copied, adapted or initialised, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from nnunet_genesis.errors import TransferError
from nnunet_genesis.transfer.channels import adapt_input_channels, channel_mixture
from nnunet_genesis.transfer.names import HEADS, effective, name_groups, part, stem_of

PARTS = ("stem", "encoder", "decoder", "segmentation heads")
SHOWN = 5
"""Mismatches listed in an error message."""


@dataclass(frozen=True)
class Line:
    """What happens to one tensor of the target; `state` is copied, adapted, initialised or mismatch."""

    name: str
    part: str
    parameters: int
    state: str
    why: str


@dataclass
class Ledger:
    """All tensors of the target, the values for those that are transferred, and source names without a use."""

    lines: list[Line] = field(default_factory=list)
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def share(self, of_part: str | None, *states: str) -> float:
        """Share of a part's parameters in one of the states, 0 to 1; of all but the heads if `of_part` is None."""
        lines = [line for line in self.lines if line.part == of_part or (of_part is None and line.part != PARTS[-1])]
        total = sum(line.parameters for line in lines)
        return sum(line.parameters for line in lines if line.state in states) / total if total else 0.0

    @property
    def coverage(self) -> float:
        """Share of the parameters, heads aside, that come from the source."""
        return self.share(None, "copied", "adapted")

    def table(self) -> str:
        """The shares per part as text, with the reasons for what was not copied."""
        rows = [f"{'part':<20}{'parameters':>12}{'copied':>10}{'adapted':>10}{'initialised':>13}  why"]
        for name in PARTS:
            lines = [line for line in self.lines if line.part == name]
            reasons = sorted({line.why for line in lines if line.why})
            shares = [f"{self.share(name, state):.1%}" for state in ("copied", "adapted", "initialised")]
            count = sum(line.parameters for line in lines)
            rows.append(f"{name:<20}{count:>12,}{shares[0]:>10}{shares[1]:>10}{shares[2]:>13}  {'; '.join(reasons)}")
        if self.unused:
            rows.append(f"{len(self.unused)} tensors of the checkpoint are not used, e.g. {self.unused[0]}")
        return "\n".join(rows)

    def refuse_mismatches(self) -> None:
        """Stop where tensors other than heads do not fit.

        Raises:
            TransferError: Lists the first mismatches.
        """
        wrong = [line for line in self.lines if line.state == "mismatch"]
        if wrong:
            listed = "; ".join(f"{line.name}: {line.why}" for line in wrong[:SHOWN])
            more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
            raise TransferError(
                f"The checkpoint's architecture is not the target's: {listed}{more}. Pre-train with the target's plans "
                "(nnunet_genesis plan --like), so that both agree."
            )

    def apply(self, network: nn.Module) -> None:
        """Write the transferred values into the network, in place, and confirm what it then holds.

        Raises:
            TransferError: A value did not arrive.
        """
        tensors = network.state_dict()
        for name, value in self.values.items():
            tensors[name].copy_(value)
        held = network.state_dict()
        for name, names in name_groups(network).items():
            if name in self.values and not all(torch.equal(held[n], self.values[name].to(held[n])) for n in names):
                raise TransferError(f"The value of {name} did not arrive in the network.")


def match(
    source: dict[str, torch.Tensor],
    network: nn.Module,
    source_channels: Sequence[str],
    target_channels: Sequence[str],
) -> Ledger:
    """Compare a state dict with a network of the same architecture.

    Everything with equal name and shape is copied. The first convolution is adapted to other input channels.
    Segmentation heads stay at initialisation: they belong to the source's task.

    Args:
        source: Names and tensors of the checkpoint.
        network: The target; it is not changed.
        source_channels: Names of the checkpoint's input channels.
        target_channels: Names of the target's input channels.
    """
    ledger = Ledger()
    groups, stem, tensors = name_groups(network), stem_of(network), network.state_dict()
    mixture, rule = channel_mixture(source_channels, target_channels)
    same_channels = torch.equal(mixture, torch.eye(len(mixture))) and len(source_channels) == len(target_channels)
    for name, names in groups.items():
        wanted, given = tensors[name], effective(names, source)
        state, why, value = "copied", "", given
        if HEADS in name:
            state, why, value = "initialised", "heads belong to the task", None
        elif given is None:
            state, why = "mismatch", f"not in the checkpoint (target: {_shape(wanted)})"
        elif name.startswith(stem) and _reads_image(given, wanted, mixture) and not same_channels:
            value, state, why = adapt_input_channels(given, mixture), "adapted", f"input channels {rule}"
        elif given.shape != wanted.shape:
            state, why, value = "mismatch", f"checkpoint {_shape(given)}, target {_shape(wanted)}", None
        if value is not None:
            ledger.values[name] = value
        ledger.lines.append(Line(name, part(name, stem), wanted.numel(), state, why))
    known = {name for names in groups.values() for name in names}
    ledger.unused = [name for name in source if name not in known]
    return ledger


def _reads_image(given: torch.Tensor, wanted: torch.Tensor, mixture: torch.Tensor) -> bool:
    """Whether both are weights of the first convolution and differ at most in the number of input channels."""
    if given.ndim < 4 or given.ndim != wanted.ndim:
        return False
    same = given.shape[0] == wanted.shape[0] and given.shape[2:] == wanted.shape[2:]
    return same and tuple(mixture.shape) == (wanted.shape[1], given.shape[1])


def _shape(tensor: torch.Tensor) -> str:
    return "(" + ", ".join(map(str, tensor.shape)) + ")"
