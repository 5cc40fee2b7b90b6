"""What became of every tensor of the target: lines → shares, table, report, verdict, and weights in the network."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from nnunet_genesis.errors import TransferError
from nnunet_genesis.networks.layout import HEADS, STEM
from nnunet_genesis.networks.tied_names import name_groups

STATES = ("copied", "adapted", "initialised")


@dataclass(frozen=True)
class Line:
    """What happens to one tensor of the target; `state` is copied, adapted or initialised.

    `taken` is the number of its parameters that the source determines: all of them but in a widened layer.
    """

    name: str
    part: str
    parameters: int
    state: str
    why: str
    taken: int


@dataclass
class Ledger:
    """The whole transfer.

    Attributes:
        lines: One per tensor of the target.
        values: First names of the tensors that are written → values; the others stay as initialised.
        resizable: Names of tensors → parameters that would come from the source if other widths were asked for.
        unused: Names of source tensors without a use, segmentation heads aside → number of parameters.
        source_parameters: Parameters of the source, segmentation heads aside.
        limits: What is not as in the source → the parts where.
        remarks: What was assumed about the source, stages aligned at another resolution, how channels were matched.
    """

    lines: list[Line] = field(default_factory=list)
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    resizable: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)
    source_parameters: int = 0
    limits: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def parts(self) -> list[str]:
        """Stem, encoder stages, decoder stages, heads: in the order of the network."""
        return list(dict.fromkeys(line.part for line in self.lines))

    def share(self, of_part: str | None, *states: str) -> float:
        """Share of a part's parameters in one of the states, 0 to 1; of all but the heads if `of_part` is None."""
        lines = [line for line in self.lines if line.part == of_part or (of_part is None and line.part != HEADS)]
        return _share(lines, states)

    @property
    def coverage(self) -> float:
        """Share of the parameters, heads aside, that come from the source."""
        return self.share(None, "copied", "adapted")

    @property
    def encoder_coverage(self) -> float:
        """Share of the parameters of stem and encoder that come from the source."""
        return _share(self._encoder, ("copied", "adapted"))

    @property
    def verdict(self) -> str:
        """What the network is before its first training step, in words."""
        shares = f"{self.encoder_coverage:.1%} of the encoder and {self.coverage:.1%} of the network"
        start = f"{shares}, heads aside, come from the checkpoint"
        if not self.limits:
            return f"{start}. Segmentation heads aside, it computes what the checkpoint's network computed."
        limits = [f"  {', '.join(_ranges(parts))}: {text}" for text, parts in self.limits.items()]
        return "\n".join([f"{start}. It computes what the checkpoint's network computed, with these limits:", *limits])

    def table(self) -> str:
        """The shares per part as text, with the reasons for what was not copied, and the verdict."""
        rows = [f"{'part':<20}{'parameters':>12}{'copied':>10}{'adapted':>10}{'initialised':>13}  why"]
        for name in self.parts:
            reasons = _reasons([line for line in self.lines if line.part == name])
            rows.append(self._row(name, [line for line in self.lines if line.part == name], "; ".join(reasons)))
        rows.append(self._row("all but the heads", [line for line in self.lines if line.part != HEADS], ""))
        if self.unused:
            share = sum(self.unused.values()) / max(self.source_parameters, 1)
            rows.append(
                f"{len(self.unused)} tensors of the checkpoint ({share:.1%} of its parameters) are not used, "
                f"e.g. {next(iter(self.unused))}"
            )
        return "\n".join([*(row.rstrip() for row in rows), *self.remarks, self.verdict])

    def report(self) -> dict[str, Any]:
        """Everything that the table says, and every line, in plain types."""
        parts = {
            name: {
                "parameters": sum(line.parameters for line in self.lines if line.part == name),
                **{state: round(self.share(name, state), 6) for state in STATES},
                "why": _reasons([line for line in self.lines if line.part == name]),
            }
            for name in self.parts
        }
        return {
            "verdict": self.verdict,
            "exact": not self.limits,
            "limits": self.limits,
            "remarks": self.remarks,
            "encoder_coverage": round(self.encoder_coverage, 6),
            "coverage": round(self.coverage, 6),
            "parts": parts,
            "source": {"parameters": self.source_parameters, "unused": self.unused},
            "tensors": [asdict(line) for line in self.lines],
        }

    def refuse_low_coverage(self, minimum: float) -> None:
        """Stop where too little of the encoder comes from the source.

        Args:
            minimum: Share of the parameters of stem and encoder, 0 to 1.

        Raises:
            TransferError: Says how much it is and why.
        """
        if self.encoder_coverage < minimum:
            reasons = _reasons([line for line in self._encoder if line.taken < line.parameters])
            gain = sum(self.resizable[line.name] for line in self._encoder)
            whole = self.encoder_coverage + gain / sum(line.parameters for line in self._encoder)
            widths = f"allow other widths (--resize-widths, which makes it {whole:.1%}), " if gain else ""
            raise TransferError(
                f"Only {self.encoder_coverage:.1%} of the encoder's parameters would come from the checkpoint, fewer "
                f"than the {minimum:.0%} asked for: {'; '.join(reasons[:3])}. Use a checkpoint that is closer to the "
                f"target's plans (nnunet_genesis plan --like), {widths}or lower --min-coverage."
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

    @property
    def _encoder(self) -> list[Line]:
        return [line for line in self.lines if line.part == STEM or line.part.startswith("encoder")]

    def _row(self, name: str, lines: list[Line], why: str) -> str:
        shares = [f"{_share(lines, (state,)):.1%}" for state in STATES]
        count = sum(line.parameters for line in lines)
        return f"{name:<20}{count:>12,}{shares[0]:>10}{shares[1]:>10}{shares[2]:>13}  {why}"


def _share(lines: list[Line], states: tuple[str, ...]) -> float:
    """Share of the parameters in some states; what the source does not determine counts as initialised."""
    total = sum(line.parameters for line in lines)
    part = sum(line.taken for line in lines if line.state in states)
    if "initialised" in states:
        part += sum(line.parameters - line.taken for line in lines)
    return part / total if total else 0.0


def _reasons(lines: list[Line]) -> list[str]:
    """Different reasons, those of the most parameters first."""
    weight: dict[str, int] = {}
    for line in lines:
        if line.why:
            weight[line.why] = weight.get(line.why, 0) + line.parameters
    return sorted(weight, key=lambda why: -weight[why])


def _ranges(parts: list[str]) -> list[str]:
    """`encoder stage 0`, `encoder stage 1`, `encoder stage 2` → `encoder stage 0-2`."""
    levels: dict[str, list[int]] = {}
    for part in parts:
        head, _, level = part.rpartition(" ")
        levels.setdefault(head if level.isdigit() else part, []).extend([int(level)] if level.isdigit() else [])
    return [f"{head} {_spans(sorted(found))}" if found else head for head, found in levels.items()]


def _spans(numbers: list[int]) -> str:
    whole = numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 1
    return f"{numbers[0]}-{numbers[-1]}" if whole else ", ".join(map(str, numbers))
