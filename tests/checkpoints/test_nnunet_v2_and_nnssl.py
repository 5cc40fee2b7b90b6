"""Checkpoints of nnU-Net v2 and nnssl, and state dicts of their networks without plans."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from safetensors.torch import save_file

import nnunet_genesis
from nnunet_genesis.checkpoints.architectures import PLAIN, RESIDUAL, unet
from nnunet_genesis.checkpoints.detect import detect
from nnunet_genesis.checkpoints.formats.nnunet_v2 import unknown_trainer
from nnunet_genesis.checkpoints.names import canonical_name
from nnunet_genesis.checkpoints.plain_types import plain
from nnunet_genesis.checkpoints.reading import network_weights, read_checkpoint, read_pretrained
from nnunet_genesis.errors import CheckpointError
from nnunet_genesis.files import read_json
from nnunet_genesis.networks.tied_names import name_groups
from nnunet_genesis.resources import plans_folder
from tests.checkpoints import build, loaded


def small_plans(template: str = "tiny") -> dict[str, Any]:
    plans = read_json(plans_folder() / f"{template}.json", "", "")
    for configuration in plans["configurations"].values():
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 6, 8]
    return plans


def stock(
    plans: dict[str, Any], configuration: str = "3d_fullres", network: torch.nn.Module | None = None
) -> dict[str, Any]:
    """A checkpoint as nnUNetTrainer.save_checkpoint writes it."""
    block = PlansManager(plans).get_configuration(configuration).configuration["architecture"]
    network = network or build(block, 3)
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {"ema_fg_dice": [np.float32(0.5)]},
        "_best_ema": np.float32(0.5),
        "current_epoch": 1,
        "init_args": {"plans": plans, "configuration": configuration, "fold": 0, "device": torch.device("cpu"),
                      "dataset_json": {"channel_names": {"0": "T1"}}},
        "trainer_name": "nnUNetTrainerDA5",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }  # fmt: skip


def written(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


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


NUMBERS = [{"strides": [1, 2, 2]}, {"kernel_sizes": 3}, {"kernel_sizes": [3, 3, 3]}, {"features_per_stage": 4},
           {"n_conv_per_stage_decoder": 2}]  # fmt: skip


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


@pytest.mark.parametrize("numbers", [*NUMBERS, {"n_blocks_per_stage": 2}])
def test_numbers_in_the_plan_of_nnssl_become_lists(numbers):
    arguments = small_plans("tiny_resenc")["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] | numbers
    block = {"network_class_name": RESIDUAL, "arch_kwargs": arguments,
             "_kw_requires_import": ["conv_op", "norm_op", "nonlin"]}  # fmt: skip
    source = detect(nnssl_file("ResidualEncoderUNet", arguments, build(block, 1).state_dict()))
    for key in numbers:
        assert isinstance(source.architecture["arch_kwargs"][key], list)
    assert "3 stages of 4" in source.facts()["architecture"]


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


@settings(max_examples=25, deadline=None)
@given(data=st.data(), name=st.sampled_from([PLAIN, RESIDUAL]), dimensions=st.sampled_from([2, 3]),
       stages=st.integers(2, 4), bias=st.booleans(), norm=st.sampled_from(["instancenorm.InstanceNorm", "batchnorm.BatchNorm", None]))  # fmt: skip
def test_the_architecture_is_read_off_the_tensors(data, name, dimensions, stages, bias, norm):
    def draw(values, count):
        return data.draw(st.lists(values, min_size=count, max_size=count))

    sizes = st.lists(st.sampled_from([1, 3]), min_size=dimensions, max_size=dimensions)
    steps = st.lists(st.integers(1, 2), min_size=dimensions, max_size=dimensions)
    block = unet(name, draw(st.integers(2, 5), stages), draw(sizes, stages), [[1] * dimensions, *draw(steps, stages - 1)],
                 draw(st.integers(1, 3), stages), draw(st.integers(1, 3), stages - 1), bias=bias, norm=norm)  # fmt: skip
    network = build(block, 3, channels=2)
    canonical_only = {group: network.state_dict()[group].clone() for group in name_groups(network)}
    source = detect(canonical_only)
    assert source.architecture == block
    assert source.input_channels == 2
    twin = loaded(source, 3)
    assert all(torch.equal(tensor, twin.state_dict()[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("container", [None, "network_weights", "state_dict", "model"])
def test_bare_state_dicts(tmp_path: Path, container):
    weights = stock(small_plans("tiny_resenc"))["network_weights"]
    source = read_pretrained(written({container: weights, "epoch": 1} if container else weights, tmp_path / "bare.pt"))
    assert source.architecture["network_class_name"] == RESIDUAL
    assert source.channels is source.patch_size is source.normalisation is None
    assert source.notes == (
        "architecture derived from the tensors' shapes; instance normalisation and LeakyReLU of slope 0.01 are assumed",
    )


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_safetensors_by_content(tmp_path: Path, suffix):
    network = build(small_plans()["configurations"]["3d_fullres"]["architecture"], 3)
    tensors = {name: network.state_dict()[name].clone() for name in name_groups(network)}
    path = tmp_path / f"exported.{suffix}"
    save_file(tensors, path)
    source = read_pretrained(path)
    assert loaded(source, 3)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"exported\.\w+ cannot be read; it is cut off or no safetensors file"):
        read_pretrained(path)


def test_encoders_alone_and_missing_tensors():
    network = build(small_plans()["configurations"]["3d_fullres"]["architecture"], 3)
    weights = network.state_dict()
    source = detect({name: tensor for name, tensor in weights.items() if name.startswith("encoder.")})
    assert source.notes[1:] == ("strides are assumed to be 2: the file has no decoder to read them off", "encoder only")
    assert set(source.weights) == {name for name in name_groups(network) if name.startswith("encoder.")}
    less = {name: tensor for name, tensor in weights.items() if "encoder.stages.1.0.convs.1.norm.bias" not in name}
    less = {name: tensor for name, tensor in less.items() if "encoder.stages.1.0.convs.1.all_modules.1" not in name}
    with pytest.raises(
        CheckpointError, match=r"PlainConvUNet .*encoder\.stages\.1\.0\.convs\.1\.norm\.bias is missing"
    ):
        detect(less)


def nnssl_file(name: str, arguments: dict[str, Any] | None, network: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A checkpoint as nnssl's trainers write it; arrays became tensors."""
    configuration = {"spacing_style": "onemmiso", "normalization_schemes": ["ZScoreNormalization"],
                     "spacing": torch.tensor([1.0, 1, 1]), "patch_size": torch.tensor([160, 160, 160])}  # fmt: skip
    imports = ["conv_op", "norm_op", "nonlin"] if arguments else None
    plan = {
        "architecture_plans": {
            "arch_class_name": name,
            "arch_kwargs": arguments,
            "arch_kwargs_requiring_import": imports,
        },
        "pretrain_plan": {"configurations": {"onemmiso": configuration, "median": {"normalization_schemes": []}}},
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": (160, 160, 160),
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ("encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"),
    }
    return {"network_weights": network, "trainer_name": "BaseMAETrainer", "nnssl_adaptation_plan": plan,
            "init_args": {"configuration_name": "onemmiso"}, "citations": ["…"]}  # fmt: skip


def test_nnssl_with_described_architecture(tmp_path: Path):
    block = small_plans("tiny_resenc")["configurations"]["3d_fullres"]["architecture"]
    arguments = block["arch_kwargs"] | {"strides": torch.tensor(block["arch_kwargs"]["strides"])}
    network = build(block, 1)
    content = nnssl_file("ResidualEncoderUNet", arguments, network.state_dict())
    source = read_pretrained(written(content, tmp_path / "checkpoint_final.pth"))
    assert source.architecture["arch_kwargs"] == block["arch_kwargs"]
    assert loaded(source, 1)
    assert source.format == "nnssl (BaseMAETrainer)"
    assert (source.patch_size, source.spacing) == ([160, 160, 160], [1, 1, 1])
    assert (source.normalisation, source.channels, source.notes) == (["ZScoreNormalization"], None, ())


@pytest.mark.parametrize("prefix", ["stages", "backbone.encoder.stages"])
def test_nnssl_encoders_elsewhere(prefix):
    block = small_plans("tiny_resenc")["configurations"]["3d_fullres"]["architecture"]
    network = build(block, 1)
    place = prefix.removesuffix("stages")
    encoder = {place + name: tensor for name, tensor in network.encoder.state_dict().items()}
    content = nnssl_file("ResidualEncoderUNet", block["arch_kwargs"], encoder | {"projector.weight": torch.ones(2)})
    content["nnssl_adaptation_plan"]["key_to_encoder"] = prefix
    source = detect(content)
    assert source.notes[0] == "encoder only"
    assert source.notes[1].startswith("1 tensors belong neither to encoder nor decoder")
    held = network.state_dict()
    assert all(torch.equal(tensor, held[name]) for name, tensor in source.weights.items())
    assert len(source.weights) == len(name_groups(network.encoder))


@pytest.mark.parametrize("name", ["ResEncL", "NoSkipResEncL"])
def test_nnssl_presets_have_the_published_size(name):
    block = unet(RESIDUAL, [32, 64, 128, 256, 320, 320], [[3] * 3] * 6, [[1] * 3, *[[2] * 3] * 5], [1, 3, 4, 6, 6, 6],
                 [1] * 5)  # fmt: skip
    with torch.device("meta"):
        network = build(block, 2)
    # never written to, hence without memory
    weights = {key: torch.empty(network.state_dict()[key].shape) for key in name_groups(network)}
    if name == "NoSkipResEncL":
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith("decoder.stages")}
        weights["decoder.seg_layer.weight"] = torch.ones(2)
    source = detect(nnssl_file(name, None, weights))
    assert source.architecture == block
    if name == "ResEncL":
        assert (len(source.weights), source.parameters) == (264, 102_349_770)
    else:
        assert source.notes[0].startswith("its decoder is not a U-Net's and is left out: the file does not hold")
        assert source.notes[1:] == ("encoder only",)
        assert not any(key.startswith(("decoder.stages", "decoder.transp", "decoder.seg")) for key in source.weights)


def test_nnssl_transformers_and_broken_plans_are_refused():
    with pytest.raises(CheckpointError, match="nnssl checkpoint of PrimusM; of nnssl's, ResEncL, .* Read are"):
        detect(nnssl_file("PrimusM", None, {"eva.pos_embed": torch.ones(1, 8, 4)}))
    content = nnssl_file("ResEncL", None, {"encoder.x": torch.ones(1)})
    del content["nnssl_adaptation_plan"]["pretrain_plan"]
    with pytest.raises(CheckpointError, match="incomplete nnssl adaptation plan"):
        detect(content)


DROPOUT = {"dropout_op": "torch.nn.modules.dropout.Dropout3d", "dropout_op_kwargs": {"p": 0.5}}
OTHER_BLOCKS = [("tiny", {"nonlin_first": True}), *((template, changes) for template in ("tiny", "tiny_resenc") for changes in (
    {}, {"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"}, DROPOUT))]  # fmt: skip


@pytest.mark.parametrize(("template", "changes"), OTHER_BLOCKS)
def test_names_of_a_tensor_are_told_apart_as_the_network_does(template, changes):
    """The rule that works on names alone agrees with the network, whose first name of a tensor is the one kept."""
    block = small_plans(template)["configurations"]["3d_fullres"]["architecture"]
    block["arch_kwargs"] |= changes
    for first, names in name_groups(build(block, 3)).items():
        assert {canonical_name(name) for name in names} == {first}


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
