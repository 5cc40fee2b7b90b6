"""Every tensor of the target has one record; what was copied gives the same outputs."""

from __future__ import annotations

import json

import pytest
import torch

from nnunet_genesis.errors import TransferError
from nnunet_genesis.transfer.matching import match
from nnunet_genesis.transfer.records import State
from tests.transfer.networks import architecture, build, names, source, unet


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("dim", [2, 3])
def test_same_architecture_is_copied_whole_and_gives_the_same_features(kind, dim):
    trained, target = unet(kind, classes=1, dim=dim), unet(kind, classes=3, dim=dim, seed=1)
    report = match(source(architecture(kind, dim), trained, names(1)), target, names(1))
    assert sum(record.parameters for record in report.records) == sum(p.numel() for p in target.parameters())
    assert len({record.name for record in report.records}) == len(report.records)
    assert report.coverage == 1
    assert report.share("segmentation heads", State.INITIALISED) == 1
    assert not report.unused
    heads = target.decoder.seg_layers[-1].weight.clone()
    report.apply(target)
    assert torch.equal(heads, target.decoder.seg_layers[-1].weight)
    target.decoder.seg_layers = trained.decoder.seg_layers
    image = torch.randn(1, 1, *[16] * dim)
    assert torch.equal(trained(image), target(image))


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize(("old", "new"), [(1, 4), (4, 1), (2, 3), (3, 2)])
def test_other_channel_counts_keep_the_response_to_repeated_images(kind, old, new):
    trained, target = unet(kind, old), unet(kind, new, seed=1)
    report = match(source(architecture(kind), trained, names(old)), target, [f"new {i}" for i in range(new)])
    assert list(report.limits) == ["input channels: the same response to images that hold the same in every channel"]
    assert report.coverage == 1
    assert report.share("stem", State.ADAPTED) > 0
    report.apply(target)
    target.decoder.seg_layers = trained.decoder.seg_layers
    image = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(
        trained(image.repeat(1, old, 1, 1, 1)), target(image.repeat(1, new, 1, 1, 1)), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_channels_follow_their_names(kind):
    trained, target = unet(kind, 3), unet(kind, 2, seed=1)
    report = match(source(architecture(kind), trained, ["FLAIR", "T1", "T2"]), target, ["t2", "flair"])
    assert list(report.limits) == ["input channels: the same response to images without T1 (zero)"]
    report.apply(target)
    target.decoder.seg_layers = trained.decoder.seg_layers
    image = torch.randn(1, 2, 16, 16, 16)
    full = torch.stack([image[:, 1], torch.zeros_like(image[:, 1]), image[:, 0]], 1)
    torch.testing.assert_close(trained(full), target(image), rtol=1e-3, atol=1e-3)


def test_other_widths_start_anew_and_too_little_coverage_stops():
    target = build(architecture(features=(4, 6, 10)), seed=1)
    report = match(source(architecture(), unet(), names(1)), target, names(1))
    anew = {record.name for record in report.records if record.state == State.INITIALISED}
    assert {name for name in anew if name.startswith("encoder")} == {
        f"encoder.stages.2.0.convs.{c}.{kind}"
        for c in (0, 1)
        for kind in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")
    }
    assert anew & {"decoder.transpconvs.0.weight"}
    assert set(report.unused) == {name for name in anew if ".seg_layers." not in name}
    report.refuse_low_coverage(report.encoder_coverage)
    with pytest.raises(
        TransferError,
        match=r"Only \d\d\.\d% of the encoder's .* 60% asked for: channels .*8 in, 8 out.* --min-coverage",
    ):
        report.refuse_low_coverage(0.6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize(
    ("new", "resize", "suggested"),
    [
        ({"features": (4, 6, 10)}, False, True),
        ({"features": (6, 10, 12)}, True, False),  # they are resized already
        ({"features": (4, 6, 8, 8, 8, 8)}, False, False),  # stages are missing, widths are as they were
        ({"features": (4, 6, 10, 12)}, False, True),
        ({"features": (4, 6, 10), "norm_op": "torch.nn.BatchNorm3d", "norm_op_kwargs": {}}, False, True),
    ],
)
def test_other_widths_are_suggested_where_they_help(kind, bias, new, resize, suggested):
    """And the message says how much they would bring: exactly what is then taken over."""
    block = architecture(kind, conv_bias=bias)
    old = source(block, build(block), names(1))
    target = build(architecture(kind, **new), seed=1)
    with pytest.raises(TransferError) as error:
        match(old, target, names(1), resize).refuse_low_coverage(0.99)
    stages = len(new["features"])
    assert f"asked for: {'channels (' if stages == 3 else 'the checkpoint has 3 stages'}" in str(error.value)
    resized = match(old, target, names(1), True).encoder_coverage
    promise = f", allow other widths (--resize-widths, which makes it {resized:.1%}), or lower --min-coverage."
    assert str(error.value).endswith(promise if suggested else "(nnunet_genesis plan --like), or lower --min-coverage.")


@pytest.mark.parametrize(("old", "new"), [("plain", "residual"), ("residual", "plain")])
def test_the_other_kind_of_encoder_is_refused(old, new):
    with pytest.raises(
        TransferError, match=r"holds a .*UNet.*, the target's plans ask for a .*UNet.*no counterpart in the blocks"
    ):
        match(source(architecture(old), unet(old), names(1)), unet(new), names(1))


def test_channels_taken_by_position_are_named():
    report = match(source(architecture(), unet(channels=2), ["T1", "T2"]), unet(channels=2), ["PET", "FLAIR"])
    assert report.remarks == ["input channels PET, FLAIR for T1, T2: by position"]
    assert report.remarks[0] in report.table()
    assert match(source(architecture(), unet(), ["CT"]), unet(), ["ct"]).remarks == []
    with pytest.raises(TransferError, match="2 names for 1 input channels"):
        match(source(architecture(), unet(), ["CT"]), unet(), ["CT", "PET"])


def test_table_and_report_name_every_part_with_its_share():
    report = match(source(architecture(), unet(), ["CT"]), unet(channels=2, seed=1), ["T1", "T2"])
    table, content = report.table(), json.loads(json.dumps(report.json()))
    for part in ("stem", "encoder stage 0", "encoder stage 2", "decoder at stage 1", "segmentation heads"):
        assert part in table
        assert sum(content["parts"][part][state] for state in ("copied", "adapted", "initialised")) == 1
    assert "sum of 1 over 2 channels" in table
    assert content["parts"]["stem"]["reasons"] == ["input channels sum of 1 over 2 channels"]
    assert "100.0% of the encoder and 100.0% of the network" in content["verdict"]
    assert content["exact"] is False
    parameters = sum(parameter.numel() for parameter in unet(channels=2).parameters())
    assert sum(part["parameters"] for part in content["parts"].values()) == parameters
    assert len(content["tensors"]) == len(list(unet().parameters()))
