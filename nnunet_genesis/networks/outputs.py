"""dataset.json → what each output of a segmentation network stands for; rows of heads that a training starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nnunet_genesis.errors import printable

BACKGROUND, IGNORE = 0, "ignore"
"""nnU-Net's value of what is no label, and its name for voxels that no training looks at."""

KEPT_ROWS = "kept_rows"
"""In a file of transferred weights: tensor of a head → rows that come from the checkpoint."""
SHOWN = 8
"""As many names of labels are printed."""


@dataclass(frozen=True)
class Outputs:
    """The rows of a segmentation network's heads.

    Attributes:
        names: Of labels or regions, in the order of the rows.
        regions: Whether they are regions, which may overlap (each has a sigmoid), or labels (one softmax over all).
    """

    names: Sequence[str]
    regions: bool

    def __str__(self) -> str:
        """In words."""
        kind = "regions" if self.regions else "labels"
        return f"{len(self.names)} {kind} ({listed(self.names)})"


def listed(names: Sequence[str]) -> str:
    """The first names of labels, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(printable(name, 100) for name in names[:SHOWN]) + more


def outputs_of(dataset_json: Mapping[str, Any]) -> Outputs | None:
    """The outputs of the network that nnU-Net builds for a dataset; None if it names none but the background.

    Labels come in the order of their values, the background among them; regions in the order of the file, without the
    background. Of two names of one label the first counts.
    """
    labels = dataset_json.get("labels")
    if not isinstance(labels, Mapping):
        return None
    values = {str(name): _values(value) for name, value in labels.items() if name != IGNORE}
    if not values or not all(values.values()):
        return None
    if any(isinstance(value, list | tuple) and len(value) > 1 for value in labels.values()):
        return Outputs([name for name, parts in values.items() if set(parts) != {BACKGROUND}], True)
    names: dict[int, str] = {}
    for name, (value, *_) in values.items():
        names.setdefault(value, name)
    return Outputs([names[value] for value in sorted(names)], False) if len(names) > 1 else None


def _values(value: Any) -> list[int]:
    """The values of a label or region; empty if they are no whole numbers."""
    parts = value if isinstance(value, list | tuple) else [value]
    try:
        return [int(part) for part in parts]
    except (TypeError, ValueError, OverflowError):
        return []


def with_kept_rows(own: torch.Tensor, given: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """A head's tensor with some rows of another one of its shape.

    Raises:
        ValueError: Shapes differ, or there is no such row.
    """
    if own.shape != given.shape or not all(isinstance(row, int) and 0 <= row < len(own) for row in rows):
        raise ValueError(f"rows {list(rows)[:5]} of {tuple(given.shape)} for {tuple(own.shape)}")
    found = own.clone()
    found[list(rows)] = given[list(rows)].to(own)
    return found
