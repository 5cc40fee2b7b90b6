"""What becomes of one tensor of the target, and why, as values; their wording is here alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch


class State(Enum):
    """Where a tensor's value comes from."""

    COPIED = "copied"
    ADAPTED = "adapted"
    INITIALISED = "initialised"


class Cause(Enum):
    """How a tensor was adapted, or why it stays as initialised: the wording, with a {} for each detail."""

    HEAD = "heads belong to the task"
    LABELS = "{} of {} rows by names of labels"
    NO_STAGE = "the checkpoint has {} stages"
    NO_BLOCK = "the checkpoint has fewer blocks in this stage"
    NO_CONVOLUTION = "no such convolution in the checkpoint's block"
    NO_TENSOR = "not in the checkpoint"
    NO_CENTRE = "kernels {} and {} have no common centre"
    IDENTITY = "passes its input on"
    ZERO_RESIDUAL = "adds nothing to its skip"
    AXES = "{}D → {}D"
    INPUT_CHANNELS = "input channels {}"
    KERNEL = "kernel {} → {}"
    UP_SAMPLING = "up-sampling {} → {}"
    CHANNELS = "channels {} → {}"
    STRIDE = "stride {} → {}"
    WIDTH = "width {} → {}"
    NO_BIAS = "no bias in the checkpoint: zero"
    NO_TOKEN_BLOCK = "the checkpoint has {} blocks"
    NO_SCALE = "no layer scale in the checkpoint: one"
    CELL = "cells of {} → {} voxels"
    GRID = "{} → {} tokens"
    SHAPE = "{} → {}"
    BIAS_MOVED = "less the bias, which the target lacks"


class Reason(NamedTuple):
    """A cause with its details."""

    cause: Cause
    details: tuple[object, ...] = ()

    def __str__(self) -> str:
        """In words."""
        return self.cause.value.format(*self.details)


@dataclass(frozen=True, eq=False)
class TensorRecord:
    """What happens to one tensor of the target.

    Attributes:
        name: First of its names in the target's state dict.
        part: Stem, a stage of the encoder or decoder, or the heads.
        parameters: Number of its values.
        state: Where they come from.
        reasons: How or why.
        value: What is written; None where it stays as initialised.
        taken: How many parameters the source determines: all of them but in a widened layer.
        resizable: How many it would determine if other widths were asked for.
    """

    name: str
    part: str
    parameters: int
    state: State
    reasons: tuple[Reason, ...] = ()
    value: torch.Tensor | None = None
    taken: int = 0
    resizable: int = 0

    @property
    def reason(self) -> str:
        """All reasons in words."""
        return ", ".join(map(str, self.reasons))
