"""Networks of another depth, width, dimension or number of blocks start from what the report says, run side by side."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from nnunet_genesis.transfer.channels import PREVIOUS_STAGE
from nnunet_genesis.transfer.comparison import largest_difference
from nnunet_genesis.transfer.matching import match
from nnunet_genesis.transfer.records import State
from nnunet_genesis.transfer.report import TransferReport
from tests.transfer.networks import architecture, build, names, periodic, source

KINDS = pytest.mark.parametrize("kind", ["plain", "residual"])
ISOTROPIC = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
THIN_STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
THIN_KERNELS = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
close = partial(torch.testing.assert_close, rtol=0, atol=1e-7)


def carried(old: dict, new: dict, resize_widths: bool = False) -> tuple[nn.Module, nn.Module, TransferReport]:
    """Source and target after the transfer, without borders and in double precision."""
    trained, target = build(old).double(), build(new, seed=1).double()
    report = match(source(old, trained, names(1)), target, names(1), resize_widths)
    report.apply(target)
    return periodic(trained), periodic(target), report


def without_heads(network: nn.Module) -> nn.Module:
    """Give out the features that the finest head reads."""
    network.decoder.seg_layers[-1] = nn.Identity()
    return network


def volume(constant: bool = False, size: int = 16) -> torch.Tensor:
    """A random patch; the same in every slice if `constant`."""
    slices = torch.randn(1, 1, 1 if constant else size, size, size, dtype=torch.float64)
    return slices.expand(1, 1, size, size, size).clone()


@KINDS
def test_longer_kernels_leave_the_whole_network_as_it_was(kind):
    old, new = (architecture(kind, strides=THIN_STRIDES, kernels=k) for k in (THIN_KERNELS, None))
    trained, target = (build(block, seed=i).double() for i, block in enumerate((old, new)))
    report = match(source(old, trained, names(1)), target, names(1))
    report.apply(target)
    image = volume()
    assert not report.limits
    assert largest_difference(source(old, trained, names(1)), target, names(1)) < 1e-12
    close(without_heads(target)(image), without_heads(trained)(image))  # borders and all


@KINDS
def test_shorter_kernels_keep_the_encoder_for_constant_images(kind):
    trained, target, report = carried(architecture(kind), architecture(kind, kernels=THIN_KERNELS))
    assert list(report.limits) == ["shorter kernel along z: exact for features constant along z, away from its ends"]
    assert report.limits[next(iter(report.limits))] == ["stem", "encoder stage 0", "decoder at stage 0"]
    for before, after in zip(trained.encoder(volume(True)), target.encoder(volume(True)), strict=True):
        assert before.shape == after.shape
    image = volume(True)
    for before, after in zip(trained.encoder(image), target.encoder(image), strict=True):
        close(after, before)


@KINDS
@pytest.mark.parametrize("strides", [(ISOTROPIC, THIN_STRIDES), (THIN_STRIDES, ISOTROPIC)])
def test_another_stride_keeps_filters_at_common_positions_and_constant_images(kind, strides):
    old, new = (architecture(kind, strides=each) for each in strides)
    trained, target, report = carried(old, new)
    same = "before the norm, the same at common positions" if kind == "plain" else "other windows of average pooling"
    limit = f"another stride along z: {same}; exact for images constant along z, but for the padding at its ends"
    assert report.limits[limit] == ["encoder stage 1"]
    first = "stages.1.0.convs.0.conv" if kind == "plain" else "stages.1.blocks.0.conv1.conv"
    (record,) = (record for record in report.records if record.name == f"encoder.{first}.weight")
    written = ["x".join(map(str, each[1])) for each in strides]
    assert (record.state, record.reason) == (State.COPIED, f"stride {written[0]} → {written[1]}")
    image = volume(True)
    for before, after in zip(trained.encoder(image), target.encoder(image), strict=True):
        close(after[:, :, 0], before[:, :, 0])
    features = torch.randn(1, 4, 8, 8, 8, dtype=torch.float64)
    responses = [network.encoder.get_submodule(first)(features) for network in (trained, target)]
    coarse, fine = sorted(responses, key=lambda maps: maps.shape[2])
    close(coarse, fine[:, :, ::2])
    if kind == "residual":  # not so the skips
        pooled = [network.encoder.stages[1].blocks[0].skip[0](features) for network in (trained, target)]
        coarse, fine = sorted(pooled, key=lambda maps: maps.shape[2])
        assert (coarse - fine[:, :, ::2]).abs().max() > 0.1


@KINDS
@pytest.mark.parametrize("strides", [(ISOTROPIC, THIN_STRIDES), (THIN_STRIDES, ISOTROPIC)])
def test_another_stride_changes_the_decoder_even_for_constant_images(kind, strides):
    """The up-sampling's own output is the checkpoint's, repeated or averaged; what later layers make of it is not."""
    trained, target, report = carried(*(architecture(kind, strides=each) for each in strides))
    limits = [text for text, parts in report.limits.items() if parts == ["decoder at stage 0"]]
    kept = ("to the average of the checkpoint's output; later layers respond otherwise" if strides[0] == ISOTROPIC
            else "by repetition: exact for features constant along z")  # fmt: skip
    assert limits == [f"up-samples along z {kept}"]
    features = torch.randn(1, 6, 4, 8, 8, dtype=torch.float64)
    before, after = (network.decoder.transpconvs[1](features) for network in (trained, target))
    if strides[0] == ISOTROPIC:
        close(after, F.avg_pool3d(before, (2, 1, 1)))
    else:
        close(after, before.repeat_interleave(2, 2))
    before, after = (without_heads(network)(volume(True)) for network in (trained, target))
    assert (before - after).abs().max() > 0.01


@KINDS
def test_repeated_taps_keep_the_decoder_for_constant_images(kind):
    old, new = architecture(kind, strides=THIN_STRIDES), architecture(kind, strides=ISOTROPIC)
    trained, target = build(old).double(), build(new, seed=1).double()
    with torch.no_grad():  # so that the decoder's features are constant along z as well
        trained.decoder.transpconvs[0].weight[:] = trained.decoder.transpconvs[0].weight.mean(2, keepdim=True)
    report = match(source(old, trained, names(1)), target, names(1))
    report.apply(target)
    assert any(text.startswith("up-samples along z by repetition") for text in report.limits)
    image = volume(True)
    close(without_heads(periodic(target))(image), without_heads(periodic(trained))(image))


@KINDS
def test_a_plane_network_inflates_and_flattens_back(kind):
    flat, solid = architecture(kind, dim=2), architecture(kind, dim=3)
    thin = architecture(kind, dim=3, strides=[[1, 1, 1], [1, 2, 2], [1, 2, 2]])
    image = volume(True)
    trained, target, report = carried(flat, thin)
    assert report.coverage == 1
    close(without_heads(target)(image)[:, :, 3], without_heads(trained)(image[:, :, 0]))
    trained, deep = build(flat).double(), build(solid, seed=1).double()
    match(source(flat, trained, names(1)), deep, names(1)).apply(deep)
    every_slice = without_heads(trained)(image[:, :, 0]).unsqueeze(2)
    found = without_heads(deep)(image)
    close(found, every_slice.expand_as(found))  # strides along z as well, borders and all
    trained = build(flat).double()
    back = build(flat, seed=3).double()
    match(source(thin, target, names(1)), back, names(1)).apply(back)
    held = dict(back.named_parameters())
    assert all(torch.equal(held[name], p) for name, p in trained.named_parameters() if ".seg_layers." not in name)
    trained, target, report = carried(solid, flat)
    assert report.coverage == 1
    for before, after in zip(trained.encoder(image), target.encoder(image[:, :, 0]), strict=True):
        close(after, before[:, :, 0])
    before, after = without_heads(trained)(image), without_heads(target)(image[:, :, 0])
    assert (before - after.unsqueeze(2)).abs().max() > 0.1
    averaged = "up-samples along z to the average of the checkpoint's output; later layers respond otherwise"
    assert report.limits[averaged] == ["decoder at stage 1", "decoder at stage 0"]


def test_each_slice_of_any_image_is_convolved_as_in_two_dimensions():
    trained, target, _ = carried(architecture(dim=2), architecture(dim=3))
    image = volume()
    response = target.encoder.stages[0][0].convs[0].conv(image)
    for z in (0, 7, 15):
        close(response[:, :, z], trained.encoder.stages[0][0].convs[0].conv(image[:, :, z]))


@KINDS
def test_a_deeper_target_keeps_the_shared_stages_and_passes_the_bottleneck_on(kind):
    new = architecture(kind, features=(4, 6, 8, 8), decoder=(2, 1, 1))
    trained, target, report = carried(architecture(kind), new)
    image, found = volume(), {}
    target.decoder.stages[0].register_forward_hook(lambda *call: found.update(reads=call[1][0], gives=call[2]))
    before, after = trained.encoder(image), target.encoder(image)
    for a, b in zip(before, after, strict=False):
        close(b, a)
    target(image)
    expected = before[-1]
    for unit in target.decoder.stages[0].convs:
        normed = F.instance_norm(
            expected + unit.conv.bias[:, None, None, None], weight=unit.norm.weight, bias=unit.norm.bias
        )
        expected = F.leaky_relu(normed, 0.01)
    close(found["gives"], expected)
    assert any("the decoder at stage 2 starts by passing them on, normalised" in text for text in report.limits)
    # from there on the decoder is the checkpoint's: fed with its bottleneck, it gives its features
    target.decoder.stages[0].register_forward_hook(lambda *call: before[-1])
    close(without_heads(target)(image), without_heads(trained)(image))


@KINDS
def test_a_shallower_target_keeps_its_stages_and_names_what_is_gone(kind):
    old = architecture(kind, features=(4, 6, 8, 8))
    trained, target, report = carried(old, architecture(kind))
    image = volume()
    for before, after in zip(trained.encoder(image), target.encoder(image), strict=False):
        close(after, before)
    assert report.coverage == 1
    assert [text for text in report.limits if text.startswith("is the deepest here")]
    gone = ("encoder.stages.3", "decoder.stages.0", "decoder.transpconvs.0")
    assert all(name.startswith(gone) for name in report.unused)
    expected = sum(p.numel() for name, p in trained.named_parameters() if name.startswith(gone))
    assert sum(report.unused.values()) == expected
    # fed with what the deeper stages made of them, its decoder gives the checkpoint's features
    found = {}
    trained.decoder.stages[0].register_forward_hook(lambda *call: found.update(gives=call[2]))
    new = without_heads(trained)(image)
    skips = target.encoder(image)
    close(without_heads(target).decoder([*skips[:-1], found["gives"]]), new)


def test_an_additional_plain_convolution_passes_its_input_on_normalised():
    trained, target, report = carried(architecture(blocks=[2, 2, 2]), architecture(blocks=[3, 2, 2]))
    image = volume()
    before, unit = trained.encoder(image)[0], target.encoder.stages[0][0].convs[2]
    normed = F.instance_norm(before, weight=unit.norm.weight, bias=unit.norm.bias)
    close(target.encoder(image)[0], F.leaky_relu(normed, 0.01))
    assert any("3 blocks for the checkpoint's 2" in text for text in report.limits)
    assert 0 < report.share("encoder stage 0", State.INITIALISED) < 1


def test_an_additional_residual_block_is_one_more_activation():
    old, new = architecture("residual", blocks=[1, 2, 2]), architecture("residual", blocks=[2, 2, 2])
    trained, target, report = carried(old, new)
    image = volume()
    states = {record.state for record in report.records if record.name.startswith("encoder.stages.0.blocks.1")}
    assert states == {State.INITIALISED}
    close(target.encoder(image)[0], F.leaky_relu(trained.encoder(image)[0], 0.01))


@KINDS
def test_additional_convolutions_of_the_decoder_pass_on_what_the_checkpoints_gave(kind):
    trained, target, report = carried(architecture(kind, decoder=[1, 1]), architecture(kind, decoder=[2, 2]))
    found: dict[str, torch.Tensor] = {}
    trained.decoder.stages[0].register_forward_hook(lambda *call: found.update(before=call[2]))
    target.decoder.stages[0].register_forward_hook(lambda *call: found.update(after=call[2]))
    image = volume()
    trained(image), target(image)
    unit = target.decoder.stages[0].convs[1]
    normed = F.instance_norm(found["before"], weight=unit.norm.weight, bias=unit.norm.bias)
    close(found["after"], F.leaky_relu(normed, 0.01))
    text = (
        "2 blocks for the checkpoint's 1: the others start by passing features on, a plain one normalised, a residual "
    )
    assert report.limits == {text + "one through another activation": ["decoder at stage 0", "decoder at stage 1"]}
    passing = [record.name for record in report.records if record.reason.endswith("passes its input on")]
    assert passing == [f"decoder.stages.{stage}.convs.1.conv.weight" for stage in (0, 1)]


@KINDS
def test_fewer_convolutions_of_the_decoder_keep_those_that_stay(kind):
    trained, target, report = carried(architecture(kind, decoder=[2, 1]), architecture(kind, decoder=[1, 1]))
    gone = list(trained.decoder.stages[0].convs[1].parameters())
    del trained.decoder.stages[0].convs[1]
    image = volume()
    close(without_heads(target)(image), without_heads(trained)(image))
    text = "1 of the checkpoint's 2 blocks: the features of these are as they were"
    assert report.limits == {text: ["decoder at stage 1"]}
    assert sum(report.unused.values()) == sum(parameter.numel() for parameter in gone)


@KINDS
def test_fewer_blocks_keep_the_features_of_those_that_stay(kind):
    trained, target, report = carried(architecture(kind, blocks=[3, 2, 2]), architecture(kind, blocks=[2, 2, 2]))
    image, stage = volume(), trained.encoder.stages[0]
    if kind == "plain":
        del stage[0].convs[2]
    else:
        del stage.blocks[2]
    close(target.encoder(image)[0], trained.encoder(image)[0])
    assert any(text.startswith("2 of the checkpoint's 3 blocks") for text in report.limits)
    assert len(report.unused) == (4 if kind == "plain" else 8)


@KINDS
def test_wider_stages_give_the_old_channels_when_asked_to(kind):
    old, new = architecture(kind, features=(4, 6, 8)), architecture(kind, features=(5, 6, 11))
    trained, target, report = carried(old, new)
    assert any(text.startswith("starts anew where channels differ") for text in report.limits)
    assert report.coverage < 0.5
    trained, target, report = carried(old, new, resize_widths=True)
    image = volume()
    for before, after in zip(trained.encoder(image), target.encoder(image), strict=True):
        close(after[:, : before.shape[1]], before)
    before, after = without_heads(trained)(image), without_heads(target)(image)
    close(after[:, : before.shape[1]], before)
    assert not report.limits
    assert 0.5 < report.coverage < 1
    assert report.share("encoder stage 2", State.ADAPTED) > 0


BATCH = {"norm_op": "torch.nn.BatchNorm3d", "norm_op_kwargs": {}}


@KINDS
@pytest.mark.parametrize("features", [(4, 6, 8), (5, 7, 10)])
def test_a_bias_that_the_target_lacks_moves_into_the_running_mean(kind, features):
    old = architecture(kind, **BATCH)
    trained = build(old).double()
    new = build(architecture(kind, features=features, conv_bias=False, **BATCH), seed=1).double()
    generator = torch.Generator().manual_seed(2)
    for name, tensor in trained.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    with torch.no_grad():  # nnU-Net's transposed convolutions have no norm that could take their bias
        for up in trained.decoder.transpconvs:
            up.bias.zero_()
    report = match(source(old, trained, names(1)), new, names(1), resize_widths=True)
    report.apply(new)
    image = volume()
    for before, after in zip(trained.encoder(image), new.encoder(image), strict=True):
        close(after[:, : before.shape[1]], before)
    close(without_heads(new)(image)[:, :4], without_heads(trained)(image))
    assert set(report.limits) == {"the target has no bias here, the checkpoint has"}  # of the transposed convolutions
    assert {name.rpartition(".")[0] for name in report.unused} == {f"decoder.transpconvs.{level}" for level in (0, 1)}
    means = {record.name: record.reason for record in report.records if record.name.endswith("running_mean")}
    whys = {why for name, why in means.items() if ".skip." not in name}  # projections have no bias in any network
    assert whys == {"less the bias, which the target lacks"}


@pytest.mark.parametrize(
    ("old", "new", "lost"),
    [
        ({}, {"norm_op_kwargs": {"affine": False}}, {"norm.weight", "norm.bias", "bias"}),
        (BATCH, BATCH | {"norm_op_kwargs": {"track_running_stats": False}},
         {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}),
    ],
)  # fmt: skip
def test_parts_of_a_norm_that_the_target_lacks_are_named(old, new, lost):
    trained, target, report = carried(architecture(**old), architecture(conv_bias="bias" not in lost, **new))
    assert {f"the target has no {role} here, the checkpoint has" for role in lost} <= set(report.limits)
    image = volume()
    assert (trained.encoder(image)[0] - target.encoder(image)[0]).abs().max() > 0.1


@pytest.mark.parametrize(("features", "resized"), [((4, 6, 6), (4, 6, 8)), ((4, 6, 8), (4, 8, 8))])
def test_wider_residual_blocks_that_gain_or_lose_a_projection_are_another_function(features, resized):
    unstrided = [[1, 1, 1], [2, 2, 2], [1, 1, 1]]
    old, new = (architecture("residual", features=each, strides=unstrided) for each in (features, resized))
    trained, target, report = carried(old, new, resize_widths=True)
    assert ["encoder stage 2"] in report.limits.values()
    image = volume()
    before, after = trained.encoder(image), target.encoder(image)
    leading = [maps[:, : each.shape[1]] for each, maps in zip(before, after, strict=True)]
    close(leading[:2], before[:2])
    assert (leading[2] - before[2]).abs().max() > 0.1


@KINDS
def test_narrower_stages_take_the_leading_filters_when_asked_to(kind):
    old, new = architecture(kind, features=(4, 6, 8)), architecture(kind, features=(3, 6, 8))
    trained, target, report = carried(old, new, resize_widths=True)
    image = volume()
    stem = "stem.convs.0" if kind == "residual" else "stages.0.0.convs.0"
    before, after = (network.encoder.get_submodule(stem)(image) for network in (trained, target))
    close(after, before[:, :3])
    assert report.coverage == 1
    assert any(text.startswith("narrower: the leading filters") for text in report.limits)


@KINDS
def test_a_cascade_starts_as_the_network_without_one(kind):
    block = architecture(kind)
    trained, target = build(block, 2).double(), build(block, 4, seed=1).double()
    channels = ["T1", "T2"]
    labels = [f"{PREVIOUS_STAGE}{label}" for label in (1, 2)]
    report = match(source(block, trained, channels), target, [*channels, *labels])
    assert not report.limits
    assert report.coverage == 1
    report.apply(target)
    image, segmentation = torch.randn(2, 1, 2, 16, 16, 16, dtype=torch.float64)
    seen = torch.cat([image, (segmentation > 0).double()], 1)
    close(without_heads(target)(seen), without_heads(trained)(image))
    back = build(block, 2, seed=2).double()
    report = match(source(block, target, [*channels, *labels]), back, channels)
    report.apply(back)
    close(without_heads(back)(image), trained(image))
    assert list(report.limits) == [f"input channels: the same response to images without {', '.join(labels)} (zero)"]
