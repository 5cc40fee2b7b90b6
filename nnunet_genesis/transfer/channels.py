"""First convolution of one set of input channels → of another set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from nnunet_genesis.networks.pretrained import UNNAMED, PretrainedNetwork
from nnunet_genesis.nnunet_dataset import PREVIOUS_STAGE


class ChannelMixture(NamedTuple):
    """How much of each source channel's filter goes into each target channel's: (target, source); the rule in words."""

    matrix: torch.Tensor
    rule: str

    @property
    def identical(self) -> bool:
        """Whether every channel keeps its filter."""
        return self.matrix.shape[0] == self.matrix.shape[1] and torch.equal(self.matrix, torch.eye(len(self.matrix)))


def channel_mixture(source: Sequence[str], target: Sequence[str]) -> ChannelMixture:
    """Match input channels by their names.

    - Some names are common: those channels take their namesake's filter; the target's others start with zeros, so that
      the network starts by ignoring them (and learns to use them: zero weights have gradients).
    - No name is common, as many channels: by position.
    - Otherwise: every target channel takes the sum of all source filters divided by the number of target channels. A
      patch that holds the same image in every channel then gives the response that it gave in the source.

    A name that occurs more than once, equally often on both sides, is matched in order; not equally often, not at all.
    Labels of a cascade's first stage take their namesake's filter or, where there is none, zeros: the network starts
    as the one without a cascade. As many unnamed channels as the target has with its labels are taken by position.

    Args:
        source: Channel names that the checkpoint was trained on, e.g. ("T1", "T2").
        target: Channel names of the target dataset.
    """
    source, target = [name.casefold() for name in source], [name.casefold() for name in target]
    if len(target) == len(source) and all(name.startswith(UNNAMED) for name in source):
        return ChannelMixture(torch.eye(len(target)), "by position")
    rows, columns = _images(target), _images(source)
    images, rule = _image_mixture([source[i] for i in columns], [target[i] for i in rows])
    if len(rows) == len(target) and len(columns) == len(source):
        return ChannelMixture(images, rule)
    matrix = torch.zeros(len(target), len(source))
    matrix[torch.tensor(rows)[:, None], torch.tensor(columns)] = images
    for row in set(range(len(target))) - set(rows):
        matrix[row] = torch.tensor([float(name == target[row]) for name in source])
    return ChannelMixture(matrix, f"{rule}, labels of the previous stage by name or zero")


def channel_limit(matrix: torch.Tensor, source: Sequence[str]) -> str:
    """For which images the adapted convolution responds as the source's did, in words; "" for all."""
    if bool(((matrix != 0).sum(1) > 1).any()) or bool(((matrix != 0) & (matrix != 1)).any()):
        return "input channels: the same response to images that hold the same in every channel"
    dropped = [name for name, column in zip(source, matrix.T, strict=True) if not column.any()]
    if dropped:
        return f"input channels: the same response to images without {', '.join(dropped)} (zero)"
    return ""


def channel_remark(source: PretrainedNetwork, channels: Sequence[str], rule: str) -> list[str]:
    """How input channels were matched, in words, unless all have the same names in the same order."""
    before, now = source.channel_labels, ", ".join(channels)
    if [name.casefold() for name in before] == [name.casefold() for name in channels]:
        return []
    if source.channels is None:
        return [f"the checkpoint does not name its {len(before)} input channel(s); assumed for {now}: {rule}"]
    return [f"input channels {now} for {', '.join(before)}: {rule}"]


def adapt_input_channels(weight: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Convolution weight (out, source channels, *kernel) → (out, target channels, *kernel), float32 or double."""
    mixed = torch.einsum("oi...,ti->ot...", weight.double(), matrix.double())
    return mixed.to(torch.promote_types(weight.dtype, torch.float32))


def _images(names: Sequence[str]) -> list[int]:
    return [position for position, name in enumerate(names) if not name.startswith(PREVIOUS_STAGE)]


def _image_mixture(source: Sequence[str], target: Sequence[str]) -> tuple[torch.Tensor, str]:
    """The matrix for channels that hold images, and the rule; names in lower case."""
    matrix = torch.zeros(len(target), len(source))
    for name in set(target):
        here, there = ([i for i, other in enumerate(names) if other == name] for names in (target, source))
        if len(here) == len(there):
            matrix[here, there] = 1
    named = matrix.any(1)
    if named.any():
        return matrix, "by name" if named.all() else "by name, others zero"
    if len(target) == len(source):
        return torch.eye(len(target)), "by position"
    return torch.full_like(matrix, 1 / len(target)), f"sum of {len(source)} over {len(target)} channels"
