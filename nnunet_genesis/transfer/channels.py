"""First convolution of one set of input channels → of another set."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def channel_mixture(source: Sequence[str], target: Sequence[str]) -> tuple[torch.Tensor, str]:
    """How much of each source channel's filter goes into each target channel's filter.

    - Every target channel has a namesake in the source: it takes that one's filter.
    - As many channels, but other names: by position.
    - Otherwise: every target channel takes the sum of all source filters divided by the number of target channels. A
      patch that holds the same image in every channel then gives the response that it gave in the source.

    Args:
        source: Channel names that the checkpoint was trained on, e.g. ("T1", "T2").
        target: Channel names of the target dataset.

    Returns:
        Matrix (target channels, source channels) and the rule in words.
    """
    ours, theirs = [name.casefold() for name in target], [name.casefold() for name in source]
    if len(set(theirs)) == len(theirs) and set(ours) <= set(theirs):
        mixture = torch.tensor([[float(name == other) for other in theirs] for name in ours])
        return mixture, "by name"
    if len(ours) == len(theirs):
        return torch.eye(len(ours)), "by position"
    mixture = torch.full((len(ours), len(theirs)), 1 / len(ours))
    return mixture, f"sum of {len(theirs)} over {len(ours)} channels"


def adapt_input_channels(weight: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
    """Convolution weight (out, source channels, *kernel) → (out, target channels, *kernel), same dtype."""
    mixed = torch.einsum("oi...,ti->ot...", weight.double(), mixture.double())
    return mixed.to(weight.dtype)
