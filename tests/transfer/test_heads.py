"""Rows of segmentation heads go to the labels that have their names, bit for bit, and to no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

from nnunet_genesis.networks.outputs import Outputs, outputs_of, with_kept_rows
from nnunet_genesis.networks.pretrained import PretrainedNetwork
from nnunet_genesis.transfer.heads import head_rows
from nnunet_genesis.transfer.matching import match
from nnunet_genesis.transfer.records import State
from nnunet_genesis.transfer.report import TransferReport
from tests.transfer.networks import architecture, build, names, source

ORGANS = ["background", *(f"organ {number}" for number in range(1, 19))]


def carried(
    old: list[str], new: list[str], features: tuple[int, ...] = (4, 6, 8), resize_widths: bool = False, **dims: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor], TransferReport]:
    """State dicts of the source, of the fresh target and of the target after the transfer; the report."""
    block = architecture()
    trained, target = build(block, 1, len(old)), build(architecture(features=features, **dims), 1, len(new), seed=1)
    given = replace(source(block, trained, names(1)), outputs=Outputs(old, False))
    fresh = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    report = match(given, target, names(1), resize_widths, Outputs(new, False))
    report.apply(target)
    return trained.state_dict(), fresh, target.state_dict(), report


def heads(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if ".seg_layers." in name}


def test_rows_of_19_labels_are_kept_among_29_in_another_order_at_all_resolutions():
    new = [ORGANS[0], *(f"vessel {number}" for number in range(10)), *(name.upper() for name in ORGANS[:0:-1])]
    before, fresh, after, report = carried(ORGANS, new)
    assert (len(ORGANS), len(new), len(heads(after))) == (19, 29, 4)
    for name, tensor in heads(after).items():
        for row, label in enumerate(new):
            kept = label.lower() in ORGANS
            expected = before[name][ORGANS.index(label.lower())] if kept else fresh[name][row]
            assert torch.equal(tensor[row], expected), (name, label)
    assert report.labels == {"kept": [new[0], *new[11:]], "new": new[1:11], "dropped": []}
    shown = "heads by names of labels: kept background, ORGAN 18, ORGAN 17, ORGAN 16, ORGAN 15, ORGAN 14, ORGAN 13, "
    assert f"{shown}ORGAN 12 and 11 more; new vessel 0, vessel 1" in report.table()
    assert "19 of 29 rows by names of labels" in report.table()
    assert report.share("segmentation heads", State.ADAPTED) == pytest.approx(19 / 29, abs=1e-3)
    assert set(report.kept_rows) == set(heads(after))
    assert set(map(tuple, report.kept_rows.values())) == {(0, *range(11, 29))}


def test_equal_labels_are_copied_whole():
    before, _, after, report = carried(ORGANS[:3], ORGANS[:3])
    assert all(torch.equal(tensor, before[name]) for name, tensor in heads(after).items())
    assert report.share("segmentation heads", State.COPIED) == 1


def test_as_many_labels_of_other_names_take_nothing():
    _, fresh, after, report = carried(["air", "liver", "spleen"], ["background", "bone", "fat"])
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in heads(after).items())
    assert "heads start anew: no name of a label in common; new background, bone, fat; dropped air" in report.table()
    assert (report.head_rows, report.kept_rows) == ([], {})


def test_heads_of_other_widths_are_carried_where_that_is_asked_for():
    old, new = ["background", "liver"], ["background", "spleen", "liver"]
    _, fresh, after, report = carried(old, new, features=(6, 6, 8))
    name = "decoder.seg_layers.1.weight"
    assert torch.equal(after[name], fresh[name])  # 4 features in the checkpoint, 6 here
    assert (set(report.kept_rows), set(heads(after))) == (
        {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"}, set(heads(fresh)),
    )  # fmt: skip
    before, fresh, after, _ = carried(old, new, features=(6, 6, 8), resize_widths=True)
    assert torch.equal(after[name][2, :4], before[name][1])
    assert not after[name][2, 4:].any()
    assert torch.equal(after[name][1], fresh[name][1])


def test_heads_go_from_3d_to_2d():
    before, _, after, _ = carried(["background", "liver"], ["background", "liver"], dim=2)
    assert all(torch.equal(tensor.flatten(), before[name].flatten()) for name, tensor in heads(after).items())


def test_a_deeper_targets_further_head_is_new():
    before, fresh, after, _ = carried(["background", "liver"], ["background", "liver"], features=(4, 6, 8, 8))
    for name, tensor in heads(after).items():
        level = int(name.split(".")[2])
        number = f"decoder.seg_layers.{level - 1}.{name.split('.')[-1]}"
        assert torch.equal(tensor, before[number] if level else fresh[name])


@pytest.mark.parametrize("regions", [True, False])
def test_regions_and_labels_are_not_matched_with_each_other(regions):
    found = head_rows(Outputs(["a", "b"], regions), Outputs(["a", "b"], not regions))
    assert not found.rows
    assert re_order(found.remark, regions)
    assert head_rows(Outputs(["b", "a"], regions), Outputs(["a", "b"], regions)).rows == {0: 1, 1: 0}


def re_order(remark: str, regions: bool) -> bool:
    return (remark.index("regions") < remark.index("labels")) == regions and remark.startswith("heads start anew")


def test_names_that_occur_twice_or_not_at_all_are_not_matched():
    assert head_rows(Outputs(["a", "A", "b"], False), Outputs(["a", " B "], False)).rows == {1: 2}
    assert not head_rows(None, Outputs(["a"], False)).rows
    assert not head_rows(Outputs(["a"], False), None).rows


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"background": 0, "b": 2, "a": 1}, Outputs(["background", "a", "b"], False)),
        ({"background": 0, "a": [1], "ignore": 2}, Outputs(["background", "a"], False)),
        ({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, Outputs(["whole", "core"], True)),
        ({"background": 0, "core": [2], "whole": (1, 2)}, Outputs(["core", "whole"], True)),
        ({"background": 0, "a": 1, "another a": 1, "b": 2}, Outputs(["background", "a", "b"], False)),
        ({"background": 0}, None),
        ({"background": 0, "a": "one"}, None),
        ({"background": 0, "a": []}, None),
        (["background"], None),
        (None, None),
    ],
)
def test_outputs_are_those_of_nnunets_network(labels, expected):
    assert outputs_of({"labels": labels}) == expected
    if expected:
        manager = LabelManager(labels, [1] * len(expected.names) if expected.regions else None)
        assert (len(expected.names), expected.regions) == (manager.num_segmentation_heads, manager.has_regions)


@pytest.mark.parametrize("rows", [[2], [-1], ["0"], [0.0]])
def test_rows_that_a_head_does_not_have_are_refused(rows):
    with pytest.raises(ValueError, match="rows"):
        with_kept_rows(torch.zeros(2, 3), torch.ones(2, 3), rows)


def test_rows_of_heads_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="rows"):
        with_kept_rows(torch.zeros(2, 3), torch.ones(3, 3), [0])


def test_a_checkpoint_without_names_of_labels_says_nothing_of_them():
    block = architecture()
    network: nn.Module = build(block)
    given = PretrainedNetwork(network.state_dict(), block, 1, names(1))
    report = match(given, build(block, seed=1), names(1), outputs=Outputs(["a", "b"], False))
    assert "heads by" not in report.table()
    assert (report.labels, report.kept_rows) == ({}, {})
