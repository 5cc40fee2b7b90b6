"""Checkpoints of nnU-Net v2 and of this package, with plans or with wrong ones."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import nnunet_genesis
from nnunet_genesis.checkpoints.architectures import PLAIN
from nnunet_genesis.checkpoints.detect import detect
from nnunet_genesis.checkpoints.formats.nnunet_v2 import unknown_trainer
from nnunet_genesis.checkpoints.plain_types import plain
from nnunet_genesis.checkpoints.reading import network_weights, read_checkpoint, read_pretrained
from nnunet_genesis.errors import CheckpointError
from tests.checkpoints import build, loaded
from tests.checkpoints.files import NUMBERS, small_plans, stock, written


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("template", ["tiny", "tiny_resenc"])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_nnunet_v2_with_any_wrapper(tmp_path: Path, template, configuration, prefix):
    plans = small_plans(template)
    content = stock(plans, configuration)
    weights = content["network_weights"]
    content["network_weights"] = {prefix + name: tensor for name, tensor in weights.items()}
    source = read_pretrained(written(content, tmp_path / "checkpoint_final.pth"))
    block = plans["configurations"][configuration]
    assert source.architecture == block["architecture"]
    assert (source.channels, source.normalisation) == (["T1"], ["ZScoreNormalization"])
    assert (source.patch_size, source.spacing) == (block["patch_size"], block["spacing"])
    assert source.format == "nnU-Net v2 (nnUNetTrainerDA5)"
    assert source.notes == ()
    assert loaded(source, 3)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in source.weights.items())


def test_a_compiled_part_of_the_network():
    weights = stock(small_plans())["network_weights"]
    compiled = {name.replace("encoder.stages.", "encoder._orig_mod.stages."): t for name, t in weights.items()}
    assert detect(compiled).weights.keys() == detect(weights).weights.keys()


def test_a_configuration_that_inherits_and_plans_of_2023(tmp_path: Path):
    plans = small_plans()
    plans["configurations"]["larger"] = {"inherits_from": "3d_fullres", "patch_size": [64, 64, 64]}
    assert detect(stock(plans, "larger")).patch_size == [64, 64, 64]
    old = small_plans()["configurations"]["3d_fullres"]
    arguments = old.pop("architecture")["arch_kwargs"]
    old |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 6,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "num_pool_per_axis": [2, 2, 2],
        "pool_op_kernel_sizes": arguments["strides"],
        "conv_kernel_sizes": arguments["kernel_sizes"],
    }
    source = detect(stock(plans | {"configurations": {"3d_fullres": old}}))
    assert source.architecture["arch_kwargs"]["features_per_stage"] == [4, 6, 6]


def test_channels_under_their_former_name_and_without_names():
    content = stock(small_plans())
    content["init_args"]["dataset_json"] = {"modality": {"0": "T1"}, "labels": {"background": 0}}
    assert (detect(content).channels, detect(content).notes) == (["T1"], ())
    for absent in ({}, None):
        content["init_args"]["dataset_json"] = absent
        assert detect(content).channels is None
    del content["init_args"]["dataset_json"]
    source = detect(content)
    assert (source.channels, source.patch_size) == (None, [32, 48, 32])
    assert source.notes == ("its input channels have no names: it holds no dataset.json that names them",)


@pytest.mark.parametrize("numbers", [*NUMBERS, {"n_conv_per_stage": 2}, {"strides": 2}])
def test_numbers_for_all_stages_or_axes_become_lists(tmp_path: Path, genesis, capsys, numbers):
    plans = small_plans()
    block = plans["configurations"]["3d_fullres"]["architecture"]
    lists = block["arch_kwargs"] | {"features_per_stage": [4] * 3, "strides": [[numbers.get("strides")] * 3] * 3}
    lists = block["arch_kwargs"] | {key: lists[key] for key, value in numbers.items() if isinstance(value, int)}
    block["arch_kwargs"] = block["arch_kwargs"] | numbers
    path = written(stock(plans), tmp_path / "a.pth")
    source = read_pretrained(path)
    assert source.architecture["arch_kwargs"] == lists
    assert source.notes == ()
    assert genesis("inspect", path) == 0
    assert "strides " in capsys.readouterr().out
    assert nnunet_genesis.encoder(path).strides[-1] == np.prod(lists["strides"], axis=0).tolist()


def test_a_trainer_that_builds_another_network_than_its_plans_say():
    plans = small_plans()
    manager = PlansManager(plans)
    network = nnUNetTrainerBN.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, 3, True)
    content = stock(plans, network=network)
    known = detect(content | {"trainer_name": "nnUNetTrainerBN"})
    assert known.notes == ()
    assert known.architecture["arch_kwargs"]["norm_op"] == "torch.nn.modules.batchnorm.BatchNorm3d"
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(known, 3).eval()(image)[0], network.eval()(image)[0])
    source = detect(content)
    assert source.architecture == known.architecture
    assert source.notes[0].startswith("its plans describe another network, which is not used: it ")
    assert source.notes[1].startswith("architecture derived")
    assert source.channels == ["T1"]


def test_trainers_of_others_are_noted_and_those_of_nnunet_are_not():
    trainers = {name for file in Path(inspect.getfile(nnUNetTrainer)).parent.rglob("*.py")
                for name in re.findall(r"^class (\w*Trainer\w*)\(", file.read_text(), re.MULTILINE)}  # fmt: skip
    own = {name for name in trainers if "Primus" not in name}
    assert len(own) > 50
    for name in (*sorted(own), "nnUNetTrainerGenesisPretrain", "nnUNetTrainerGenesisFinetune"):
        assert unknown_trainer(name) == (), name
    content = stock(small_plans()) | {"trainer_name": "nnUNetTrainerReLU"}
    assert detect(content).notes == (
        "its trainer (nnUNetTrainerReLU) is none of nnU-Net's own: activations and norms are assumed to be as in its "
        "plans",
    )


@pytest.mark.parametrize("convs", [[2, 3, 2], [2, 1, 2]])
def test_plans_with_another_number_of_convolutions_are_not_used(convs):
    plans = small_plans()
    network = build(plans["configurations"]["3d_fullres"]["architecture"], 3)
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["n_conv_per_stage"] = convs
    source = detect(stock(plans, network=network))
    assert source.architecture["arch_kwargs"]["n_conv_per_stage"] == [2, 2, 2]
    assert "plans describe another network" in source.notes[0]


def test_a_cascade_names_the_labels_of_its_first_stage():
    plans = small_plans()
    configurations = plans["configurations"]
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_fullres"}
    network = build(configurations["3d_fullres"]["architecture"], 3, channels=3)
    content = stock(plans, "3d_cascade_fullres", network)
    content["init_args"]["dataset_json"]["labels"] = {"background": 0, "shell": 1, "core": 2}
    assert detect(content).channels == ["T1", "previous stage: 1", "previous stage: 2"]
    content["init_args"]["dataset_json"]["labels"] = {"background": 0, "shell": 1}
    assert detect(content).channels is None  # they are not those of the network


def test_names_of_one_tensor_must_agree():
    content = stock(small_plans())
    weights = content["network_weights"] = {key: t.clone() for key, t in content["network_weights"].items()}
    assert detect(content)
    weights["decoder.encoder.stages.1.0.convs.0.conv.weight"].add_(1)
    with pytest.raises(CheckpointError, match="different values under two names of one tensor"):
        detect(content)


@pytest.mark.parametrize(
    "where", [("network_class_name", "os.mkdir"), ("network_class_name", "subprocess.PlainConvUNet2"),
              ("nonlin", "os.mkdir"), ("nonlin", "torch.nn.functional.relu"), ("norm_op", "torch.nn.Parameter"),
              ("conv_op", "torch.nn.modules.module.torch.hub.Load")]
)  # fmt: skip
def test_plans_that_name_code_never_reach_a_build(where, monkeypatch):
    def build_refused(*_arguments, **_options):
        raise AssertionError("built from foreign names")

    key, value = where
    plans = small_plans()
    content = stock(plans)
    block = plans["configurations"]["3d_fullres"]["architecture"]
    (block if key in block else block["arch_kwargs"])[key] = value
    monkeypatch.setattr("pydoc.locate", build_refused)  # nnU-Net's way from a name to a class
    source = detect(content)  # the tensors tell what it is
    assert source.architecture["network_class_name"] == PLAIN
    assert value not in str(source.architecture)
    assert value in source.notes[0]
    content["network_weights"] = {"strange.weight": torch.ones(2)}
    with pytest.raises(CheckpointError, match=r"holds 1 tensors of an unknown network: strange\.weight \(2,\)"):
        detect(content)


def as_landed(path: Path, content: dict[str, Any], genesis: dict[str, Any]) -> Path:
    """A file as written before weights were kept under one name: numpy's values made plain, "genesis" added."""
    return written({**plain(content), "genesis": plain(genesis)}, path)


@pytest.mark.parametrize("trainer", ["nnUNetTrainerGenesisPretrain", "nnUNetTrainerGenesisFinetune"])
def test_checkpoints_of_earlier_versions_are_read(tmp_path: Path, trainer):
    plans = small_plans() | {"genesis": {"pretraining": {"epochs": 2, "freeze_encoder": 3}}}
    content = stock(plans) | {"trainer_name": trainer, "current_epoch": 2}
    facts = {"task": "restoration of corrupted patches (Models Genesis)", "channel_names": ["T1"], "spacing": [1, 1, 1],
             "settings": {}, "versions": {"nnunet-genesis": "0.1.0"}}  # fmt: skip
    source = read_pretrained(as_landed(tmp_path / "checkpoint_final.pth", content, facts))
    assert (source.format, source.notes) == (f"nnU-Net v2 ({trainer})", ())
    assert (source.channels, source.patch_size) == (["T1"], [32, 48, 32])
    assert all(torch.equal(tensor, content["network_weights"][name]) for name, tensor in source.weights.items())


def test_transferred_weights_of_earlier_versions_are_read(tmp_path: Path):
    weights = stock(small_plans())["network_weights"]
    facts = {"source": "a.pth", "coverage": 1.0, "tensors": {"encoder.a": ["copied", ""]}, "versions": {}}
    path = as_landed(tmp_path / "plans_3d_fullres.pth", {"network_weights": weights}, facts)
    assert network_weights(read_checkpoint(path), path).keys() == weights.keys()
    assert loaded(read_pretrained(path), 3)
