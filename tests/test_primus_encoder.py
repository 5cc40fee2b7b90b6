"""The encoder of a Primus: tokens in their grid, as the network itself makes them, and their mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import nnunet_genesis
from nnunet_genesis.errors import TransferError
from tests.checkpoints.files import stock
from tests.checkpoints.test_primus_files import plans_with
from tests.primus import KINDS, build_primus, primus_block


def saved(folder: Path, kind: str = "Primus", channels: int = 1, **changes):
    block = primus_block(kind, **changes)
    network = build_primus(block, channels)
    content = stock(plans_with(block, [16, 24, 16]), network=network) | {"trainer_name": "nnUNetTrainerGenesisPretrain"}
    described = {str(number): f"T{number + 1}" for number in range(channels)}
    content["init_args"]["dataset_json"] = {"channel_names": described}
    torch.save(content, folder / "checkpoint_final.pth")
    return folder / "checkpoint_final.pth", network


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("registers", [{}, {"num_register_tokens": 3}])
def test_features_are_what_the_last_projection_reads(tmp_path, kind, registers):
    path, network = saved(tmp_path, kind, **registers)
    encoder = nnunet_genesis.encoder(path).eval()
    assert (encoder.widths, encoder.strides, encoder.patch_size) == ([48], [[8, 8, 8]], [16, 24, 16])
    image = torch.randn(2, 1, 16, 24, 16)
    with torch.no_grad():
        (grid,) = encoder(image)
        assert grid.shape == (2, 48, 2, 3, 2)
        assert torch.equal(network.up_projection(grid), network(image))
        assert torch.equal(encoder.pooled(image), grid.flatten(2).mean(2))
        assert nnunet_genesis.Classifier(encoder, 3)(image).shape == (2, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_are_matched_by_name(tmp_path, kind):
    path, _ = saved(tmp_path, kind, channels=2)
    whole = nnunet_genesis.encoder(path).eval()
    with pytest.warns(UserWarning, match="by name, others zero"):
        other = nnunet_genesis.encoder(path, channels=["T2", "CT", "T1"]).eval()
    image = torch.randn(1, 3, 16, 24, 16)
    with torch.no_grad():
        torch.testing.assert_close(other(image)[0], whole(image[:, [2, 0]])[0], rtol=1e-4, atol=1e-4)


def test_images_of_another_size_are_refused_in_one_line(tmp_path):
    encoder = nnunet_genesis.encoder(saved(tmp_path)[0])
    with pytest.raises(TransferError, match="An image of 32x24x16 voxels .* patches of 16x24x16. Crop or pad it"):
        encoder(torch.zeros(1, 1, 32, 24, 16))
    with pytest.raises(TransferError, match=r"reads images \(N, 1, z, y, x\)"):
        encoder(torch.zeros(1, 2, 16, 24, 16))


def test_the_control_arm_has_other_weights(tmp_path):
    path, network = saved(tmp_path)
    fresh = nnunet_genesis.encoder(path, pretrained=False)
    assert not torch.equal(fresh.stages.eva.pos_embed, network.eva.pos_embed)
    assert all(parameter.requires_grad for parameter in fresh.parameters())
