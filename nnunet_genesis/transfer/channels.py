"""First convolution of one set of input channels → of another set."""

from __future__ import annotations

from collections.abc import Sequence

import torch

PREVIOUS_STAGE = "previous stage: "
"""Begins the name of an input channel that holds a label of a cascade's first stage, 0 or 1."""


def channel_mixture(source: Sequence[str], target: Sequence[str]) -> tuple[torch.Tensor, str]:
    """How much of each source channel's filter goes into each target channel's filter.

    - Every target channel has a namesake in the source: it takes that one's filter.
    - As many channels, but other names: by position.
    - Otherwise: every target channel takes the sum of all source filters divided by the number of target channels. A
      patch that holds the same image in every channel then gives the response that it gave in the source.

    Labels of a cascade's first stage take their namesake's filter or, where there is none, zeros: the network starts
    as the one without a cascade.

    Args:
        source: Channel names that the checkpoint was trained on, e.g. ("T1", "T2").
        target: Channel names of the target dataset.

    Returns:
        Matrix (target channels, source channels) and the rule in words.
    """
    ours, theirs = [name.casefold() for name in target], [name.casefold() for name in source]
    rows, columns = _images(ours), _images(theirs)
    images, rule = _image_mixture([theirs[i] for i in columns], [ours[i] for i in rows])
    if len(rows) == len(ours) and len(columns) == len(theirs):
        return images, rule
    mixture = torch.zeros(len(ours), len(theirs))
    mixture[torch.tensor(rows)[:, None], torch.tensor(columns)] = images
    for row in set(range(len(ours))) - set(rows):
        mixture[row] = torch.tensor([float(name == ours[row]) for name in theirs])
    return mixture, f"{rule}, labels of the previous stage by name or zero"


def channel_limit(mixture: torch.Tensor, source: Sequence[str]) -> str:
    """For which images the adapted convolution responds as the source's did, in words; "" for all."""
    if bool(((mixture != 0).sum(1) > 1).any()) or bool(((mixture != 0) & (mixture != 1)).any()):
        return "input channels: the same response to images that hold the same in every channel"
    dropped = [name for name, column in zip(source, mixture.T, strict=True) if not column.any()]
    if dropped:
        return f"input channels: the same response to images without {', '.join(dropped)} (zero)"
    return ""


def adapt_input_channels(weight: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
    """Convolution weight (out, source channels, *kernel) → (out, target channels, *kernel), same dtype."""
    mixed = torch.einsum("oi...,ti->ot...", weight.double(), mixture.double())
    return mixed.to(weight.dtype)


def _images(names: Sequence[str]) -> list[int]:
    return [position for position, name in enumerate(names) if not name.startswith(PREVIOUS_STAGE)]


def _image_mixture(theirs: Sequence[str], ours: Sequence[str]) -> tuple[torch.Tensor, str]:
    """The matrix for channels that hold images; names in lower case."""
    if len(set(theirs)) == len(theirs) and set(ours) <= set(theirs):
        mixture = torch.tensor([[float(name == other) for other in theirs] for name in ours])
        return mixture, "by name"
    if len(ours) == len(theirs):
        return torch.eye(len(ours)), "by position"
    mixture = torch.full((len(ours), len(theirs)), 1 / len(ours))
    return mixture, f"sum of {len(theirs)} over {len(ours)} channels"
