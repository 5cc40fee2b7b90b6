"""From one Primus to another: what is kept is computed by running both, and what is not is said."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_genesis.errors import TransferError
from nnunet_genesis.networks.build import is_head
from nnunet_genesis.networks.layout import HEADS
from nnunet_genesis.networks.outputs import Outputs
from nnunet_genesis.transfer.comparison import largest_difference
from nnunet_genesis.transfer.matching import match
from nnunet_genesis.transfer.records import State
from nnunet_genesis.transfer.report import ROUNDING, TransferReport
from nnunet_genesis.transfer.tokens import resize_cells, resize_positions
from tests.conftest import REPOSITORY
from tests.primus import KINDS, build_primus, primus_block, primus_source
from tests.transfer.networks import architecture, build, names, source

EACH_KIND = pytest.mark.parametrize("kind", KINDS)


def features(network: Any, image: torch.Tensor) -> torch.Tensor:
    """What is read by the last projection: (N, width, *grid)."""
    network.up_projection = torch.nn.Identity()
    with torch.no_grad():
        return network.eval()(image)


def carried(
    old: dict[str, Any], new: dict[str, Any], channels: Any = ("T1",), ours: Any = ("T1",), classes: int = 5
) -> tuple[TransferReport, Any, Any]:
    """The report, the checkpoint's network, the target after the transfer."""
    network, target = build_primus(old, len(channels)), build_primus(new, len(ours), classes, seed=1)
    report = match(primus_source(old, network, channels), target, ours)
    report.apply(target)
    if not report.limits:
        report.difference = largest_difference(primus_source(old, network, channels), target, ours)
    return report, network, target


@EACH_KIND
def test_a_copy_is_equal_down_to_the_last_norm_and_the_report_says_so(kind):
    block = primus_block(kind)
    report, network, target = carried(block, block)
    assert report.difference == 0
    assert report.exact
    assert report.coverage == report.encoder_coverage == 1
    assert not report.unused
    assert report.parts == ["stem", "encoder positions", "encoder block 0", "encoder block 1", "encoder norm",
                            "mask token", HEADS]  # fmt: skip
    image = torch.randn(2, 1, 16, 24, 16)
    assert torch.equal(features(network, image), features(target, image))


@EACH_KIND
def test_the_file_has_every_key_of_the_target_and_heads_are_the_targets_own(kind):
    block = primus_block(kind)
    fresh = build_primus(block, 1, 5, seed=1).state_dict()
    _, network, target = carried(block, block)
    after, before = target.state_dict(), network.state_dict()
    assert {name: tensor.shape for name, tensor in after.items()} == {name: t.shape for name, t in fresh.items()}
    assert "eva.pos_embed" in after
    for name, tensor in after.items():
        assert torch.equal(tensor, fresh[name] if is_head(name) else before[name]), name
    assert {name for name in after if is_head(name)} == {name for name in after if name.startswith("up_projection.")}


def broken_everywhere(block: dict[str, Any], network: Any, target: Any) -> list[str]:
    found = []
    for name, parameter in network.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[-1:].add_(0.5)
        if largest_difference(primus_source(block, network), target, ["T1"]) > ROUNDING:
            found.append(name)
        with torch.no_grad():
            parameter.copy_(kept)
    return found


def test_a_change_of_any_tensor_is_seen():
    block = primus_block(num_register_tokens=2)
    _, network, target = carried(block, block)
    expected = [name for name, _ in network.named_parameters() if not is_head(name)]
    assert broken_everywhere(block, network, target) == expected


def test_a_broken_network_is_reported_and_nothing_is_changed():
    block = primus_block()
    _, network, target = carried(block, block)
    held = [{name: tensor.clone() for name, tensor in each.state_dict().items()} for each in (network, target)]
    target.train()
    assert largest_difference(primus_source(block, network), target, ["T1"]) == 0
    assert target.training
    for each, before in zip((network, target), held, strict=True):
        assert all(torch.equal(tensor, before[name]) for name, tensor in each.state_dict().items())
    with torch.no_grad():
        target.eva.norm.bias.fill_(float("nan"))
    assert largest_difference(primus_source(block, network), target, ["T1"]) == float("inf")


def test_half_precision_is_carried():
    block = primus_block()
    network, target = build_primus(block).bfloat16(), build_primus(block, seed=1)
    report = match(primus_source(block, network), target, ["T1"])
    report.apply(target)
    assert largest_difference(primus_source(block, network), target, ["T1"]) == 0
    assert torch.equal(target.eva.pos_embed, network.eva.pos_embed.float())


@EACH_KIND
def test_channels_are_matched_by_name(kind):
    block = primus_block(kind)
    report, network, target = carried(block, block, ("CT", "T1", "T2"), ("T2", "ct", "T1"))
    assert report.difference <= ROUNDING
    assert report.share("stem", State.ADAPTED) > 0
    image = torch.randn(1, 3, 16, 24, 16)
    torch.testing.assert_close(features(network, image), features(target, image[:, [2, 0, 1]]), rtol=1e-4, atol=1e-4)


@EACH_KIND
def test_further_channels_are_ignored_at_the_start_and_others_share(kind):
    block = primus_block(kind)
    report, network, target = carried(block, block, ("T1",), ("T1", "FLAIR"))
    assert report.exact
    image = torch.randn(1, 2, 16, 24, 16)
    torch.testing.assert_close(features(network, image[:, :1]), features(target, image), rtol=1e-4, atol=1e-4)
    report, network, target = carried(block, block, ("T1",), ("CT", "PET"))
    assert list(report.limits) == ["input channels: the same response to images that hold the same in every channel"]
    same = image[:, :1].expand(-1, 2, -1, -1, -1)
    torch.testing.assert_close(features(network, image[:, :1]), features(target, same), rtol=1e-4, atol=1e-4)


@EACH_KIND
def test_another_patch_resizes_positions_and_says_so(kind):
    report, _, target = carried(primus_block(kind), primus_block(kind, (32, 24, 8)))
    assert report.encoder_coverage == 1
    assert not report.exact
    ((limit, parts),) = report.limits.items()
    assert limit.startswith("4x3x1 tokens, in the checkpoint 2x3x2: learned positions are resized")
    assert parts == ["encoder positions"]
    assert report.share("encoder positions", State.ADAPTED) == 1
    assert report.share("encoder block 1", State.COPIED) == 1
    record = next(one for one in report.records if one.name == "eva.pos_embed")
    assert record.reason == "2x3x2 → 4x3x1 tokens"
    assert target.eva.pos_embed.shape == (1, 12, 48)
    assert features(target, torch.randn(1, 1, 32, 24, 8)).shape == (1, 48, 4, 3, 1)


def test_another_cell_reads_constant_cells_as_before():
    report, network, target = carried(primus_block(), primus_block(patch=(32, 24, 32), cell=(16, 8, 16)))
    assert report.encoder_coverage == 1
    (limit,) = report.limits
    assert limit.startswith("tokens stand for 16x8x16 voxels, in the checkpoint for 8x8x8: exact for images constant")
    cells = torch.randn(1, 1, 2, 3, 2)
    images = [cells.repeat_interleave(a, 2).repeat_interleave(8, 3).repeat_interleave(a, 4) for a in (8, 16)]
    torch.testing.assert_close(features(network, images[0]), features(target, images[1]), rtol=1e-4, atol=1e-4)


def test_more_blocks_pass_their_input_on_and_learn():
    for scale in (0.1, None):
        old, new = primus_block(init_values=scale), primus_block(eva_depth=4, init_values=scale)
        report, network, target = carried(old, new)
        assert report.exact
        assert report.encoder_coverage < 1
        assert report.share("encoder block 3", State.INITIALISED) == 1
        image = torch.randn(1, 1, 16, 24, 16)
        assert torch.equal(features(network, image), features(target, image))
        features(target, image)
        target.eva(torch.randn(1, 12, 48))[0].square().sum().backward()
        learns = target.eva.blocks[3].gamma_1 if scale else target.eva.blocks[3].attn.proj.weight
        assert learns.grad.abs().max() > 0


def test_fewer_blocks_are_said():
    report, _, target = carried(primus_block(eva_depth=4), primus_block())
    assert list(report.limits) == ["is the last here, of the checkpoint's 4: features are as they were up to there"]
    assert report.encoder_coverage == 1
    assert {name.split(".")[2] for name in report.unused} == {"2", "3"}
    assert len(target.eva.blocks) == 2


@pytest.mark.parametrize(
    ("old", "new", "limit"),
    [
        ({"eva_numheads": 1}, {}, "attention in 2 heads, in the checkpoint 1: another function"),
        ({"scale_attn_inner": False}, {}, "attn.norm.weight is not in the checkpoint"),
        ({}, {"scale_attn_inner": False}, "the target has no attn.norm.weight here, the checkpoint has"),
        ({}, {"init_values": None}, "the target has no gamma_1 here, the checkpoint has"),
        ({}, {"num_register_tokens": 2}, "2 tokens that stand for no place, in the checkpoint 0"),
        ({"num_register_tokens": 2}, {"num_register_tokens": 1}, "1 tokens that stand for no place, in the checkpoint"),
        ({"use_abs_pos_embed": False}, {}, "eva.pos_embed is not in the checkpoint"),
        ({"mlp_ratio": 2}, {}, "starts anew where shapes differ"),
        ({"rope_kwargs": {"temperature": 100.0}}, {}, "rotary positions of another kind than in the checkpoint"),
    ],
)
def test_other_settings_are_limits(old, new, limit):
    report, network, target = carried(primus_block(**old), primus_block(**new))
    assert any(text.startswith(limit) for text in report.limits), report.limits
    assert not report.exact
    image = torch.randn(1, 1, 16, 24, 16)
    assert not torch.allclose(features(network, image), features(target, image), atol=1e-3)


def test_no_layer_scale_is_one():
    report, network, target = carried(primus_block(init_values=None), primus_block())
    assert report.exact
    image = torch.randn(1, 1, 16, 24, 16)
    assert torch.equal(features(network, image), features(target, image))


def test_widths_and_kinds_are_refused_in_one_line():
    for resize in (False, True):
        block = primus_block(embed_dim=96)
        with pytest.raises(
            TransferError, match=r"tokens of width 96, the target's of width 48.*--resize-widths is for"
        ):
            match(primus_source(block, build_primus(block)), build_primus(primus_block()), ["T1"], resize)
    with pytest.raises(TransferError, match="2 names for 1 input channels"):
        match(primus_source(primus_block(), build_primus(primus_block())), build_primus(primus_block()), ["a", "b"])
    old = primus_source(primus_block(), build_primus(primus_block()))
    with pytest.raises(
        TransferError, match=r"holds a Primus, the target's plans ask for a PlainConvUNet: layers of the"
    ):
        match(old, build(architecture()), ["T1"])
    with pytest.raises(
        TransferError, match=r"holds a PlainConvUNet, the target's plans ask for a Primus: layers of the"
    ):
        match(source(architecture(), build(architecture()), names(1)), build_primus(primus_block()), ["T1"])
    with pytest.raises(TransferError, match=r"holds a Primus, the target's plans ask for a PrimusV2"):
        match(old, build_primus(primus_block("PrimusV2")), ["T1"])
    with pytest.raises(TransferError, match="no rotary positions"):
        match(old, build_primus(primus_block(use_rot_pos_emb=False)), ["T1"])


def test_the_table_names_every_part():
    report, _, _ = carried(primus_block(), primus_block(patch=(16, 24, 32)))
    table = report.table()
    rows = [line.split("  ")[0] for line in table.splitlines()[1:8]]
    assert set(rows) == {"stem", "encoder block 0", "encoder block 1", "encoder positions", "encoder norm", "mask token",
                         HEADS}  # fmt: skip
    assert re.search(r"segmentation heads .* 100\.0%  heads belong to the task", table)
    assert "100.0% of the encoder and 100.0% of the network, heads aside, come from the checkpoint" in table
    assert report.json()["parts"]["encoder positions"]["adapted"] == 1


GRIDS = st.tuples(*[st.integers(1, 6)] * 3)


@given(GRIDS, GRIDS, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_positions_that_are_a_ramp_stay_one_in_the_interior(before, after, registers):
    slopes = torch.tensor([0.3, -1.1, 0.7], dtype=torch.double)

    def centres(grid):
        lines = [(torch.arange(n, dtype=torch.double) + 0.5) / n for n in grid]
        return torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).flatten(0, 2)

    aside = torch.randn(1, registers, 1, dtype=torch.double)
    ramp = (centres(before) @ slopes)[None, :, None]
    found = resize_positions(torch.cat([aside, ramp], 1), registers, before, after)
    assert torch.equal(found[:, :registers], aside)
    places = centres(after)
    lowest, highest = 0.5 / torch.tensor(before), 1 - 0.5 / torch.tensor(before)
    inside = ((places >= lowest) & (places <= highest)).all(1)
    torch.testing.assert_close(found[0, registers:, 0][inside], (places @ slopes)[inside])
    if before == after:
        torch.testing.assert_close(found[:, registers:], ramp)


@given(GRIDS, GRIDS)
@settings(max_examples=60, deadline=None)
def test_cells_of_other_edges_keep_the_token_of_a_constant_image(before, after):
    weight = torch.randn(3, 2, *before, dtype=torch.double)
    resized = resize_cells(weight, after)
    assert resized.shape == (3, 2, *after)
    torch.testing.assert_close(resized.sum((2, 3, 4)), weight.sum((2, 3, 4)))
    if before == after:
        assert torch.equal(resized, weight)


@given(GRIDS, st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_cells_of_twice_the_edge_read_the_mean_of_what_one_voxel_was(cell, factor):
    weight = torch.randn(3, 2, *cell, dtype=torch.double)
    coarse = torch.randn(1, 2, *cell, dtype=torch.double)
    fine = coarse
    for axis in (2, 3, 4):
        fine = fine.repeat_interleave(factor, axis)
    constant = torch.einsum("oizyx,bizyx->bo", resize_cells(weight, [factor * n for n in cell]), torch.ones_like(fine))
    torch.testing.assert_close(constant, torch.einsum("oizyx->o", weight)[None])


@pytest.mark.parametrize("registers", [{}, {"num_register_tokens": 2}])
def test_tokens_that_were_numbered_with_swapped_axes_are_put_in_order(registers):
    """As nnssl's masked autoencoder numbers them: "b c w h d -> b (h w d) c", undone after the transformer."""
    block = primus_block(patch=(16, 16, 24), **registers)
    network, target = build_primus(block), build_primus(block, seed=1)
    old = replace(primus_source(block, network), turned=True)
    report = match(old, target, ["T1"])
    report.apply(target)
    assert not report.limits
    assert largest_difference(old, target, ["T1"]) == 0
    assert largest_difference(replace(old, turned=False), target, ["T1"]) > 0.1
    image = torch.randn(2, 1, 16, 16, 24)
    with torch.no_grad():
        grid = network.down_projection(image)
        aside = network.register_tokens.expand(2, -1, -1) if registers else grid[:, :, 0, 0, :0].transpose(1, 2)
        tokens = torch.cat([aside, rearrange(grid, "b c w h d -> b (h w d) c")], 1)
        found = network.eva(tokens)[0][:, aside.shape[1] :]
    theirs = rearrange(found, "b (h w d) c -> b c w h d", h=2, w=2)
    torch.testing.assert_close(features(target, image), theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(features(network, image), theirs, atol=0.1)


PAGE = (REPOSITORY / "docs" / "transfer.md").read_text()
PLAIN: dict[str, Any] = {}
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "nothing": (PLAIN, PLAIN, ("T1",), ("T1",)),
    "more blocks": (PLAIN, {"eva_depth": 3}, ("T1",), ("T1",)),
    "fewer blocks": ({"eva_depth": 3}, PLAIN, ("T1",), ("T1",)),
    "another patch, hence another grid of tokens": (PLAIN, {"patch": (24, 24, 16)}, ("T1",), ("T1",)),
    "a larger or smaller cell of voxels for a token": (
        PLAIN, {"patch": (32, 48, 32), "cell": (16, 16, 16)}, ("T1",), ("T1",)
    ),
    "another number of heads": (PLAIN, {"eva_numheads": 1}, ("T1",), ("T1",)),
    "no layer scale in the checkpoint": ({"init_values": None}, PLAIN, ("T1",), ("T1",)),
    "no norm within attention in the checkpoint": ({"scale_attn_inner": False}, PLAIN, ("T1",), ("T1",)),
    "input channels of a Primus in another order": (PLAIN, PLAIN, ("T1", "T2"), ("T2", "T1")),
    "further input channels of a Primus beside namesakes": (PLAIN, PLAIN, ("T1",), ("T1", "PD")),
}  # fmt: skip


def table_of_primus() -> dict[str, str]:
    rows = PAGE[PAGE.index("\n| change of a Primus |") :].strip().split("\n\n")[0].splitlines()[2:]
    return {change: re.sub(r"\[\^\w+\]", "", kept).strip() for change, kept in
            (row.strip("| ").split(" | ") for row in rows)}  # fmt: skip


def test_the_page_has_every_change():
    assert list(table_of_primus()) == list(CHANGES)


@pytest.mark.parametrize("change", CHANGES)
def test_the_page_says_what_is_kept(change):
    old, new, channels, ours = CHANGES[change]
    report, network, target = carried(primus_block(**old), primus_block(**new), channels, ours)
    factor = target.eva.rope.feat_shape == network.eva.rope.feat_shape
    cells = torch.randn(1, len(channels), 2, 3, 2)
    edge = network.down_projection.proj.kernel_size[0]
    image = {"any": torch.randn(1, len(channels), 16, 24, 16)}
    image["constant cells"] = cells.repeat_interleave(edge, 2).repeat_interleave(edge, 3).repeat_interleave(edge, 4)
    before = {kind: features(network, each) for kind, each in image.items()}
    wider = [channels.index(name) if name in channels else 0 for name in ours]
    new_edge = target.down_projection.proj.kernel_size[0]
    shown = {kind: each[:, wider].repeat_interleave(new_edge // edge, 2).repeat_interleave(new_edge // edge, 3)
             .repeat_interleave(new_edge // edge, 4) for kind, each in image.items()}  # fmt: skip
    if new_edge != edge:  # what is within a cell of the finer image differs
        shown["any"] = shown["any"] + torch.randn_like(shown["any"])
    same = {kind: factor and torch.allclose(before[kind], features(target, each), rtol=1e-4, atol=1e-4)
            for kind, each in shown.items()}  # fmt: skip
    taken = report.encoder_coverage == 1 or len(target.eva.blocks) > len(network.eva.blocks)
    words = {(True, True, True): "exact", (False, True, True): "constant cells only", (False, False, True): "changed",
             (False, False, False): "new"}  # fmt: skip
    assert table_of_primus()[change] == words[same["any"], same["constant cells"], taken]
    assert report.exact == same["any"]


def test_heads_of_labels_that_remain_start_anew_and_it_says_so():
    block, outputs = primus_block(), Outputs(["background", "liver"], False)
    given = replace(primus_source(block, build_primus(block), ["T1"]), outputs=outputs)
    said = "heads start anew, also for labels that remain: it is a Primus"
    assert said in match(given, build_primus(block), ["T1"], outputs=outputs).remarks
    assert said not in match(given, build_primus(block), ["T1"]).remarks
