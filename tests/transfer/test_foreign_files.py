"""`nnunet_genesis transfer` with files of other trainings, up to a training step of nnU-Net."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from safetensors.torch import save_file
from torch import nn

from nnunet_genesis.finetuning import nnUNetTrainerGenesisFinetune
from nnunet_genesis.nnunet_dataset import read_dataset_json, read_plans
from nnunet_genesis.transfer.into_plans import target_network
from tests.checkpoints.files import nnssl_file
from tests.checkpoints.replicas import (
    LUNA16_POOLS,
    generic_unet,
    original_unet3d,
    run_generic_unet,
    run_original_unet3d,
)
from tests.checkpoints.test_reading import Trap
from tests.transfer.test_axes import reversed_axes

FEATURES = [4, 8, 16, 32, 40, 40]
TARGET = "nnUNet_preprocessed/Dataset004_Target"
PLAIN = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
FINETUNE = ("-tr", "nnUNetTrainerGenesisFinetune", "-p", "nnUNetPlans_genesis", "-device", "cpu")


@pytest.fixture
def hippocampus(ready_once: Path, nnunet: Path) -> Path:
    """Dataset 4 with the network that nnU-Net plans for the Decathlon's hippocampus, an eighth as wide."""
    shutil.copytree(ready_once, nnunet, dirs_exist_ok=True)
    path = nnunet / TARGET / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= {
        "n_stages": 4,
        "features_per_stage": FEATURES[:4],
        "kernel_sizes": [[3, 3, 3]] * 4,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * 3],
        "n_conv_per_stage": [2] * 4,
        "n_conv_per_stage_decoder": [2] * 3,
    }
    path.write_text(json.dumps(plans))
    return nnunet


@pytest.fixture
def luna16(tmp_path: Path) -> Path:
    """A file like the published genesis_nnunet_luna16_006.model, an eighth as wide."""
    path = tmp_path / "genesis_nnunet_luna16_006.model"
    content = {"epoch": 6, "state_dict": generic_unet(FEATURES, LUNA16_POOLS), "optimizer_state_dict": {}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def target(folder: Path) -> nn.Module:
    """A freshly initialised network of dataset 4's plans."""
    return target_network(read_plans("Dataset004_Target", "nnUNetPlans"), "3d_fullres",
                          read_dataset_json("Dataset004_Target"))[0].eval()  # fmt: skip


def assert_luna16_features(network: nn.Module) -> None:
    image, expected = torch.randn(1, 1, 32, 32, 64), []  # x, y, z
    run_generic_unet(generic_unet(FEATURES, LUNA16_POOLS), image, LUNA16_POOLS, expected)
    with torch.no_grad():
        ours = network.eval().encoder(reversed_axes(image))
    assert (len(ours), len(expected)) == (4, 6)
    for made, reference in zip(ours, expected, strict=False):
        assert reference.std() > 0.1
        torch.testing.assert_close(made, reversed_axes(reference), rtol=0, atol=1e-4)


def test_v1_goes_into_plans_of_today(hippocampus: Path, luna16: Path, genesis, stock, monkeypatch, capsys):
    schedule = ("--epochs", 1, "--iterations", 1, "--lr", 1e-6)
    assert genesis("transfer", luna16, "-d", 4, "-c", "3d_fullres", *schedule) == 0
    shown = capsys.readouterr().out
    assert "100.0% of the encoder and 100.0% of the network, heads aside, come from the checkpoint" in shown
    assert "the checkpoint does not name its 1 input channel(s); assumed for T1: by position" in shown
    assert "its volumes have axes x, y, z (kind of file), those of nnU-Net z, y, x: kernels and strides were" in shown
    assert "looks like genesis_nnunet_luna16_006.model; that one was trained on CT" in shown
    assert "encoder stage 3: is the deepest here" in shown
    report = json.loads((hippocampus / TARGET / "transfer_report.json").read_text())
    report = report["nnUNetPlans_genesis_3d_fullres.pth"]
    assert (report["encoder_coverage"], report["coverage"], report["exact"]) == (1, 1, False)
    assert "encoder.stages.5.0.convs.1.conv.weight" in report["unused"]

    start: dict[str, Any] = {}
    train = nnUNetTrainerGenesisFinetune.on_train_start

    def remember(self: Any) -> None:
        train(self)
        assert_luna16_features(self.network)
        self.network.train()
        start.update({name: tensor.clone() for name, tensor in self.network.named_parameters()})

    monkeypatch.setattr(nnUNetTrainerGenesisFinetune, "on_train_start", remember)
    stock("nnUNetv2_train", 4, "3d_fullres", 0, *FINETUNE)
    (file,) = hippocampus.glob("nnUNet_results/*/nnUNetTrainerGenesisFinetune__*/fold_0/checkpoint_final.pth")
    trained = torch.load(file, weights_only=True)["network_weights"]
    moved = [(trained[name] - tensor).abs().max() for name, tensor in start.items()]
    assert start
    assert 0 < max(moved) < 1e-3
    log = next(file.parent.glob("training_log*.txt")).read_text()
    assert re.search(r"Starting from \S*genesis_nnunet_luna16_006\.model .*: 100\.0% of the parameters", log)


def test_one_unnamed_channel_serves_several(hippocampus: Path, luna16: Path, genesis, capsys):
    for path in (hippocampus / TARGET, hippocampus / "nnUNet_raw" / "Dataset004_Target"):
        description = json.loads((path / "dataset.json").read_text())
        (path / "dataset.json").write_text(json.dumps(description | {"channel_names": {"0": "T1", "1": "T2"}}))
    assert genesis("transfer", luna16, "-d", 4, "-c", "3d_fullres", "--axes", "zyx") == 0
    shown = capsys.readouterr().out
    assert "axes x, y, z (" not in shown
    assert "does not name its 1 input channel(s); assumed for T1, T2: sum of 1 over 2 channels" in shown
    held = torch.load(hippocampus / TARGET / "nnUNetPlans_genesis_3d_fullres.pth", weights_only=True)
    stem = held["network_weights"]["encoder.stages.0.0.convs.0.conv.weight"]
    source = generic_unet(FEATURES, LUNA16_POOLS)["conv_blocks_context.0.blocks.0.conv.weight"]
    torch.testing.assert_close(stem, torch.cat([source, source], 1) / 2)


def test_stock_training_takes_the_file_without_the_plugin(hippocampus: Path, luna16: Path, genesis, stock, monkeypatch):
    assert genesis("transfer", luna16, "-d", 4, "-c", "3d_fullres") == 0
    file = hippocampus / TARGET / "nnUNetPlans_genesis_3d_fullres.pth"
    assert torch.load(file, weights_only=True)  # plain types: nothing of this package is in it
    monkeypatch.delenv("nnUNet_extTrainer")
    steps = []

    def one_step(self: Any) -> None:
        self.on_train_start()
        assert type(self) is nnUNetTrainer
        assert_luna16_features(self.network)
        self.network.train()
        steps.append(self.train_step(next(self.dataloader_train))["loss"])

    monkeypatch.setattr(nnUNetTrainer, "run_training", one_step)
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda *_: None)
    stock("nnUNetv2_train", 4, "3d_fullres", 0, "-device", "cpu", "-pretrained_weights", file)
    assert len(steps) == 1
    assert torch.isfinite(torch.as_tensor(steps[0]))


@pytest.fixture
def chest(nnunet: Path, make_dataset, genesis) -> Path:
    """A CT dataset with the plans of the original 3D U-Net, as shipped; its preprocessed folder."""
    make_dataset(7, "Chest", 2, channels=("CT",))
    assert genesis("plan", "-d", 7, "--template", "genesis_chest_ct", "-p", "chestPlans") == 0
    return nnunet / "nnUNet_preprocessed" / "Dataset007_Chest"


def test_the_original_goes_into_its_own_template(chest: Path, tmp_path: Path, genesis, capsys):
    weights = original_unet3d()
    torch.save({"epoch": 6, "state_dict": weights}, tmp_path / "Genesis_Chest_CT.pt")
    assert genesis("transfer", tmp_path / "Genesis_Chest_CT.pt", "-d", 7, "-c", "3d_fullres", "-p", "chestPlans") == 0
    shown = capsys.readouterr().out
    assert "100.0% of the encoder and 100.0% of the network, heads aside, come from the checkpoint. Segm" in shown
    assert "trained on CT, HU -1000 to 1000 scaled to 0 to 1" in shown
    assert "the features of all stages are equal" in shown
    plans, dataset_json = read_plans("Dataset007_Chest", "chestPlans_genesis"), read_dataset_json("Dataset007_Chest")
    network, _ = target_network(plans, "3d_fullres", dataset_json)
    load_pretrained_weights(network, str(chest / "chestPlans_genesis_3d_fullres.pth"))
    image, expected = torch.rand(1, 1, 16, 16, 8), []
    run_original_unet3d(weights, image, expected)
    seen: list[torch.Tensor] = []
    network.decoder.stages[-1].register_forward_hook(lambda *found: seen.append(found[2]))
    with torch.no_grad():
        ours = network.encoder(reversed_axes(image))
        network(reversed_axes(image))
    for made, reference in zip([*ours, *seen], expected, strict=True):
        assert reference.std() > 0.01
        torch.testing.assert_close(made, reversed_axes(reference), rtol=1e-4, atol=1e-4)


def test_the_original_has_no_counterpart_in_nnunets_networks(hippocampus: Path, tmp_path: Path, genesis, capsys):
    torch.save({"epoch": 6, "state_dict": original_unet3d(8)}, tmp_path / "Genesis_Chest_CT.pt")
    before = sorted((hippocampus / TARGET).iterdir())
    assert genesis("transfer", tmp_path / "Genesis_Chest_CT.pt", "-d", 4, "-c", "3d_fullres") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "holds a UNet3D, the target's plans ask for a PlainConvUNet" in error
    assert "nnunet_genesis plan --template genesis_chest_ct" in error
    assert sorted((hippocampus / TARGET).iterdir()) == before


def as_nnssl(network: nn.Module, arguments: dict[str, Any], path: Path) -> None:
    torch.save(nnssl_file("PlainConvUNet", arguments, network.state_dict()), path)


def as_state_dict(network: nn.Module, _: dict[str, Any], path: Path) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in network.state_dict().items()}, path)


def as_safetensors(network: nn.Module, _: dict[str, Any], path: Path) -> None:
    save_file({name: tensor.clone() for name, tensor in network.named_parameters()}, path)


@pytest.mark.parametrize("write", [as_nnssl, as_state_dict, as_safetensors])
def test_other_files_go_in_whole(hippocampus: Path, tmp_path: Path, genesis, capsys, write: Callable[..., None]):
    network = target(hippocampus)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    arguments = read_plans("Dataset004_Target", "nnUNetPlans")["configurations"]["3d_fullres"]["architecture"]
    write(network, arguments["arch_kwargs"], tmp_path / "file")
    assert genesis("transfer", tmp_path / "file", "-d", 4, "-c", "3d_fullres") == 0
    shown = capsys.readouterr().out
    assert "does not name its 1 input channel(s); assumed for T1: by position" in shown
    assert ("LeakyReLU of slope 0.01 are assumed" in shown) == (write is not as_nnssl)
    assert "run on the same noise, the features of all stages are equal" in shown
    fresh = target(hippocampus)
    load_pretrained_weights(fresh, str(hippocampus / TARGET / "nnUNetPlans_genesis_3d_fullres.pth"))
    held = fresh.state_dict()
    heads = {name for name in held if ".seg_layers." in name}
    assert all(torch.equal(held[name], tensor) == (name not in heads) for name, tensor in network.state_dict().items())


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def altered(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]


def no_hdf5(_: bytes) -> bytes:
    return b"\x89HDF\r\n\x1a\n" + bytes(100)


@pytest.mark.parametrize(
    ("change", "configuration", "message"),
    [
        (lambda content: content, "3d_lowres", "have no configuration 3d_lowres; they have 2d, 3d_fullres"),
        (None, "3d_fullres", r"file\.pth does not exist"),
        (cut, "3d_fullres", r"file\.pth cannot be read; it is cut off or no checkpoint"),
        (altered, "3d_fullres", r"file\.pth was damaged or altered after it was written"),
        (no_hdf5, "3d_fullres", r"file\.pth cannot be read; it is cut off, damaged or no HDF5 file"),
        (lambda _: b"", "3d_fullres", r"file\.pth cannot be read"),
    ],
)
def test_bad_files_and_configurations_are_one_line(
    hippocampus: Path, tmp_path: Path, genesis, capsys, change, configuration, message
):
    path = tmp_path / "file.pth"
    if change is not None:
        torch.save({"state_dict": generic_unet(FEATURES, LUNA16_POOLS)}, path)
        path.write_bytes(change(path.read_bytes()))
    assert_refused(hippocampus, genesis, capsys, (path, "-d", 4, "-c", configuration), message)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_file_that_would_run_code_is_refused_and_nothing_runs(
    hippocampus: Path, tmp_path: Path, genesis, capsys, legacy
):
    content = {"state_dict": generic_unet(FEATURES, LUNA16_POOLS), "trap": Trap(tmp_path / "sprung")}
    torch.save(content, tmp_path / "trap.model", _use_new_zipfile_serialization=not legacy)
    (tmp_path / "trap.pkl").write_bytes(pickle.dumps(content["trap"]))
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "a.model")
    (tmp_path / "a.model.pkl").write_bytes(pickle.dumps({"plans": content["trap"]}))
    for name, message in (
        ("trap.model", r"trap\.model is refused: reading it would run code"),
        ("trap.pkl", r"trap\.pkl is refused: reading it would run code"),
        ("a.model", r"a\.model\.pkl is refused: reading it would run code"),
    ):
        assert_refused(hippocampus, genesis, capsys, (tmp_path / name, "-d", 4, "-c", "3d_fullres"), message)
    assert not (tmp_path / "sprung").exists()


def assert_refused(folder: Path, genesis, capsys, command: tuple[object, ...], message: str) -> None:
    """One line, exit code 1, and nothing written."""
    before = sorted((folder / TARGET).iterdir())
    assert genesis("transfer", *command) == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert re.search(message, shown.err), shown.err
    assert sorted((folder / TARGET).iterdir()) == before
