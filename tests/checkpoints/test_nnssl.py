"""Checkpoints of nnssl: with a described architecture, of a preset, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnunet_genesis.checkpoints.architectures import RESIDUAL, unet
from nnunet_genesis.checkpoints.detect import detect
from nnunet_genesis.checkpoints.reading import read_pretrained
from nnunet_genesis.errors import CheckpointError
from nnunet_genesis.networks.tied_names import name_groups
from tests.checkpoints import build, loaded
from tests.checkpoints.files import NUMBERS, nnssl_file, small_plans, written


@pytest.mark.parametrize("numbers", [*NUMBERS, {"n_blocks_per_stage": 2}])
def test_numbers_in_the_plan_of_nnssl_become_lists(numbers):
    arguments = small_plans("tiny_resenc")["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] | numbers
    block = {"network_class_name": RESIDUAL, "arch_kwargs": arguments,
             "_kw_requires_import": ["conv_op", "norm_op", "nonlin"]}  # fmt: skip
    source = detect(nnssl_file("ResidualEncoderUNet", arguments, build(block, 1).state_dict()))
    for key in numbers:
        assert isinstance(source.architecture["arch_kwargs"][key], list)
    assert "3 stages of 4" in source.facts()["architecture"]


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


def test_other_networks_of_nnssl_and_broken_plans_are_refused():
    with pytest.raises(CheckpointError, match="nnssl checkpoint of SwinUNETR; of nnssl's, ResEncL, .* Read are"):
        detect(nnssl_file("SwinUNETR", None, {"swin.pos_embed": torch.ones(1, 8, 4)}))
    content = nnssl_file("ResEncL", None, {"encoder.x": torch.ones(1)})
    del content["nnssl_adaptation_plan"]["pretrain_plan"]
    with pytest.raises(CheckpointError, match="incomplete nnssl adaptation plan"):
        detect(content)
