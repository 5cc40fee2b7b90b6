"""Names of a checkpoint's outputs and of a target's → which rows of the segmentation heads are carried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from nnunet_genesis.networks.layout import Layer
from nnunet_genesis.networks.outputs import Outputs, listed
from nnunet_genesis.transfer.layers import record_of, start_anew, widths_changed
from nnunet_genesis.transfer.records import Cause, Reason, State, TensorRecord


@dataclass(frozen=True)
class HeadRows:
    """How rows are matched.

    Attributes:
        rows: Row of the target → row of the checkpoint.
        names: "kept", "new" (of the target) and "dropped" (of the checkpoint) → names; empty if heads start anew.
        remark: The same in words, or why heads start anew; "" where the checkpoint's outputs have no names.
    """

    rows: Mapping[int, int] = field(default_factory=dict)
    names: Mapping[str, list[str]] = field(default_factory=dict)
    remark: str = ""


def head_rows(source: Outputs | None, target: Outputs | None) -> HeadRows:
    """Match outputs by name, without regard to case; never by number.

    A name that occurs twice on one side is not matched. Regions and labels are not matched with each other: what a
    sigmoid reads is not what a softmax reads.
    """
    if source is None or target is None:
        return HeadRows()
    if source.regions != target.regions:
        kinds = ["regions (a sigmoid each)" if each.regions else "labels (one softmax)" for each in (source, target)]
        return HeadRows(remark=f"heads start anew: the checkpoint's outputs are {kinds[0]}, the target's {kinds[1]}")
    there, here = (_rows_by_name(outputs.names) for outputs in (source, target))
    rows = {row: there[name] for name, row in here.items() if name in there}
    names = {
        "kept": [target.names[row] for row in rows],
        "new": [name for row, name in enumerate(target.names) if row not in rows],
        "dropped": [name for row, name in enumerate(source.names) if row not in rows.values()],
    }
    if not rows:
        return HeadRows({}, names, f"heads start anew: no name of a label in common; {_in_words(names)}")
    return HeadRows(rows, names, f"heads by names of labels: {_in_words(names)}")


def _rows_by_name(names: Sequence[str]) -> dict[str, int]:
    """Names that occur once, in lower case → row."""
    lower = [name.strip().casefold() for name in names]
    count = Counter(lower)
    return {name: row for row, name in enumerate(lower) if count[name] == 1}


def _in_words(names: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{state} {listed(each)}" for state, each in names.items() if each)


def keep_rows(
    source: Layer | None, target: Layer, tensors: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor],
    rows: Mapping[int, int], other_widths: bool,
) -> list[TensorRecord]:  # fmt: skip
    """Carry rows of a head, whose kernel is 1; other rows stay as the target was initialised.

    Args:
        source: The checkpoint's head of this resolution, None if it has none.
        target: The target's.
        tensors: The checkpoint's `weight` (outputs, width, *ones) and `bias`; not changed.
        initial: The target's, as initialised; not changed.
        rows: Row of the target → row of the checkpoint.
        other_widths: Whether rows that read another number of features are carried, by the leading ones.
    """
    if not rows:
        return start_anew(target, initial, Reason(Cause.HEAD))
    if source is None or "weight" not in tensors:
        return start_anew(target, initial, Reason(Cause.NO_TENSOR))
    weight, start = tensors["weight"], initial["weight"]
    if source.inputs != target.inputs and not other_widths:
        return start_anew(target, initial, widths_changed(source, target))
    here, there = list(rows), list(rows.values())
    width = min(weight.shape[1], start.shape[1])
    values = {role: tensor.clone() for role, tensor in initial.items()}
    for value in values.values():
        value[here] = 0  # what the checkpoint's rows do not read, and biases that it lacks
    values["weight"][here, :width] = weight[there, :width].reshape(len(there), width, *start.shape[2:]).to(start)
    if "bias" in tensors:
        values["bias"][here] = tensors["bias"][there].to(start)
    copied = here == there == list(range(len(start))) and weight.shape[:2] == start.shape[:2]
    state, reasons = (State.COPIED, ()) if copied else (State.ADAPTED, (Reason(Cause.LABELS, (len(rows), len(start))),))
    share = len(rows) / len(start)
    return [record_of(target, role, initial, state, reasons, values[role], share) for role in target.tensors]
