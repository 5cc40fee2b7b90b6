"""First convolution of one set of input channels → of another set."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nnunet_genesis.networks.pretrained import UNNAMED
from nnunet_genesis.nnunet_dataset import PREVIOUS_STAGE


def channel_mixture(source: Sequence[str], target: Sequence[str]) -> tuple[torch.Tensor, str]:
    """How much of each source channel's filter goes into each target channel's filter.

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

    Returns:
        Matrix (target channels, source channels) and the rule in words.
    """
    ours, theirs = [name.casefold() for name in target], [name.casefold() for name in source]
    if len(ours) == len(theirs) and all(name.startswith(UNNAMED) for name in theirs):
        return torch.eye(len(ours)), "by position"
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
    """Convolution weight (out, source channels, *kernel) → (out, target channels, *kernel), float32 or double."""
    mixed = torch.einsum("oi...,ti->ot...", weight.double(), mixture.double())
    return mixed.to(torch.promote_types(weight.dtype, torch.float32))


def _images(names: Sequence[str]) -> list[int]:
    return [position for position, name in enumerate(names) if not name.startswith(PREVIOUS_STAGE)]


def _image_mixture(theirs: Sequence[str], ours: Sequence[str]) -> tuple[torch.Tensor, str]:
    """The matrix for channels that hold images; names in lower case."""
    mixture = torch.zeros(len(ours), len(theirs))
    for name in set(ours):
        here, there = ([i for i, other in enumerate(names) if other == name] for names in (ours, theirs))
        if len(here) == len(there):
            mixture[here, there] = 1
    named = mixture.any(1)
    if named.any():
        return mixture, "by name" if named.all() else "by name, others zero"
    if len(ours) == len(theirs):
        return torch.eye(len(ours)), "by position"
    return torch.full_like(mixture, 1 / len(ours)), f"sum of {len(theirs)} over {len(ours)} channels"
