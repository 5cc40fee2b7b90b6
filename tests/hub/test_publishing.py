"""What `card` writes is read as the checkpoint that it was written from, tells nothing of people, and `push` uploads it."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from nnunet_genesis.checkpoints import case_files
from nnunet_genesis.checkpoints.formats.published import CASES, CONFIG, WEIGHTS
from nnunet_genesis.checkpoints.reading import read_pretrained
from nnunet_genesis.corruption import RECIPES
from nnunet_genesis.errors import CheckpointError, GenesisError, HubError
from nnunet_genesis.files import sha256
from nnunet_genesis.hub.locating import located
from nnunet_genesis.leaks.case_record import CaseRecord, record_in
from nnunet_genesis.networks.pretrained import PretrainedNetwork
from nnunet_genesis.publishing.bundle import About, write_bundle
from nnunet_genesis.publishing.model_card import ADDRESS
from nnunet_genesis.publishing.pushing import push
from nnunet_genesis.settings import PretrainingSettings
from tests.checkpoints.replicas import generic_unet, original_unet3d
from tests.conftest import run_genesis
from tests.primus import build_primus, primus_block
from tests.test_encoders import KINDS, checkpoint

ABOUT = About("cc-by-4.0", "LUNA16, subsets 0 to 5")
SECRETS = ("Mueller", "Dataset001_Any", "Hospital", "secret", "/tmp", "/home")


def alike(one: PretrainedNetwork, other: PretrainedNetwork) -> bool:
    """All that a transfer works with, bit for bit."""
    assert list(one.weights) == list(other.weights)
    for name, tensor in one.weights.items():
        assert tensor.dtype == other.weights[name].dtype
        assert torch.equal(tensor, other.weights[name]), name
    facts = {field.name for field in fields(one)} - {"weights", "notes", "cases"}
    return all(getattr(one, fact) == getattr(other, fact) for fact in facts) and set(one.notes) == set(other.notes)


def pretrained(folder: Path, record: bool = True) -> Path:
    """As nnUNetTrainerGenesisPretrain writes it, on cases with names."""
    path, _ = checkpoint(folder, "plain 3D", ["T1"])
    content = torch.load(path)
    settings = PretrainingSettings(epochs=7, iterations=11, exclude=("Mueller_1",)).block()
    names = ("Mueller_1", "Mueller_2")
    cases = CaseRecord(names, torch.randint(0, 255, (2, 16), dtype=torch.uint8).numpy(),
                       torch.randint(-99, 99, (2, 4096), dtype=torch.int8).numpy())  # fmt: skip
    content |= {"trainer_name": "nnUNetTrainerGenesisPretrain"}
    content["genesis"] = {"settings": settings, "versions": {"torch": "2.9.9", "secret": "secret"},
                          "cases": cases.block() if record else None}  # fmt: skip
    numbers = {"mean": -775.8, "std": 251.9, "percentile_00_5": -1000.0, "name": "secret"}
    content["init_args"]["plans"]["foreground_intensity_properties_per_channel"] = {"0": numbers}
    path = folder / "Hospital_secret.pth"
    torch.save(content, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_u_nets_come_back_bit_for_bit(kind, tmp_path):
    path, network = checkpoint(tmp_path, kind, ["T1", "T2"])
    write_bundle(path, tmp_path / "weights", ABOUT)
    tensors = load_file(tmp_path / "weights" / WEIGHTS)
    of_network = network.state_dict()
    assert tensors.keys() == dict(network.named_parameters()).keys()
    assert all(torch.equal(tensor, of_network[name]) for name, tensor in tensors.items())
    assert alike(read_pretrained(path), read_pretrained(located(tmp_path / "weights")))


def test_the_empty_folder_one_is_in_may_be_named(tmp_path, monkeypatch):
    path, _ = checkpoint(tmp_path, "plain 3D", ["T1"])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_bundle(path, Path(), ABOUT)
    assert sorted(file.name for file in (tmp_path / "here").iterdir()) == ["README.md", CONFIG, WEIGHTS]


@pytest.mark.parametrize("half", [False, True])
def test_other_kinds_of_files_come_back_with_what_was_assumed(tmp_path, half):
    """A Primus whose file tells its patch nowhere else, and an nnU-Net v1 with kernels that v2 would not have."""
    torch.save({"network_weights": build_primus(block := primus_block()).state_dict(), "trainer_name": "any",
                "init_args": {"configuration": "any", "plans": {"dataset_name": "x", "plans_name": "y", "configurations": {
                    "any": {"architecture": block, "patch_size": [16, 24, 16], "spacing": [3.0, 1.0, 1.0],
                            "normalization_schemes": ["CTNormalization"]}}}}}, tmp_path / "primus.pth")  # fmt: skip
    weights = generic_unet([4, 8, 16], [[1, 2, 2], [2, 2, 2]], [[1, 3, 3], [3, 3, 3], [3, 3, 3]])
    torch.save({name: tensor.half() if half else tensor for name, tensor in weights.items()}, tmp_path / "v1.model")
    torch.save({"state_dict": original_unet3d(8)}, tmp_path / "Genesis_Chest_CT.pt")
    for name in ("primus.pth", "v1.model", "Genesis_Chest_CT.pt"):
        write_bundle(tmp_path / name, tmp_path / f"{name}_card", ABOUT)
        assert ("wald2025" in (tmp_path / f"{name}_card" / "README.md").read_text()) == (name == "primus.pth")
        assert alike(read_pretrained(tmp_path / name), read_pretrained(located(tmp_path / f"{name}_card")))


def test_nothing_of_people_cases_datasets_and_machines_is_published(tmp_path):
    config = write_bundle(pretrained(tmp_path), tmp_path / "weights", ABOUT)
    files = sorted((tmp_path / "weights").iterdir())
    assert [file.name for file in files] == ["README.md", CONFIG, WEIGHTS]
    for file in files:
        for secret in (*SECRETS, str(tmp_path)):
            assert secret.encode() not in file.read_bytes(), (file.name, secret)
    assert config["intensities"] == [{"mean": -775.8, "std": 251.9, "percentile_00_5": -1000.0}]
    assert (config["pretraining"]["epochs"], config["trained_with"]) == (7, {"torch": "2.9.9"})
    assert config["source_sha256"] == sha256(tmp_path / "Hospital_secret.pth")


def test_the_hub_is_named_as_the_source_and_other_servers_are_not(hub, content, tmp_path):
    commit = hub.add("me/weights", {"x.pth": content})
    hub.pages["/x.pth"] = (200, {}, content)
    assert write_bundle("hf://me/weights", tmp_path / "a", ABOUT)["source"] == f"hf://me/weights@{commit}/x.pth"
    assert commit in (tmp_path / "a" / "README.md").read_text()
    assert write_bundle(f"{hub.url}/x.pth", tmp_path / "b", ABOUT)["source"] is None
    assert not any(b"127.0.0.1" in file.read_bytes() for file in (tmp_path / "b").iterdir())


def test_cases_are_published_on_request_and_found_again(tmp_path):
    path = pretrained(tmp_path)
    write_bundle(path, tmp_path / "weights", About("cc-by-4.0", "x", cases=True))
    before, after = record_in(path), record_in(located(tmp_path / "weights"))
    assert before is not None
    assert after is not None
    assert before.names == after.names
    assert (before.digests == after.digests).all()
    assert (before.signatures == after.signatures).all()
    # and from there on, too
    again = write_bundle(tmp_path / "weights", tmp_path / "again", About("cc-by-4.0", "x", cases=True))
    assert record_in(tmp_path / "again" / WEIGHTS).names == before.names
    assert again["pretraining"]["iterations"] == 11
    assert again["intensities"] == [{"mean": -775.8, "std": 251.9, "percentile_00_5": -1000.0}]
    with pytest.raises(HubError, match="no record of its cases"):
        write_bundle(pretrained(tmp_path, record=False), tmp_path / "other", About("cc-by-4.0", "x", cases=True))
    assert not (tmp_path / "other").exists()


def test_the_model_card_is_one_for_the_hub(tmp_path):
    data = "Scans | of <b>`us`</b>\n---\nlicense: mit"
    citation = "@article{ours}\n```"
    write_bundle(pretrained(tmp_path), tmp_path / "weights", About("cc-by-4.0", data, "Our #1: model", citation))
    card = ModelCard.load(tmp_path / "weights" / "README.md")
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "nnunet-genesis")
    assert "self-supervised-learning" in card.data.tags
    text = card.text
    assert "# Our #1: model" in text
    assert "Scans \\| of &lt;b&gt;'us'&lt;/b&gt; --- license: mit" in text
    assert text.count("```") % 2 == 0
    for part in ("@article{ours}", "zhou2021models", "isensee2021nnunet", f"transfer {ADDRESS} -d 4 -c 3d_fullres",
                 "7 epochs of 11 steps", "mean -775.8", "1 x 1 x 1 mm", "16x16x16", "T1", "order z, y, x", "not published"):  # fmt: skip
        assert part in text, part


def test_a_masked_autoencoder_is_called_one(tmp_path):
    content = torch.load(path := pretrained(tmp_path))
    content["genesis"]["settings"] = PretrainingSettings(recipe=RECIPES["mae"]).block()
    torch.save(content, path)
    write_bundle(path, tmp_path / "weights", ABOUT)
    text = (tmp_path / "weights" / "README.md").read_text()
    assert "as a masked autoencoder" in text
    assert "with masking. " in text
    assert ("zhou2023selfmedmae" in text, "zhou2021models" in text) == (True, False)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        (("CC BY 4.0", "x"), "no identifier of a licence"),
        (("mit\nx: y", "x"), "no identifier"),
        (("mit", " "), "--data"),
    ],
)
def test_what_only_its_makers_know_must_be_said(about, words):
    with pytest.raises(HubError, match=words):
        About(*about)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, weights):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(HubError, match="exists and is not empty"):
        write_bundle(weights, tmp_path / "full", ABOUT)
    (tmp_path / "text.pth").write_text("no checkpoint at all, but a text")
    with pytest.raises(CheckpointError):
        write_bundle(tmp_path / "text.pth", tmp_path / "new", ABOUT)
    broken = torch.load(pretrained(tmp_path))
    broken["genesis"]["settings"]["epochs"] = "many"
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(GenesisError, match="epochs"):
        write_bundle(tmp_path / "broken.pth", tmp_path / "new", ABOUT)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"full"}
    (tmp_path / "empty").mkdir()
    write_bundle(weights, tmp_path / "empty", ABOUT)
    assert read_pretrained(located(tmp_path / "empty")).parameters > 0


# hostile folders


def changed(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(config))
    return folder / WEIGHTS


@pytest.mark.parametrize(
    "changes",
    [{"architecture": None}, {"architecture": {"network_class_name": "os.system"}}, {"channels": "T1"}, {"channels": [1]},
     {"patch_size": [1.5] * 3}, {"patch_size": {"0": 1}}, {"spacing": ["1"]}, {"spacing": [[1]]}, {"normalisation": [None]},
     {"notes": 3}, {"notes": ["x"] * 2000}, {"turned": "yes"}, {"axes": "yxz"}, {"axes": ["x"]}, {"outputs": ["a"]}, {"outputs": {"names": [1], "regions": True}},
     {"outputs": {"names": ["a"]}}, {"turned": True}, {"weights_sha256": "0" * 64},
     {"weights_sha256": None}, {"nnunet_genesis_card": 2}, {"nnunet_genesis_card": [1]}],
)  # fmt: skip
def test_a_config_that_is_not_as_it_should_be_is_refused_in_one_line(tmp_path, weights, changes):
    write_bundle(weights, tmp_path / "weights", ABOUT)
    path = changed(tmp_path / "weights", **changes)
    with pytest.raises(CheckpointError) as error:
        read_pretrained(path)
    assert str(error.value).isprintable()
    assert str(path.parent) in str(error.value)


def test_a_swap_of_axes_that_are_not_alike_is_refused(tmp_path):
    torch.save(build_primus(block := primus_block(embed_dim=396, eva_numheads=6)).state_dict(), tmp_path / "primus.pth")
    torch.save({"state_dict": torch.load(tmp_path / "primus.pth"), "init_args": {"configuration": "any", "plans": {
        "dataset_name": "x", "plans_name": "y", "configurations": {"any": {
            "architecture": block, "patch_size": [16, 24, 16], "spacing": [1.0] * 3,
            "normalization_schemes": ["ZScoreNormalization"]}}}}}, tmp_path / "primus.pth")  # fmt: skip
    write_bundle(tmp_path / "primus.pth", tmp_path / "weights", ABOUT)
    with pytest.raises(CheckpointError, match="cannot be swapped"):
        read_pretrained(changed(tmp_path / "weights", turned=True))


def test_somebody_elses_config_is_none_of_ours(tmp_path, weights):
    write_bundle(weights, tmp_path / "weights", ABOUT)
    (tmp_path / "weights" / CONFIG).write_text('{"model_type": "bert"}')
    assert "state dict" in read_pretrained(tmp_path / "weights" / WEIGHTS).format
    assert located(tmp_path / "weights") == tmp_path / "weights"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY"])
def test_a_damaged_record_of_cases_is_refused(tmp_path, weights, content):
    write_bundle(weights, tmp_path / "weights", ABOUT)
    (tmp_path / "weights" / CASES).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cases\.npz cannot be read"):
        record_in(tmp_path / "weights" / WEIGHTS)


def test_a_record_of_cases_that_unpacks_to_more_than_any_is_not_read(tmp_path, monkeypatch):
    write_bundle(pretrained(tmp_path), tmp_path / "weights", replace(ABOUT, cases=True))
    monkeypatch.setattr(case_files, "LARGEST_RECORD", 1000)
    with pytest.raises(CheckpointError, match=r"cases\.npz cannot be read"):
        record_in(tmp_path / "weights" / WEIGHTS)


# to the hub and back


def test_what_is_pushed_comes_back(hub, tmp_path, monkeypatch, capsys):
    path, folder = pretrained(tmp_path), tmp_path / "weights"
    words = ("--licence", "mit", "--data", "CT", "--cases")
    assert run_genesis("card", path, "-o", folder, *words) == 0
    assert "WARNING: cases.npz" in capsys.readouterr().out
    (folder / "notes.txt").write_text("secret")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert run_genesis("push", folder, "hf://me/ours", "--private") == 0
    (commit,) = hub.repositories["me/ours"].branches.values()
    assert f"inspect hf://me/ours@{commit}\n" in capsys.readouterr().out
    files = hub.repositories["me/ours"].commits[commit]
    assert hub.repositories["me/ours"].private
    assert files.keys() == {"README.md", CONFIG, WEIGHTS, CASES}
    assert b"transfer hf://me/ours -d 4" in files["README.md"]
    assert ADDRESS.encode() not in files["README.md"]
    back = located("hf://me/ours")
    assert alike(read_pretrained(path), read_pretrained(back))
    # of the same commit, whatever the branch has become meanwhile
    assert {f"/me/ours/resolve/{commit}/{name}" for name in (CONFIG, CASES)} <= {path for _, path, _ in hub.requests}
    assert record_in(back).names == ("Mueller_1", "Mueller_2")


def test_push_refuses_what_would_be_public_or_is_no_card(hub, tmp_path, weights, monkeypatch):
    folder = tmp_path / "weights"
    write_bundle(weights, folder, ABOUT)

    def fails(words: str, *arguments: Any) -> None:
        with pytest.raises(GenesisError, match=words) as error:
            push(*arguments)
        assert str(error.value).isprintable()

    fails("Nobody is logged in", folder, "hf://me/ours")
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    fails(r"answers 401 .* Log in with a token", folder, "hf://me/ours")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.add("me/public", {"x": b""})
    fails("exists and is public", folder, "hf://me/public", True)
    assert list(hub.repositories["me/public"].commits.values()) == [{"x": b""}]
    for address in ("hf://me/ours@v1", "hf://me/ours/x.pth"):
        fails("names more than a repository", folder, address)
    fails("is no address of a repository", folder, "me/ours")
    fails("holds no model card with weights", tmp_path, "hf://me/ours")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1] + b"\x01")
    fails("is not the file that", folder, "hf://me/ours")
    assert hub.repositories.keys() == {"me/public"}


@pytest.mark.parametrize(
    "intensities", [5, "text", {"0": {"mean": 1}}, [5], [{"mean": 10**400, "std": 2.0}], [{"std": 2}]]
)
def test_intensities_of_a_card_that_are_none_are_left_out(intensities, tmp_path):
    write_bundle(pretrained(tmp_path), tmp_path / "first", ABOUT)
    content = json.loads((tmp_path / "first" / CONFIG).read_text())
    (tmp_path / "first" / CONFIG).write_text(json.dumps(content | {"intensities": intensities}))
    config = write_bundle(tmp_path / "first", tmp_path / "second", ABOUT)
    known = isinstance(intensities, list) and isinstance(intensities[0], dict)
    assert config["intensities"] == ([{"std": 2.0}] if known else None)
