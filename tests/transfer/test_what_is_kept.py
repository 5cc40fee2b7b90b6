"""The table of docs/transfer.md, row by row: what its words say is computed with two small networks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunet_genesis.errors import TransferError
from nnunet_genesis.networks.build import skeleton
from nnunet_genesis.networks.layout import STEM
from nnunet_genesis.transfer.channels import PREVIOUS_STAGE
from nnunet_genesis.transfer.matching import match
from nnunet_genesis.transfer.report import TransferReport
from tests.conftest import REPOSITORY
from tests.transfer.networks import architecture, build, periodic, source
from tests.transfer.test_matrix import (
    test_what_the_pages_say_of_default_plans_in_two_and_three_dimensions as at_full_size,
)

PAGE = (REPOSITORY / "docs" / "transfer.md").read_text()
FLAT = [[1, 1, 1], [1, 2, 2], [1, 2, 2]]
THICK = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
CUBIC = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
LATE = [[1, 1, 1], [2, 2, 2], [1, 2, 2]]
THIN = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
LABELS = tuple(f"{PREVIOUS_STAGE}{label}" for label in (1, 2))
ONE, TWO = ("T1",), ("T1", "T2")

Image = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Change:
    """A checkpoint's network and a target's: arguments of `architecture`, input channels, `--resize-widths`.

    `special` makes an image for which a cell may claim more than for any other; `seen` what the target is shown.
    """

    old: dict[str, Any] = field(default_factory=dict)
    new: dict[str, Any] = field(default_factory=dict)
    channels: Sequence[str] = ONE
    ours: Sequence[str] = ONE
    resize: bool = False
    special: tuple[str, Image] = ("constant images only", lambda image: image[:, :, :1].expand_as(image))
    seen: Image = lambda image: image


def without(*numbers: int) -> Image:
    """Channels set to zero."""

    def cleared(image: Tensor) -> Tensor:
        image = image.clone()
        image[:, list(numbers)] = 0
        return image

    return cleared


def extended(image: Tensor) -> Tensor:
    """Further channels that hold something else."""
    return torch.cat([image, torch.randn_like(image[:, :1]).expand(-1, 2, *image.shape[2:])], 1)


DEEP = {"features": (4, 6, 8, 8)}
CHANGES = {
    "nothing": Change(),
    "the kernel is longer along an axis, 1 → 3": Change({"kernels": THIN}, {}),
    "the kernel is shorter, 3 → 1, of an axis that no stage down-samples": Change(
        {"strides": FLAT}, {"strides": FLAT, "kernels": THIN}
    ),
    "the kernel is shorter, 3 → 1, of an axis that a stage down-samples": Change({}, {"kernels": THIN}),
    "the deepest stage alone down-samples an axis, which the checkpoint's do not": Change(
        {"strides": FLAT}, {"strides": THICK}
    ),
    "a stage down-samples an axis, 1 → 2, and a deeper one does in both": Change({"strides": THICK}, {"strides": CUBIC}),
    "a stage does not down-sample an axis, 2 → 1": Change({"strides": CUBIC}, {"strides": LATE}),
    "the network is 3D, the checkpoint's 2D": Change({"dim": 2}, {"strides": CUBIC}),
    "the network is 2D, the checkpoint's 3D and never down-samples the axis that is lost": Change(
        {"strides": FLAT}, {"dim": 2}
    ),
    "the network is 2D, the checkpoint's 3D and down-samples the axis that is lost": Change({}, {"dim": 2}),
    "the encoder is deeper": Change({}, DEEP),
    "the encoder is shallower": Change(DEEP, {}),
    "an encoder stage has more blocks": Change({"blocks": (2, 2, 2)}, {"blocks": (2, 3, 2)}),
    "an encoder stage has fewer blocks": Change({"blocks": (2, 3, 2)}, {"blocks": (2, 2, 2)}),
    "a decoder stage has more convolutions": Change({}, {"decoder": (1, 2)}),
    "a decoder stage has fewer convolutions": Change({"decoder": (2, 1)}, {}),
    "stages have other widths": Change({}, {"features": (4, 6, 10)}),
    "stages are wider, with `--resize-widths`": Change({}, {"features": (5, 7, 10)}, resize=True),
    "stages are narrower, with `--resize-widths`": Change({}, {"features": (4, 5, 7)}, resize=True),
    "norms or activations are other functions": Change({}, {"nonlin": "torch.nn.ReLU"}),
    "further input channels beside namesakes": Change(ours=("T1", "FLAIR", "PD"), seen=extended),
    "the labels of a cascade's first stage": Change(ours=(*ONE, *LABELS), seen=extended),
    "input channels in another order": Change(channels=TWO, ours=("T2", "t1"), seen=lambda image: image.flip(1)),
    "some of the checkpoint's input channels are missing": Change(
        channels=TWO, ours=ONE, special=("images without them only", without(1)), seen=lambda image: image[:, :1]
    ),
    "as many input channels, no common name": Change(channels=TWO, ours=("FLAIR", "PD")),
    "fewer or more input channels, no common name": Change(
        channels=TWO, ours=("FLAIR",), special=("equal channels only", lambda image: image[:, :1].expand_as(image)),
        seen=lambda image: image[:, :1],
    ),
}  # fmt: skip


def table() -> dict[str, tuple[str, str]]:
    """Change → what is kept of encoder and decoder, without the marks of footnotes."""
    rows = PAGE[PAGE.index("\n| change |") :].strip().split("\n\n")[0].splitlines()[2:]
    cells = [[re.sub(r"\[\^\w+\]", "", cell).strip(" *") for cell in row.strip("| ").split("|")] for row in rows]
    return {change: (encoder, decoder) for change, encoder, decoder in cells}


def features(network: nn.Module, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Of the encoder's stages, and what the finest head reads; (N, C, z, y, x)."""
    network.decoder.seg_layers[-1] = nn.Identity()
    with torch.no_grad():
        found = [*network.encoder(image), network(image)]
    lifted = [maps if maps.ndim == 5 else maps.unsqueeze(2) for maps in found]
    return lifted[:-1], lifted[-1:]


def equal(before: list[Tensor], after: list[Tensor]) -> bool:
    """Whether stages that both have agree, in the channels that the checkpoint has.

    Where they have different numbers of slices, every slice of the one must be every slice of the other.
    """
    for ours, theirs in zip(after, before, strict=False):
        ours = ours[:, : theirs.shape[1]]
        if ours.shape[1] != theirs.shape[1]:
            return False
        if ours.shape[2] != theirs.shape[2]:
            ours, theirs = ours.unsqueeze(2), theirs.unsqueeze(3)
        if (ours - theirs).abs().max() > 1e-7:
            return False
    return True


def shares_from_checkpoint(report: TransferReport) -> tuple[float, float]:
    """Of the parameters of the encoder, its stem included, and of the decoder."""
    sides = [[one for one in report.records if one.part.startswith(side)] for side in ((STEM, "encoder"), "decoder")]
    taken, total = ([sum(getattr(one, what) for one in side) for side in sides] for what in ("taken", "parameters"))
    return taken[0] / total[0], taken[1] / total[1]


def kept(kind: str, change: Change) -> tuple[str, str]:
    """The words that describe what encoder and decoder keep, found by running both networks."""
    blocks = [architecture(kind, **options) for options in (change.old, change.new)]
    trained = periodic(build(blocks[0], len(change.channels)).double())
    target = periodic(build(blocks[1], len(change.ours), seed=1).double())
    report = match(source(blocks[0], trained, change.channels), target, change.ours, change.resize)
    report.apply(target)
    any_image = torch.randn(1, len(change.channels), 16, 16, 16, dtype=torch.float64)
    word, special = change.special
    results = []
    for image in (any_image, special(any_image)):
        pair = []
        for network, shown, block in ((trained, image, blocks[0]), (target, change.seen(image), blocks[1])):
            flat = block["arch_kwargs"]["conv_op"].endswith("2d")
            pair.append(features(network, shown[:, :, 0] if flat else shown))
        results.append([equal(before, after) for before, after in zip(*pair, strict=True)])
    words = []
    for everywhere, there, share in zip(*results, shares_from_checkpoint(report), strict=True):
        words.append("exact" if everywhere else word if there else "changed" if share == 1 else "new")
    return words[0], words[1]


def test_every_row_of_the_table_is_computed_and_no_other():
    assert list(table()) == list(CHANGES)


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_row_of_the_table(change, kind):
    assert table()[change] == kept(kind, CHANGES[change])


RESIDUAL = "dynamic_network_architectures.building_blocks.residual."
FAMILIES = {
    "`PlainConvUNet`": architecture(),
    "`BasicBlockD`": architecture("residual"),
    "`BottleneckD`": architecture("residual", block=f"{RESIDUAL}BottleneckD", bottleneck_channels=[2, 3, 4]),
    "`UNet3D`": {
        "network_class_name": "nnunet_genesis.unet3d.UNet3D",
        "arch_kwargs": {"features_per_stage": [4, 6, 8], "strides": CUBIC},
        "_kw_requires_import": [],
    },
}
FAMILIES["`BottleneckD`"]["_kw_requires_import"].append("block")


@pytest.mark.parametrize("new", FAMILIES)
@pytest.mark.parametrize("old", FAMILIES)
def test_nothing_is_carried_between_the_networks_that_the_page_names(old, new):
    refusal = PAGE[PAGE.index("**Other blocks.**") :].split("\n-")[0]
    assert old in refusal
    networks = [skeleton(FAMILIES[each], 1) for each in (old, new)]
    if old == new:
        assert match(source(FAMILIES[old], networks[0], ONE), networks[1], ONE).coverage == 1
    else:
        with pytest.raises(TransferError, match="convolutions of the one have no counterpart"):
            match(source(FAMILIES[old], networks[0], ONE), networks[1], ONE)


def test_the_shares_that_the_page_gives_are_those_of_the_test_at_full_size():
    told = PAGE[PAGE.index("nnU-Net's default plans end") :].split("\n\n")[0]
    (shares,) = (mark.args[1] for mark in at_full_size.pytestmark if mark.name == "parametrize")
    for dimensions in ((2, 3), (3, 2)):
        alone, resized = zip(*(row[3:] for row in shares if row[1] == dimensions), strict=True)
        for low, high in (alone, resized):
            assert f"{low:.0%}"[:-1] + (f"\N{EN DASH}{high:.0%}"[:-1] if high > low else "") in told or low == high == 1
