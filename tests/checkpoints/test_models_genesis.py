"""The original Models Genesis 3D U-Net: same computation, and trained by nnU-Net."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_genesis.checkpoints.detect import detect
from nnunet_genesis.checkpoints.reading import read_pretrained
from nnunet_genesis.errors import CheckpointError
from nnunet_genesis.resources import plans_folder
from nnunet_genesis.transfer.axes import to_zyx
from nnunet_genesis.unet3d import UNet3D
from tests.checkpoints import build, loaded
from tests.checkpoints.replicas import original_unet3d, run_original_unet3d, suprem

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]


def genesis_file(path: Path, base: int, legacy: bool = True) -> Path:
    content = {"epoch": 6, "state_dict": original_unet3d(base), "optimizer_state_dict": {"state": {}}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 1, 16, 16, 8), (1, 1, 24, 8, 16)])
def test_it_restores_what_the_original_restores(tmp_path: Path, shape, training):
    source = read_pretrained(genesis_file(tmp_path / "Genesis_Chest_CT.pt", 8))
    network = build(source, 1, deep_supervision=False).train(training)
    missing, unexpected = network.load_state_dict(source.weights, strict=False)
    lower_heads = {f"decoder.seg_layers.{level}.{kind}" for level in (0, 1) for kind in ("weight", "bias")}
    assert (set(missing), unexpected) == (lower_heads, [])
    image = torch.rand(shape)
    with torch.no_grad():
        restored = torch.sigmoid(network(image))
    expected = run_original_unet3d(original_unet3d(8), image)
    assert expected.std() > 0.01
    torch.testing.assert_close(restored, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("legacy", [True, False])
def test_the_published_sizes(tmp_path: Path, legacy):
    weights = original_unet3d()
    trained = [tensor for name, tensor in weights.items() if not name.endswith(("_mean", "_var", "_tracked"))]
    assert (len(weights), len(trained), sum(t.numel() for t in trained)) == (106, 64, 19_073_665)
    source = read_pretrained(genesis_file(tmp_path / "Genesis_Chest_CT.pt", 64, legacy))
    assert source.parameters == 19_073_665
    assert source.architecture == {
        "network_class_name": "nnunet_genesis.unet3d.UNet3D",
        "arch_kwargs": {"features_per_stage": [64, 128, 256, 512], "strides": STRIDES},
        "_kw_requires_import": [],
    }


def test_deep_supervision_gives_each_resolution_once_finest_first():
    network = UNet3D(2, 3, [4, 6, 8], [[1, 1, 1], [1, 2, 2], [2, 2, 2]], deep_supervision=True)
    image = torch.randn(1, 2, 8, 16, 16)
    fine, coarse = network(image)
    assert (fine.shape, coarse.shape) == ((1, 3, 8, 16, 16), (1, 3, 8, 8, 8))
    network.decoder.deep_supervision = False
    assert torch.equal(network(image), fine)


def test_its_own_weights_without_plans_are_recognised():
    network = UNet3D(2, 3, [4, 6, 8], [[1, 1, 1], [1, 2, 2], [2, 2, 2]])
    source = detect(network.state_dict())
    assert source.architecture["network_class_name"] == "nnunet_genesis.unet3d.UNet3D"
    assert loaded(source, 3)


def test_other_widths_and_other_tensors_are_refused():
    weights = original_unet3d(8)
    with pytest.raises(CheckpointError, match=r"holds fc\.weight, which the original"):
        detect({"state_dict": weights | {"module.fc.weight": torch.ones(1)}})
    weights["module.down_tr64.ops.1.conv1.weight"] = torch.ones(9, 4, 3, 3, 3)
    with pytest.raises(CheckpointError, match="not its widths"):
        detect({"state_dict": weights})


def test_the_template_gives_it_the_intensities_it_was_trained_on():
    plans = json.loads((plans_folder() / "genesis_chest_ct.json").read_text())
    (properties,) = plans["foreground_intensity_properties_per_channel"].values()
    scale = CTNormalization(use_mask_for_norm=False, intensityproperties=properties)
    np.testing.assert_allclose(scale.run(np.array([-3000.0, -1000, 0, 1000, 2000])), [0, 0, 0.5, 1, 1])


def test_the_template_is_for_ct_only(nnunet: Path, make_dataset, genesis, capsys):
    make_dataset(4, "MRI", 2)
    assert genesis("plan", "-d", 4, "--template", "genesis_chest_ct") == 1
    assert "normalises CT; the channel T1 is not CT" in capsys.readouterr().err


@pytest.fixture
def planned(ready_once: Path, nnunet: Path) -> Path:
    """Dataset 4 with plans that name a small version of the network; their file."""
    shutil.copytree(ready_once, nnunet, dirs_exist_ok=True)
    path = nnunet / "nnUNet_preprocessed" / "Dataset004_Target" / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"]["architecture"] = {
        "network_class_name": "nnunet_genesis.unet3d.UNet3D",
        "arch_kwargs": {"features_per_stage": [8, 16, 32, 64], "strides": STRIDES},
        "_kw_requires_import": [],
    }
    path.write_text(json.dumps(plans))
    return nnunet


def test_nnunet_fine_tunes_it_from_the_published_weights(planned: Path, genesis, tmp_path: Path):
    file = genesis_file(tmp_path / "Genesis_Chest_CT.pt", 8)
    source = to_zyx(read_pretrained(file))
    assert genesis("transfer", file, "-d", 4, "-c", "3d_fullres", "--epochs", 2) == 0
    trainer = get_trainer_from_args("4", "3d_fullres", 0, "nnUNetTrainerGenesisFinetune", "nnUNetPlans_genesis",
                                    device=torch.device("cpu"))  # fmt: skip
    trainer.on_train_start()
    held = trainer.network.state_dict()
    heads = [name for name in held if ".seg_layers." in name]
    assert len(heads) == 6
    for name in set(held) - set(heads):
        assert torch.equal(held[name], source.weights[name]), name
    before = {name: tensor.clone() for name, tensor in held.items()}
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
    assert np.isfinite(loss)
    # the lowest resolution has no weight in nnU-Net's loss
    unchanged = {name for name, tensor in trainer.network.state_dict().items() if torch.equal(tensor, before[name])}
    assert unchanged == {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"}
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        assert np.isfinite(trainer.validation_step(next(trainer.dataloader_val))["loss"])
        trainer.set_deep_supervision_enabled(False)
        assert trainer.network.eval()(torch.randn(1, 1, 16, 16, 16)).shape == (1, 3, 16, 16, 16)


@pytest.mark.parametrize("part", ["whole", "backbone", "single GPU"])
def test_suprem_is_the_same_network_with_other_intensities(tmp_path: Path, part):
    weights = suprem(8)
    if part == "single GPU":
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    elif part == "backbone":
        weights = {name.removeprefix("module.backbone."): tensor for name, tensor in weights.items() if "backb" in name}
    torch.save({"net": weights, "optimizer": {}, "scheduler": {}, "epoch": 800}, tmp_path / "unet.pth")
    source = read_pretrained(tmp_path / "unet.pth")
    assert source.format == "SuPreM (3D U-Net of Models Genesis)"
    assert "HU -175 to 250 scaled to 0 to 1, spacing 1.5 mm, patches of 96x96x96" in source.notes[0]
    left = ("3 tensors belong to SuPreM's organ-wise head and are not used",)
    assert source.notes[1:] == (() if part == "backbone" else left)
    assert source.weights.keys() == {name for name in detect({"state_dict": original_unet3d(8)}).weights
                                     if "seg_layers" not in name}  # fmt: skip
    network, features = build(source, 1).eval(), []
    assert network.load_state_dict(source.weights, strict=False).unexpected_keys == []
    network.decoder.stages[-1].register_forward_hook(lambda *found: features.append(found[-1]))
    image, expected = torch.rand(1, 1, 16, 16, 16), []
    run_original_unet3d(original_unet3d(8), image, expected)  # the statistics of the batch, not those in the file
    with torch.no_grad():
        network(image)
    torch.testing.assert_close(features[0], expected[-1], rtol=0, atol=1e-4)


def test_who_trained_weights_without_a_restoration_head_is_not_guessed():
    source = detect({name: tensor for name, tensor in original_unet3d(8).items() if "out_tr" not in name})
    assert source.format == "Models Genesis (original 3D U-Net)"
    assert source.notes == ("it has no restoration head: whether Models Genesis or SuPreM trained it is unknown",)
