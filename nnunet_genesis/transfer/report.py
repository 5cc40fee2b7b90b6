"""Records of all tensors of the target → shares, table, verdict, report in JSON, and weights in the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from torch import nn

from nnunet_genesis.errors import TransferError
from nnunet_genesis.networks.layout import HEADS, STEM
from nnunet_genesis.transfer.records import State, TensorRecord

ROUNDING = 1e-5
"""Largest relative difference of features that float32 explains: other kernels may be summed in another order."""


@dataclass
class TransferReport:
    """The whole transfer.

    Attributes:
        records: One per tensor of the target.
        unused: Names of source tensors without a use, segmentation heads aside → number of parameters.
        source_parameters: Parameters of the source, segmentation heads aside.
        limits: What is not as in the source → the parts where.
        remarks: What was assumed about the source, stages aligned at another resolution, how channels were matched.
        difference: Largest relative difference between what stages of both networks give out; None if not compared.
        labels: "kept", "new" and "dropped" → names of labels; empty if heads were not matched by name.
        head_rows: Rows of the target's heads whose labels were kept.
    """

    records: list[TensorRecord] = field(default_factory=list)
    unused: dict[str, int] = field(default_factory=dict)
    source_parameters: int = 0
    limits: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    difference: float | None = None
    labels: dict[str, list[str]] = field(default_factory=dict)
    head_rows: list[int] = field(default_factory=list)

    def add_limit(self, text: str, part: str) -> None:
        """Enter what is not as in the source in a part; "" is nothing."""
        if text and part not in self.limits.setdefault(text, []):
            self.limits[text].append(part)

    @property
    def parts(self) -> list[str]:
        """Stem, encoder stages, decoder stages, heads: in the order of the network."""
        return list(dict.fromkeys(record.part for record in self.records))

    @property
    def kept_rows(self) -> dict[str, list[int]]:
        """Tensor of a segmentation head → its rows that come from the source."""
        heads = [record for record in self.records if record.part == HEADS and record.value is not None]
        return {record.name: list(self.head_rows) for record in heads}

    def share(self, part: str, state: State) -> float:
        """Share of a part's parameters in a state, 0 to 1."""
        return _share(self._of(part), state)

    @property
    def coverage(self) -> float:
        """Share of the parameters, heads aside, that come from the source."""
        return _taken(self._without_heads)

    @property
    def encoder_coverage(self) -> float:
        """Share of the parameters of stem and encoder that come from the source."""
        return _taken(self._encoder)

    @property
    def exact(self) -> bool:
        """Whether no limit is known, and both networks were run and agree within `ROUNDING`."""
        return not self.limits and self.difference is not None and self.difference <= ROUNDING

    @property
    def verdict(self) -> str:
        """What the network is before its first training step, in words."""
        shares = f"{self.encoder_coverage:.1%} of the encoder and {self.coverage:.1%} of the network"
        return f"{shares}, heads aside, come from the checkpoint. {self._likeness}"

    @property
    def _likeness(self) -> str:
        if self.limits:
            limits = [f"  {', '.join(_ranges(parts))}: {text}" for text, parts in self.limits.items()]
            start = "By construction, it computes what the checkpoint's network computes, with these limits:"
            return "\n".join([start, *limits])
        same = "segmentation heads aside, it computes what the checkpoint's network computes"
        if self.difference is None:
            return f"By construction, {same}; they were not compared."
        if self.exact:
            rounding = f"differ by rounding only (at most {self.difference:.1g} of the largest)"
            how = rounding if self.difference else "are equal"
            return f"{same.capitalize()}: run on the same noise, the features of all stages {how}."
        return (
            "It should compute what the checkpoint's network computes, but does not: run on the same noise, features "
            f"differ by {self.difference:.2g} of the largest. Look into it before you train; please report it."
        )

    def table(self) -> str:
        """The shares per part as text, with the reasons for what was not copied, and the verdict."""
        rows = [f"{'part':<20}{'parameters':>12}{'copied':>10}{'adapted':>10}{'initialised':>13}  reasons"]
        for part in self.parts:
            rows.append(_row(part, self._of(part), "; ".join(_reasons(self._of(part)))))
        rows.append(_row("all but the heads", self._without_heads, ""))
        if self.unused:
            share = sum(self.unused.values()) / max(self.source_parameters, 1)
            rows.append(
                f"{len(self.unused)} tensors of the checkpoint ({share:.1%} of its parameters) are not used, "
                f"e.g. {next(iter(self.unused))}"
            )
        return "\n".join([*(row.rstrip() for row in rows), *self.remarks, self.verdict])

    def json(self) -> dict[str, Any]:
        """Everything that the table says, and every record, in plain types."""
        parts = {
            part: {
                "parameters": sum(record.parameters for record in self._of(part)),
                **{state.value: round(self.share(part, state), 6) for state in State},
                "reasons": _reasons(self._of(part)),
            }
            for part in self.parts
        }
        return {
            "verdict": self.verdict,
            "exact": self.exact,
            "largest_difference": self.difference if isfinite(self.difference or 0) else None,
            "limits": self.limits,
            "remarks": self.remarks,
            "encoder_coverage": round(self.encoder_coverage, 6),
            "coverage": round(self.coverage, 6),
            "labels": self.labels,
            "parts": parts,
            "source_parameters": self.source_parameters,
            "unused": self.unused,
            "tensors": [_plain(record) for record in self.records],
        }

    def refuse_low_coverage(self, minimum: float) -> None:
        """Stop where too little of the encoder comes from the source.

        Args:
            minimum: Share of the parameters of stem and encoder, 0 to 1.

        Raises:
            TransferError: Says how much it is and why.
        """
        if self.encoder_coverage < minimum:
            reasons = _reasons([record for record in self._encoder if record.taken < record.parameters])
            gain = sum(record.resizable for record in self._encoder)
            whole = self.encoder_coverage + gain / sum(record.parameters for record in self._encoder)
            widths = f"allow other widths (--resize-widths, which makes it {whole:.1%}), " if gain else ""
            raise TransferError(
                f"Only {self.encoder_coverage:.1%} of the encoder's parameters would come from the checkpoint, fewer "
                f"than the {minimum:.0%} asked for: {'; '.join(reasons[:3])}. Use a checkpoint that is closer to the "
                f"target's plans (nnunet_genesis plan --like), {widths}or lower --min-coverage."
            )

    def apply(self, network: nn.Module) -> None:
        """Write the values into the network, in place; a tensor's other names share its memory."""
        values = {record.name: record.value for record in self.records if record.value is not None}
        network.load_state_dict(values, strict=False)

    def _of(self, part: str) -> list[TensorRecord]:
        return [record for record in self.records if record.part == part]

    @property
    def _without_heads(self) -> list[TensorRecord]:
        return [record for record in self.records if record.part != HEADS]

    @property
    def _encoder(self) -> list[TensorRecord]:
        return [record for record in self.records if record.part == STEM or record.part.startswith("encoder")]


def _plain(record: TensorRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "part": record.part,
        "parameters": record.parameters,
        "parameters_taken": record.taken,
        "state": record.state.value,
        "reason": record.reason,
    }


def _row(part: str, records: Sequence[TensorRecord], reasons: str) -> str:
    copied, adapted, initialised = (f"{_share(records, state):.1%}" for state in State)
    count = sum(record.parameters for record in records)
    return f"{part:<20}{count:>12,}{copied:>10}{adapted:>10}{initialised:>13}  {reasons}"


def _share(records: Sequence[TensorRecord], state: State) -> float:
    """Share of the parameters in a state; what the source does not determine counts as initialised."""
    if state is State.INITIALISED:
        return 1 - _taken(records)
    return _taken([record for record in records if record.state is state], records)


def _taken(records: Sequence[TensorRecord], of: Sequence[TensorRecord] | None = None) -> float:
    """Share of the parameters, by default of these records, that the source determines."""
    total = sum(record.parameters for record in (records if of is None else of))
    return sum(record.taken for record in records) / total if total else 0.0


def _reasons(records: Sequence[TensorRecord]) -> list[str]:
    """Different reasons in words, those of the most parameters first."""
    parameters: dict[str, int] = {}
    for record in records:
        if record.reasons:
            parameters[record.reason] = parameters.get(record.reason, 0) + record.parameters
    return sorted(parameters, key=lambda reason: -parameters[reason])


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
