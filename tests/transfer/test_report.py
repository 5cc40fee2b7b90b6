"""Every tensor of the target has one line; what was copied gives the same outputs."""

from __future__ import annotations

import json

import pytest
import torch

from nnunet_genesis.errors import TransferError
from nnunet_genesis.networks.tied_names import effective, name_groups
from nnunet_genesis.transfer.channels import (
    PREVIOUS_STAGE,
    UNNAMED,
    adapt_input_channels,
    channel_limit,
    channel_mixture,
)
from nnunet_genesis.transfer.matching import match
from tests.transfer.networks import architecture, build, names, source, unet


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("dim", [2, 3])
def test_same_architecture_is_copied_whole_and_gives_the_same_features(kind, dim):
    trained, target = unet(kind, classes=1, dim=dim), unet(kind, classes=3, dim=dim, seed=1)
    ledger = match(source(architecture(kind, dim), trained, names(1)), target, names(1))
    assert sum(line.parameters for line in ledger.lines) == sum(p.numel() for p in target.parameters())
    assert len({line.name for line in ledger.lines}) == len(ledger.lines)
    assert ledger.coverage == 1
    assert ledger.share("segmentation heads", "initialised") == 1
    assert not ledger.unused
    heads = target.decoder.seg_layers[-1].weight.clone()
    ledger.apply(target)
    assert torch.equal(heads, target.decoder.seg_layers[-1].weight)
    target.decoder.seg_layers = trained.decoder.seg_layers
    image = torch.randn(1, 1, *[16] * dim)
    assert torch.equal(trained(image), target(image))


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize(("given", "wanted"), [(1, 4), (4, 1), (2, 3), (3, 2)])
def test_other_channel_counts_keep_the_response_to_repeated_images(kind, given, wanted):
    trained, target = unet(kind, given), unet(kind, wanted, seed=1)
    ledger = match(source(architecture(kind), trained, names(given)), target, [f"new {i}" for i in range(wanted)])
    assert list(ledger.limits) == ["input channels: the same response to images that hold the same in every channel"]
    assert ledger.coverage == 1
    assert ledger.share("stem", "adapted") > 0
    ledger.apply(target)
    target.decoder.seg_layers = trained.decoder.seg_layers
    image = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(
        trained(image.repeat(1, given, 1, 1, 1)), target(image.repeat(1, wanted, 1, 1, 1)), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_channels_follow_their_names(kind):
    trained, target = unet(kind, 3), unet(kind, 2, seed=1)
    ledger = match(source(architecture(kind), trained, ["FLAIR", "T1", "T2"]), target, ["t2", "flair"])
    assert list(ledger.limits) == ["input channels: the same response to images without T1 (zero)"]
    ledger.apply(target)
    target.decoder.seg_layers = trained.decoder.seg_layers
    image = torch.randn(1, 2, 16, 16, 16)
    full = torch.stack([image[:, 1], torch.zeros_like(image[:, 1]), image[:, 0]], 1)
    torch.testing.assert_close(trained(full), target(image), rtol=1e-3, atol=1e-3)


NAMED = [  # source, target, position in the source of each target channel's filter (None: zeros), rule
    ("T1 T2", "T2 T1", [1, 0], "by name"),
    ("T1 T2", "a b", [0, 1], "by position"),
    ("T1 T2", "T2 FLAIR", [1, None], "by name, others zero"),
    ("T1 T2 FLAIR", "t1 t2 flair CT", [0, 1, 2, None], "by name, others zero"),
    ("T1", "T2 T1 FLAIR", [None, 0, None], "by name, others zero"),
    ("noNorm noNorm", "noNorm noNorm", [0, 1], "by name"),
    ("CT noNorm noNorm", "noNorm noNorm MR", [1, 2, None], "by name, others zero"),
]


@pytest.mark.parametrize(("given", "wanted", "filters", "rule"), NAMED)
def test_namesakes_keep_their_filters_and_other_channels_start_at_zero(given, wanted, filters, rule):
    theirs, ours = given.split(), wanted.split()
    weight = torch.randn(4, len(theirs), 3, 3, 3)
    mixture, said = channel_mixture(theirs, ours)
    assert said == rule
    adapted = adapt_input_channels(weight, mixture)
    for channel, filter_ in enumerate(filters):
        assert torch.equal(adapted[:, channel], 0 * weight[:, 0] if filter_ is None else weight[:, filter_])
    dropped = [name for position, name in enumerate(theirs) if position not in filters]
    limit = f"input channels: the same response to images without {', '.join(dropped)} (zero)"
    assert channel_limit(mixture, theirs) == (limit if dropped else "")


@pytest.mark.parametrize(("given", "wanted"), [("CT", "CT CT"), ("CT CT", "CT"), ("T1 T2", "a b c"), ("T1", "a a")])
def test_otherwise_all_channels_are_alike_and_none_is_exact(given, wanted):
    theirs, ours = given.split(), wanted.split()
    mixture, rule = channel_mixture(theirs, ours)
    assert rule == f"sum of {len(theirs)} over {len(ours)} channels"
    weight = torch.randn(4, len(theirs), 3, 3, 3)
    torch.testing.assert_close(adapt_input_channels(weight, mixture).sum(1), weight.sum(1))
    assert (
        channel_limit(mixture, theirs)
        == "input channels: the same response to images that hold the same in every channel"
    )


@pytest.mark.parametrize(
    ("given", "filters"),
    [
        (None, [0, 1, 2]),  # unnamed: by position, labels too
        (["MR", f"{PREVIOUS_STAGE}2"], [0, None, 1]),
        (["MR", f"{PREVIOUS_STAGE}1", f"{PREVIOUS_STAGE}2"], [0, 1, 2]),
        (["MR", "PET", "CT"], [2, None, None]),  # labels never take the filter of an image
        (["MR"], [0, None, None]),
    ],
)
def test_labels_of_a_cascade_take_filters_of_labels_only(given, filters):
    theirs = given or [f"{UNNAMED}{i}" for i in range(3)]
    mixture, _ = channel_mixture(theirs, ["CT", f"{PREVIOUS_STAGE}1", f"{PREVIOUS_STAGE}2"])
    expected = torch.tensor([[float(filter_ == i) for i in range(len(theirs))] for filter_ in filters])
    assert torch.equal(mixture, expected)


def test_filters_of_labels_are_not_those_of_images():
    mixture, rule = channel_mixture(["MR", f"{PREVIOUS_STAGE}1"], ["CT", "PET"])
    assert torch.equal(mixture, torch.tensor([[0.5, 0], [0.5, 0]]))
    assert rule == "sum of 1 over 2 channels, labels of the previous stage by name or zero"


def test_other_widths_start_anew_and_too_little_coverage_stops():
    target = build(architecture(features=(4, 6, 10)), seed=1)
    ledger = match(source(architecture(), unet(), names(1)), target, names(1))
    anew = {line.name for line in ledger.lines if line.state == "initialised"}
    assert {name for name in anew if name.startswith("encoder")} == {
        f"encoder.stages.2.0.convs.{c}.{kind}"
        for c in (0, 1)
        for kind in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")
    }
    assert anew & {"decoder.transpconvs.0.weight"}
    assert set(ledger.unused) == {name for name in anew if ".seg_layers." not in name}
    ledger.refuse_low_coverage(ledger.encoder_coverage)
    with pytest.raises(
        TransferError,
        match=r"Only \d\d\.\d% of the encoder's .* 60% asked for: channels .*8 in, 8 out.* --min-coverage",
    ):
        ledger.refuse_low_coverage(0.6)


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize(
    ("wanted", "resize", "suggested"),
    [
        ({"features": (4, 6, 10)}, False, True),
        ({"features": (6, 10, 12)}, True, False),  # they are resized already
        ({"features": (4, 6, 8, 8, 8, 8)}, False, False),  # stages are missing, widths are as they were
        ({"features": (4, 6, 10, 12)}, False, True),
        ({"features": (4, 6, 10), "norm_op": "torch.nn.BatchNorm3d", "norm_op_kwargs": {}}, False, True),
    ],
)
def test_other_widths_are_suggested_where_they_help(kind, wanted, resize, suggested):
    """And the message says how much they would bring: exactly what is then taken over."""
    given = source(architecture(kind), unet(kind), names(1))
    target = build(architecture(kind, **wanted), seed=1)
    with pytest.raises(TransferError) as error:
        match(given, target, names(1), resize).refuse_low_coverage(0.99)
    stages = len(wanted["features"])
    assert f"asked for: {'channels (' if stages == 3 else 'the checkpoint has 3 stages'}" in str(error.value)
    resized = match(given, target, names(1), True).encoder_coverage
    promise = f", allow other widths (--resize-widths, which makes it {resized:.1%}), or lower --min-coverage."
    assert str(error.value).endswith(promise if suggested else "(nnunet_genesis plan --like), or lower --min-coverage.")


@pytest.mark.parametrize(("given", "wanted"), [("plain", "residual"), ("residual", "plain")])
def test_the_other_kind_of_encoder_is_refused(given, wanted):
    with pytest.raises(
        TransferError, match=r"holds a .*UNet.*, the target's plans ask for a .*UNet.*no counterpart in the blocks"
    ):
        match(source(architecture(given), unet(given), names(1)), unet(wanted), names(1))


def test_channels_taken_by_position_are_named():
    ledger = match(source(architecture(), unet(channels=2), ["T1", "T2"]), unet(channels=2), ["PET", "FLAIR"])
    assert ledger.remarks == ["input channels PET, FLAIR for T1, T2: by position"]
    assert ledger.remarks[0] in ledger.table()
    assert match(source(architecture(), unet(), ["CT"]), unet(), ["ct"]).remarks == []
    with pytest.raises(TransferError, match="2 names for 1 input channels"):
        match(source(architecture(), unet(), ["CT"]), unet(), ["CT", "PET"])


def test_names_that_share_a_tensor_form_a_group():
    network = unet()
    groups = name_groups(network)
    assert len(groups) == len(list(network.parameters()))
    assert list(groups) == [name for name, _ in network.named_parameters()]
    first = groups["encoder.stages.0.0.convs.0.conv.weight"]
    assert len(first) == 4
    assert first[-1] == "decoder.encoder.stages.0.0.convs.0.all_modules.0.weight"


def test_disagreeing_names_are_read_as_pytorch_reads_them():
    network, reference = unet(), unet(seed=2)
    weights = {name: torch.randn_like(tensor) for name, tensor in network.state_dict().items()}
    reference.load_state_dict(weights)
    for name, group in name_groups(network).items():
        assert torch.equal(effective(group, weights), reference.state_dict()[name])


def test_table_and_report_name_every_part_with_its_share():
    ledger = match(source(architecture(), unet(), ["CT"]), unet(channels=2, seed=1), ["T1", "T2"])
    table, report = ledger.table(), json.loads(json.dumps(ledger.report()))
    for part in ("stem", "encoder stage 0", "encoder stage 2", "decoder at stage 1", "segmentation heads"):
        assert part in table
        assert (
            report["parts"][part]["copied"] + report["parts"][part]["adapted"] + report["parts"][part]["initialised"]
            == 1
        )
    assert "sum of 1 over 2 channels" in table
    assert "100.0% of the encoder and 100.0% of the network" in report["verdict"]
    assert report["exact"] is False
    assert sum(part["parameters"] for part in report["parts"].values()) == sum(
        p.numel() for p in unet(channels=2).parameters()
    )
    assert len(report["tensors"]) == len(list(unet().parameters()))


def test_values_that_do_not_arrive_are_an_error():
    """As where a network hands out copies of its tensors in its state dict."""
    trained, target = unet(), unet(seed=1)
    ledger = match(source(architecture(), trained, names(1)), target, names(1))

    def hand_out_copies(_module, tensors, *_):
        tensors.update({name: tensor.clone() for name, tensor in tensors.items()})

    handle = target.register_state_dict_post_hook(hand_out_copies)
    with pytest.raises(TransferError, match=r"The value of encoder\.\S+ did not arrive in the network"):
        ledger.apply(target)
    handle.remove()
    ledger.apply(target)
    ledger.values["encoder.stages.0.0.convs.0.conv.bias"] = torch.zeros(1)  # would be spread over all four
    with pytest.raises(TransferError, match=r"The value of encoder\.stages\.0\.0\.convs\.0\.conv\.bias did not"):
        ledger.apply(target)
