"""Every kind of plans as source and as target: what is carried, and that the shared encoder stages compute the same."""

from __future__ import annotations

import re
from functools import lru_cache

import pytest
import torch
from torch import nn

from nnunet_genesis.errors import TransferError
from nnunet_genesis.networks.build import skeleton
from nnunet_genesis.transfer.matching import match
from nnunet_genesis.transfer.report import TransferReport
from tests.transfer.networks import architecture, build, periodic, source

FEATURES = {2: (2, 4, 8, 16, 32, 32), 3: (2, 4, 8, 16, 20, 20)}
"""nnU-Net's 32 … 512 in two and 32 … 320 in three dimensions, by 16."""
THIN = [[1, 3, 3]], [[1, 1, 1], [1, 2, 2]]
# stages, dimensions, channels, first kernels, first strides, last stride
TASKS = {
    "2d": (6, 2, 1, [], [], []),
    "isotropic": (5, 3, 1, [], [], []),
    "anisotropic": (5, 3, 1, *THIN, []),
    "brats": (6, 3, 4, [], [], []),
    "hippocampus": (4, 3, 1, [], [], []),
    "luna": (6, 3, 1, [], [], [[1, 2, 2]]),
}
CHANNELS = r"channels \(\d+ in, \d+ out\) → \(\d+ in, \d+ out\)"
TOO_LITTLE = {
    **{("2d", task): CHANNELS for task in ("isotropic", "anisotropic", "brats", "luna")},
    **{(task, "2d"): CHANNELS for task in ("brats", "luna")},
    **{(task, "2d"): "the checkpoint has 5 stages; channels" for task in ("isotropic", "anisotropic")},
    **{("hippocampus", task): "the checkpoint has 4 stages" for task in TASKS if task != "hippocampus"},
}
"""Pairs of which less than half of the encoder is taken over, and why: the two deepest stages hold most of it."""
CASES = [(kind, task) for kind in ("plain", "residual") for task in TASKS]


def plans(kind: str, task: str) -> dict:
    stages, dim, _, kernels, strides, last = TASKS[task]
    strides = strides or [[1] * dim]
    return architecture(
        kind,
        dim,
        FEATURES[dim][:stages],
        kernels + [[3] * dim] * (stages - len(kernels)),
        strides + [[2] * dim] * (stages - len(strides) - len(last)) + last,
        decoder=[2 if kind == "plain" else 1] * (stages - 1),
    )


def channels_of(task: str) -> list[str]:
    return [f"{task} {i}" for i in range(TASKS[task][2])]


@lru_cache
def trained(kind: str, task: str) -> nn.Module:
    return periodic(build(plans(kind, task), TASKS[task][2])).double()


def features(network: nn.Module, task: str) -> list[torch.Tensor]:
    """Encoder features (C, y, x) of one image: the same in every channel and slice; in 3D they are the same, too."""
    slice_ = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stages, dim, channels = TASKS[task][:3]
    image = slice_.expand(1, channels, *[32] * (dim - 2), 64, 64)
    with torch.no_grad():
        found = network.encoder(image)
    assert len(found) == stages
    if dim == 3:
        torch.testing.assert_close(found[0], found[0][:, :, :1].expand_as(found[0]), rtol=0, atol=1e-8)
    return [maps[0, :, 0] if dim == 3 else maps[0] for maps in found]


@lru_cache
def trained_features(kind: str, task: str) -> list[torch.Tensor]:
    return features(trained(kind, task), task)


def expected_coverage(network: nn.Module, old: str, new: str, prefix: str, resize: bool = False) -> float:
    """Share of the parameters that a source determines, by their names and the widths of its plans alone."""
    stages, total, taken = len(network.encoder.stages), 0.0, 0.0
    ours, theirs = (FEATURES[TASKS[task][1]][: TASKS[task][0]] for task in (new, old))
    for name, parameter in network.named_parameters():
        if not name.startswith(prefix) or ".seg_layers." in name:
            continue
        total += parameter.numel()
        number = re.search(r"\.(?:stages|transpconvs)\.(\d+)\.", name)
        index = int(number.group(1)) if number else 0
        level = index if name.startswith("encoder") else stages - 1 - index  # up-samplings come from this encoder stage
        if level >= len(theirs):
            continue
        # an up-sampling gives out the next finer stage's width, and so does the decoder stage behind it
        width = level if name.startswith("encoder") else level - 1
        first = re.search(r"encoder\.stages\.\d+\.(0\.convs\.0|blocks\.0\.(conv1|skip\.\d))\.", name)
        reads = {level - 1} if first and level else {level} if ".transpconvs." in name else set()
        same = all(ours[each] == theirs[each] for each in {width, *reads})
        share = min(ours[width], theirs[width]) / ours[width] if resize else float(same)
        taken += round(parameter.numel() * share)
    return taken / total


def widths_shared(task: str, other_task: str) -> int:
    """Number of leading stages of equal widths, in which features can be the same."""
    pairs = list(zip(*(FEATURES[TASKS[each][1]][: TASKS[each][0]] for each in (task, other_task)), strict=False))
    return next((level for level, (a, b) in enumerate(pairs) if a != b), len(pairs))


@pytest.mark.parametrize(("other_kind", "other_task"), CASES)
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_every_pair(kind, task, other_kind, other_task):
    old = source(plans(kind, task), trained(kind, task), channels_of(task))
    network = periodic(build(plans(other_kind, other_task), TASKS[other_task][2], seed=1)).double()
    channels = channels_of(other_task)
    if kind != other_kind:
        with pytest.raises(TransferError, match="holds a .*, the target's plans ask for a .*: convolutions of the one"):
            match(old, network, channels)
        return
    report = match(old, network, channels)
    assert report.encoder_coverage == pytest.approx(expected_coverage(network, task, other_task, "encoder"))
    assert report.coverage == pytest.approx(expected_coverage(network, task, other_task, ""))
    assert bool(report.limits) == (task != other_task)
    if (task, other_task) not in TOO_LITTLE:
        report.refuse_low_coverage(0.5)
    assert sum(record.parameters for record in report.records) == sum(p.numel() for p in network.parameters())
    report.apply(network)
    shared = widths_shared(task, other_task)
    pairs = list(zip(trained_features(kind, task), features(network, other_task), strict=False))
    for before, after in pairs[:shared]:
        torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    if task == other_task:
        network.decoder.seg_layers = trained(kind, task).decoder.seg_layers
        image = torch.randn(1, len(channels), *[32] * (TASKS[task][1] - 2), 64, 64, dtype=torch.float64)
        with torch.no_grad():
            assert torch.equal(network(image), trained(kind, task)(image))


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize(("task", "other"), TOO_LITTLE)
def test_pairs_with_too_little_in_common_are_refused_with_the_reason(kind, task, other):
    old = source(plans(kind, task), trained(kind, task), channels_of(task))
    network, reason = build(plans(kind, other), TASKS[other][2], seed=1).double(), TOO_LITTLE[task, other]
    with pytest.raises(TransferError, match=f"Only .* asked for: {reason}.*or lower --min-coverage") as error:
        match(old, network, channels_of(other)).refuse_low_coverage(0.5)
    assert ("--resize-widths" in str(error.value)) == ("channels" in reason)
    report = match(old, network, channels_of(other), resize_widths=True)
    assert report.encoder_coverage == pytest.approx(expected_coverage(network, task, other, "encoder", resize=True))
    assert report.coverage == pytest.approx(expected_coverage(network, task, other, "", resize=True))
    if "stages" in reason:
        with pytest.raises(
            TransferError, match=f"Only .* asked for: {reason.split(';')[0]}.*--like\\), or lower --min-coverage"
        ):
            report.refuse_low_coverage(0.5)
    else:
        report.refuse_low_coverage(0.5)
    if other == "2d":
        assert_leading_channels_are_the_same(report, kind, task, other)


def assert_leading_channels_are_the_same(report: TransferReport, kind: str, task: str, other: str) -> None:
    """All stages of the source, in a wider network."""
    wider = periodic(build(plans(kind, other), TASKS[other][2], seed=1)).double()
    report.apply(wider)
    for before, after in zip(trained_features(kind, task), features(wider, other), strict=False):
        torch.testing.assert_close(after[: len(before)], before, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "dims", "stages", "alone", "resized"),
    [
        ("plain", (2, 3), (7, 6), 0.25, 1),
        ("residual", (2, 3), (7, 6), 0.27, 1),
        ("plain", (3, 2), (6, 7), 0.08, 0.45),
        ("residual", (3, 2), (6, 7), 0.09, 0.47),
    ],
)
def test_what_the_pages_say_of_default_plans_in_two_and_three_dimensions(kind, dims, stages, alone, resized):
    """At full size, without memory: networks on torch's meta device."""
    blocks = {
        dim: architecture(
            kind,
            dim,
            [min(2**level * 32, {2: 512, 3: 320}[dim]) for level in range(count)],
            blocks=[2] * count if kind == "plain" else [1, 3, 4, *[6] * (count - 3)],
            decoder=[2 if kind == "plain" else 1] * (count - 1),
        )
        for dim, count in zip(dims, stages, strict=True)
    }
    old, new = (skeleton(blocks[dim], 1) for dim in dims)
    for resize, share in ((False, alone), (True, resized)):
        report = match(source(blocks[dims[0]], old, ["CT"]), new, ["CT"], resize)
        assert report.encoder_coverage == pytest.approx(share, abs=0.005)
