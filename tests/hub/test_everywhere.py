"""Addresses where checkpoints are named, and what of them is written into records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import nnunet_genesis
from nnunet_genesis.errors import CheckpointError, HubError
from nnunet_genesis.files import sha256
from nnunet_genesis.hub.locating import located
from nnunet_genesis.leaks.search import unknown
from nnunet_genesis.nnunet_dataset import read_dataset_json, read_plans
from nnunet_genesis.restoring.into_folder import restore_scans
from nnunet_genesis.restoring.restorer import Restorer
from nnunet_genesis.study.arms import parse_arm, prepare_arm
from tests.conftest import run_genesis, shrink_plans, write_dataset
from tests.hub.server import Hub

FILE = "checkpoint_final.pth"


@pytest.fixture
def target(nnunet: Path) -> Path:
    """A dataset with tiny plans; its preprocessed folder."""
    write_dataset(nnunet, 4, "Target", 1)
    assert run_genesis("plan", "-d", 4, "--template", "tiny", "-p", "nnUNetPlans") == 0
    folder = nnunet / "nnUNet_preprocessed" / "Dataset004_Target"
    shrink_plans(folder / "nnUNetPlans.json")
    return folder


def published(hub: Hub, content: bytes) -> str:
    """The address that is to be written down."""
    return f"hf://me/weights@{hub.add('me/weights', {FILE: content})}/{FILE}"


TRANSFER = ("-d", 4, "-c", "3d_fullres", "--min-coverage", 0)


def test_a_transfer_writes_commit_and_digest_down_and_can_be_repeated_with_them(hub, content, target, capsys):
    address = published(hub, content)
    assert run_genesis("transfer", "hf://me/weights", *TRANSFER) == 0
    (entry,) = json.loads((target / "transfer_report.json").read_text()).values()
    digest = sha256(located(address))
    assert (entry["source"], entry["source_sha256"]) == (address, digest)
    settings = read_plans("Dataset004_Target", "nnUNetPlans_genesis")["genesis"]["fine_tuning"]["3d_fullres"]
    assert (settings["source"], settings["source_sha256"]) == (address, digest)
    first = torch.load(weights := target / settings["weights"])
    assert first["genesis"]["source"] == address
    hub.add("me/weights", {FILE: b"another"})
    assert run_genesis("transfer", address, *TRANSFER) == 0
    again = torch.load(weights)
    heads = [name for name in first["network_weights"] if "seg_layers" in name]
    assert all(torch.equal(first["network_weights"][name], again["network_weights"][name])
               for name in first["network_weights"] if name not in heads)  # fmt: skip
    assert run_genesis("transfer", "hf://me/weights", *TRANSFER) == 1
    assert "nnunet_genesis transfer: " in capsys.readouterr().err


def test_inspect_tells_where_a_file_came_from(hub, content, capsys):
    address = published(hub, content)
    hub.pages["/w.pth"] = (200, {}, content)
    for given, shown in (("hf://me/weights", address), (f"{hub.url}/w.pth", f"{hub.url}/w.pth")):
        assert run_genesis("inspect", given) == 0
        assert f"source:         {shown}\n" in capsys.readouterr().out
    assert run_genesis("inspect", located("hf://me/weights").resolve()) == 0
    assert "source:" not in capsys.readouterr().out
    assert run_genesis("inspect", "hf://me/none") == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_encoder_comes_from_an_address(hub, content, weights):
    published(hub, content)
    ours, theirs = (nnunet_genesis.encoder(name).state_dict() for name in ("hf://me/weights", weights))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_an_arm_of_a_study_names_its_address_and_no_folder_of_this_machine(hub, content, target, tmp_path, monkeypatch):
    address = published(hub, content)
    arm = parse_arm("theirs=hf://me/weights,learning_rate=0.001")
    plans, dataset_json = read_plans("Dataset004_Target", "nnUNetPlans"), read_dataset_json("Dataset004_Target")
    assert dataset_json["labels"]
    facts = prepare_arm(arm, tmp_path / "study", "Dataset004_Target", plans, "3d_fullres", {})
    assert (facts["checkpoint"], facts["source"]) == (address, address)
    assert str(tmp_path) not in json.dumps(facts)
    assert prepare_arm(parse_arm("scratch"), tmp_path / "study", "Dataset004_Target", plans, "3d_fullres", {})[
        "checkpoint"
    ] is None  # fmt: skip


def test_restore_and_leaks_look_at_the_file_behind_an_address(hub, content, target, tmp_path, capsys):
    published(hub, content)
    (tmp_path / "scans").mkdir()
    with pytest.raises(CheckpointError, match="restores no images"):
        Restorer("hf://me/weights")
    with pytest.raises(CheckpointError, match="restores no images"):
        restore_scans("hf://me/weights", [tmp_path / "scans"], tmp_path / "out")
    with pytest.raises(HubError, match="does not exist"):
        restore_scans("hf://me/none", [tmp_path / "scans"], tmp_path / "out")
    assert run_genesis("restore", "hf://me/none", "-i", tmp_path / "scans", "-o", tmp_path / "out") == 1
    assert run_genesis("leaks", "hf://me/none", "-d", 4) == 1
    assert capsys.readouterr().err.count("does not exist, or is private") == 2
    assert unknown(located("hf://me/weights")).startswith(FILE)
