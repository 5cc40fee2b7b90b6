"""What a transfer writes beside the plans, what it keeps, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_genesis.files import sha256
from nnunet_genesis.transfer.into_plans import SCHEDULE
from tests.trainers.conftest import edit_plans

TO = ("-d", 4, "-c", "3d_fullres")
WIDTHS = "configurations__3d_fullres__architecture__arch_kwargs__features_per_stage"


def plans_of(folder: Path, name: str = "nnUNetPlans_genesis") -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


def block_of(folder: Path, configuration: str = "3d_fullres", name: str = "nnUNetPlans_genesis") -> dict[str, Any]:
    return plans_of(folder, name)["genesis"]["fine_tuning"][configuration]


def state_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_plans_weights_and_report_identify_each_other(transferred: Path, genesis, capsys):
    checkpoint = transferred.parents[1] / "pretrained.pth"
    edit_plans(transferred / "nnUNetPlans.json", **{WIDTHS: [4, 6, 10]})
    capsys.readouterr()
    assert genesis("transfer", checkpoint, *TO, "--to", "Ours", "--min-coverage", 0.1, "--epochs", 40) == 0
    assert "all but the heads" in capsys.readouterr().out
    plans, old = plans_of(transferred, "Ours"), plans_of(transferred, "nnUNetPlans")
    assert plans.pop("genesis") == {"fine_tuning": {"3d_fullres": block_of(transferred, name="Ours")}}
    old.pop("genesis")
    assert plans == old | {"plans_name": "Ours"}  # the same data identifiers: no volume is made anew
    weights, block = transferred / "Ours_3d_fullres.pth", block_of(transferred, name="Ours")
    assert block["weights"] == weights.name
    assert block["sha256"] == sha256(weights)
    assert block["source_sha256"] == sha256(checkpoint)
    assert block["source"] == "/".join(checkpoint.parts[-3:])
    assert (block["epochs"], block["warmup"]) == (40, 2)

    entry = json.loads((transferred / "transfer_report.json").read_text())[weights.name]
    assert [entry[key] for key in ("source", "source_sha256", "sha256")] == [
        block[key] for key in ("source", "source_sha256", "sha256")
    ]
    held = torch.load(weights, weights_only=True)
    facts = held["genesis"]
    assert facts["source"] == "pretrained.pth"
    assert set(facts["versions"]) == {"nnunet-genesis", "nnunetv2", "torch", "numpy"}
    assert facts["tensors"].keys() == {line["name"] for line in entry["tensors"]}
    for line in entry["tensors"]:
        assert line["state"] in str(facts["tensors"][line["name"]])
    assert 0 < facts["coverage"] < 1
    assert block["coverage"] == entry["coverage"] == round(facts["coverage"], 6) != facts["coverage"]

    source = torch.load(checkpoint, weights_only=True)["network_weights"]
    states = {line["name"]: line["state"] for line in entry["tensors"]}
    assert {"copied", "initialised"} <= set(states.values())
    for name, state in states.items():
        if state == "copied":
            assert torch.equal(held["network_weights"][name], source[name])


@pytest.mark.parametrize("given", ["pretrained.pth", "one/pretrained.pth", "zero/one/two/three/pretrained.pth"])
def test_the_source_is_named_so_that_it_is_found_and_tells_no_more(transferred: Path, genesis, monkeypatch, given):
    base = transferred.parents[1]
    monkeypatch.chdir(base)
    (base / given).parent.mkdir(parents=True, exist_ok=True)
    (base / "pretrained.pth").rename(base / given)
    assert genesis("transfer", given, *TO) == 0
    assert block_of(transferred)["source"] == "/".join(Path(given).parts[-3:])


@pytest.mark.parametrize(
    ("schedule", "warmup", "epochs"),
    [
        ((), 50, 1000), (("--epochs", 2000), 50, 2000), (("--epochs", 999), 49, 999), (("--epochs", 19), 0, 19),
        (("--epochs", 20), 1, 20), (("--epochs", 20, "--warmup", 3), 3, 20), (("--warmup", 0), 0, 1000),
    ],
)  # fmt: skip
def test_warm_up_is_a_twentieth_of_the_epochs_where_none_is_named(ready: Path, genesis, schedule, warmup, epochs):
    assert genesis("transfer", "--from-scratch", *TO, *schedule, "--to", "Ours") == 0
    block = block_of(ready / "nnUNet_preprocessed/Dataset004_Target", name="Ours")
    assert (block["warmup"], block["epochs"]) == (warmup, epochs)


def test_the_control_arm_differs_by_its_weights_alone(transferred: Path, genesis, capsys):
    before = state_of(transferred)
    capsys.readouterr()
    assert genesis("transfer", "--from-scratch", *TO, "--epochs", 2, "--iterations", 1, "--encoder-lr-scale", 0.5) == 0
    assert "heads" not in capsys.readouterr().out
    assert set(state_of(transferred)) - set(before) == {"nnUNetPlans_scratch.json"}
    assert genesis("transfer", transferred.parents[1] / "pretrained.pth", *TO, "--epochs", 2, "--iterations", 1,
                   "--encoder-lr-scale", 0.5) == 0  # fmt: skip
    ours, control = block_of(transferred), block_of(transferred, name="nnUNetPlans_scratch")
    assert {key: ours[key] for key in SCHEDULE} == {key: control[key] for key in SCHEDULE}
    others = set(control) - set(SCHEDULE)
    assert {control[key] or "" for key in others} == {""}
    assert all(ours[key] for key in others)


def test_other_configurations_are_kept_while_the_plans_stay_the_same(transferred: Path, genesis):
    full = block_of(transferred)
    report = json.loads((transferred / "transfer_report.json").read_text())
    checkpoint = transferred.parents[1] / "pretrained.pth"
    assert genesis("transfer", checkpoint, "-d", 4, "-c", "2d", "--epochs", 3) == 0
    assert plans_of(transferred)["genesis"]["fine_tuning"] == {"3d_fullres": full, "2d": block_of(transferred, "2d")}
    both = json.loads((transferred / "transfer_report.json").read_text())
    assert both.pop("nnUNetPlans_genesis_2d.pth")
    assert both == report
    assert genesis("transfer", checkpoint, *TO, "--epochs", 5) == 0  # the same once more
    assert {name: block["epochs"] for name, block in plans_of(transferred)["genesis"]["fine_tuning"].items()} == {
        "2d": 3, "3d_fullres": 5,
    }  # fmt: skip
    edit_plans(transferred / "nnUNetPlans.json", configurations__2d__batch_size=7)
    assert genesis("transfer", checkpoint, *TO, "--epochs", 6) == 0
    assert list(plans_of(transferred)["genesis"]["fine_tuning"]) == ["3d_fullres"]
    assert plans_of(transferred)["configurations"]["2d"]["batch_size"] == 7


def test_what_cannot_be_done_changes_nothing(transferred: Path, genesis, capsys):
    """Plans of nnU-Net and of pre-training, too little coverage, a setting out of range, a damaged report."""
    checkpoint = transferred.parents[1] / "pretrained.pth"
    plans = plans_of(transferred, "nnUNetPlans")
    (transferred / "Stock.json").write_text(json.dumps(plans))
    (transferred / "Pretraining.json").write_text(json.dumps(plans | {"genesis": {"pretraining": {}}}))
    edit_plans(transferred / "nnUNetPlans.json", **{WIDTHS: [4, 12, 16]})
    before = state_of(transferred)
    for arguments, message in [
        (("--to", "Stock"), "Stock of Dataset004_Target exist and would be overwritten"),
        (("--to", "Pretraining"), "Pretraining of Dataset004_Target exist and would be overwritten"),
        (("--to", "nnUNetPlans"), "The plans nnUNetPlans would be overwritten. Name others with --to."),
        (("--epochs", 5, "--freeze-epochs", 5), '"freeze_epochs" (5) must be below'),
        ((), "fewer than the 50% asked for"),
        (("--min-coverage", 0.3), "fewer than the 30% asked for"),
    ]:
        assert genesis("transfer", checkpoint, *TO, *arguments) == 1
        assert message in capsys.readouterr().err
        assert state_of(transferred) == before
    assert genesis("transfer", checkpoint, *TO, "--min-coverage", 0) == 0
    (transferred / "transfer_report.json").write_text("{")
    assert genesis("transfer", checkpoint, *TO, "--min-coverage", 0) == 1
    assert "transfer_report.json is not valid JSON" in capsys.readouterr().err
