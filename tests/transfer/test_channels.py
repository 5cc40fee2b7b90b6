"""Input channels are matched by name, by position, or all alike; labels of a cascade by name only."""

from __future__ import annotations

import pytest
import torch

from nnunet_genesis.networks.pretrained import UNNAMED
from nnunet_genesis.nnunet_dataset import PREVIOUS_STAGE
from nnunet_genesis.transfer.channels import adapt_input_channels, channel_limit, channel_mixture

NAMED = [  # source, target, position in the source of each target channel's filter (None: zeros), rule
    ("T1 T2", "T2 T1", [1, 0], "by name"),
    ("T1 T2", "a b", [0, 1], "by position"),
    ("T1 T2", "T2 FLAIR", [1, None], "by name, others zero"),
    ("T1 T2 FLAIR", "t1 t2 flair CT", [0, 1, 2, None], "by name, others zero"),
    ("T1", "T2 T1 FLAIR", [None, 0, None], "by name, others zero"),
    ("noNorm noNorm", "noNorm noNorm", [0, 1], "by name"),
    ("CT noNorm noNorm", "noNorm noNorm MR", [1, 2, None], "by name, others zero"),
]


@pytest.mark.parametrize(("old", "new", "filters", "rule"), NAMED)
def test_namesakes_keep_their_filters_and_other_channels_start_at_zero(old, new, filters, rule):
    theirs, ours = old.split(), new.split()
    weight = torch.randn(4, len(theirs), 3, 3, 3)
    mixture, said = channel_mixture(theirs, ours)
    assert said == rule
    adapted = adapt_input_channels(weight, mixture)
    for channel, filter_ in enumerate(filters):
        assert torch.equal(adapted[:, channel], 0 * weight[:, 0] if filter_ is None else weight[:, filter_])
    dropped = [name for position, name in enumerate(theirs) if position not in filters]
    limit = f"input channels: the same response to images without {', '.join(dropped)} (zero)"
    assert channel_limit(mixture, theirs) == (limit if dropped else "")


@pytest.mark.parametrize(("old", "new"), [("CT", "CT CT"), ("CT CT", "CT"), ("T1 T2", "a b c"), ("T1", "a a")])
def test_otherwise_all_channels_are_alike_and_none_is_exact(old, new):
    theirs, ours = old.split(), new.split()
    mixture, rule = channel_mixture(theirs, ours)
    assert rule == f"sum of {len(theirs)} over {len(ours)} channels"
    weight = torch.randn(4, len(theirs), 3, 3, 3)
    torch.testing.assert_close(adapt_input_channels(weight, mixture).sum(1), weight.sum(1))
    assert (
        channel_limit(mixture, theirs)
        == "input channels: the same response to images that hold the same in every channel"
    )


@pytest.mark.parametrize(
    ("old", "filters"),
    [
        (None, [0, 1, 2]),  # unnamed: by position, labels too
        (["MR", f"{PREVIOUS_STAGE}2"], [0, None, 1]),
        (["MR", f"{PREVIOUS_STAGE}1", f"{PREVIOUS_STAGE}2"], [0, 1, 2]),
        (["MR", "PET", "CT"], [2, None, None]),  # labels never take the filter of an image
        (["MR"], [0, None, None]),
    ],
)
def test_labels_of_a_cascade_take_filters_of_labels_only(old, filters):
    theirs = old or [f"{UNNAMED}{i}" for i in range(3)]
    mixture, _ = channel_mixture(theirs, ["CT", f"{PREVIOUS_STAGE}1", f"{PREVIOUS_STAGE}2"])
    expected = torch.tensor([[float(filter_ == i) for i in range(len(theirs))] for filter_ in filters])
    assert torch.equal(mixture, expected)


def test_filters_of_labels_are_not_those_of_images():
    mixture, rule = channel_mixture(["MR", f"{PREVIOUS_STAGE}1"], ["CT", "PET"])
    assert torch.equal(mixture, torch.tensor([[0.5, 0], [0.5, 0]]))
    assert rule == "sum of 1 over 2 channels, labels of the previous stage by name or zero"
