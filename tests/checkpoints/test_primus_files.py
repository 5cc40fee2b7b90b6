"""Checkpoints that hold a Primus: every training that writes one, and what is assumed where a file does not tell."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.primus import primus_trainers
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_genesis.checkpoints.detect import detect
from nnunet_genesis.checkpoints.reading import read_pretrained
from nnunet_genesis.checkpoints.trainers import PRIMUS
from nnunet_genesis.encoders import load_encoder
from nnunet_genesis.errors import CheckpointError
from nnunet_genesis.networks.pretrained import PretrainedNetwork
from nnunet_genesis.networks.tied_names import name_groups
from tests.checkpoints.files import nnssl_file, small_plans, stock, written
from tests.primus import KINDS, MaskedAutoencoder, OfNnssl, build_primus, primus_block

SMALL = {"embed_dim": 396, "eva_depth": 1, "eva_numheads": 6}
"""A width whose heads are known."""


def plans_with(block: dict[str, Any] | None, patch: list[int]) -> dict[str, Any]:
    plans = small_plans()
    configuration = plans["configurations"]["3d_fullres"]
    configuration["patch_size"] = patch
    if block is not None:
        configuration["architecture"] = block
    return plans


def holds(source: PretrainedNetwork, network: nn.Module) -> bool:
    """Whether a source has every tensor of a network under its first name, and no other."""
    held = network.state_dict()
    return list(source.weights) == list(name_groups(network)) and all(
        torch.equal(tensor, held[name]) for name, tensor in source.weights.items()
    )


def test_nnssl_s_numbering_is_told_where_it_cannot_be_undone():
    network = build_primus(primus_block(patch=(16, 24, 24), **SMALL), classes=1)
    content = nnssl_file("PrimusM", None, OfNnssl(network, (2, 3, 3), 6, decoder=1).state_dict())
    content["nnssl_adaptation_plan"] |= {"key_to_encoder": "eva", "key_to_stem": "down_projection",
                                         "keys_to_in_proj": ("down_projection.proj",), "key_to_lpe": "eva.pos_embed",
                                         "recommended_downstream_patchsize": (16, 24, 24)}  # fmt: skip
    source = detect(content)
    assert not source.turned
    assert "cannot be undone" in " ".join(source.notes)
    assert "cannot be undone" not in " ".join(detect(content | {"trainer_name": "SimMIMEvaTrainer"}).notes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trainer", ["nnUNetTrainerGenesisPretrain", "nnUNetTrainerGenesisFinetune"])
def test_our_own_trainings(tmp_path: Path, kind, trainer):
    block = primus_block(kind)
    network = build_primus(block, classes=3)
    content = stock(plans_with(block, [16, 24, 16]), network=network) | {"trainer_name": trainer}
    source = read_pretrained(written(content, tmp_path / "checkpoint_final.pth"))
    assert holds(source, network)
    assert source.architecture == block
    assert (source.channels, source.patch_size, source.notes) == (["T1"], [16, 24, 16], ())
    assert source.format == f"nnU-Net v2 ({trainer})"
    assert source.facts()["architecture"] == (
        f"{kind}, a 3D transformer; 2 blocks of width 48, 2 heads; 2x3x2 tokens of 8x8x8 voxels"
    )


def test_a_primus_within_a_masked_autoencoder_is_taken_out_of_it():
    block = primus_block()
    network = build_primus(block)
    whole = MaskedAutoencoder(network)
    content = stock(plans_with(block, [16, 24, 16]), network=whole) | {"trainer_name": "nnUNetTrainerGenesisPretrain"}
    source = detect(content)
    assert holds(source, network)
    assert source.notes == ("5 tensors are no part of a Primus and are not used, e.g. mask_token",)
    content["network_weights"] = {f"module._orig_mod.{name}": t for name, t in whole.state_dict().items()}
    assert holds(detect(content), network)


def test_every_trainer_of_nnunet_with_a_primus_is_known():
    classes = re.findall(r"^class (\w+)\(.*Primus", inspect.getsource(primus_trainers), re.MULTILINE)
    assert set(classes) == PRIMUS
    assert len(classes) > 15


@pytest.mark.parametrize("trainer", ["nnUNet_Primus_S_Trainer", "nnUNet_PrimusV2S_Trainer", "nnUNet_PrimusV3S_Trainer"])
def test_trainers_of_nnunet_build_it_under_plans_that_name_a_unet(trainer):
    plans = plans_with(None, [16, 8, 24])
    manager = PlansManager(plans)
    builder = getattr(primus_trainers, trainer).build_network_architecture
    with torch.device("meta"):
        network = builder(manager, manager.get_configuration("3d_fullres"), 1, 4, False)
    # never written to, hence without memory
    weights = {name: torch.empty(network.state_dict()[name].shape) for name in name_groups(network)}
    content = stock(plans) | {"trainer_name": trainer, "network_weights": weights}
    source = detect(content)
    assert list(source.weights) == list(name_groups(network))
    arguments = source.architecture["arch_kwargs"]
    assert source.architecture["network_class_name"].endswith(trainer.split("_")[1].rstrip("S"))
    assert (arguments["embed_dim"], arguments["eva_depth"], arguments["eva_numheads"]) == (396, 12, 6)
    assert (arguments["init_values"], arguments["scale_attn_inner"]) == (0.1, True)
    assert (source.patch_size, source.channels, source.notes) == ([16, 8, 24], ["T1"], ())


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_nnssl(tmp_path: Path, prefix):
    """By its naming (MIC-DKFZ/nnssl 7044864: EvaMAE), with the transformer that it is built of."""
    network = build_primus(primus_block(patch=(16, 16, 24), **SMALL), classes=1)
    whole = OfNnssl(network, (2, 2, 3), 6, decoder=0 if prefix else 1)
    weights = {prefix + name: tensor for name, tensor in whole.state_dict().items()}
    content = nnssl_file("PrimusM", None, weights | ({"projector.0.weight": torch.ones(2)} if prefix else {}))
    plan = content["nnssl_adaptation_plan"]
    plan |= {"key_to_encoder": f"{prefix}eva", "key_to_stem": f"{prefix}down_projection",
             "keys_to_in_proj": (f"{prefix}down_projection.proj",), "key_to_lpe": f"{prefix}eva.pos_embed",
             "recommended_downstream_patchsize": (16, 16, 24)}  # fmt: skip
    source = read_pretrained(written(content, tmp_path / "checkpoint_final.pth"))
    held = network.state_dict()
    encoder = {name for name in name_groups(network) if name.startswith(("eva.", "down_projection."))}
    assert encoder <= set(source.weights)
    assert all(torch.equal(source.weights[name], held[name]) for name in encoder)
    assert torch.equal(source.weights["mask_token"], whole.mask_token)
    assert ("up_projection.decode.2.weight" in source.weights) == (not prefix)
    assert source.patch_size == [16, 16, 24]  # that of the configuration makes other tokens
    assert source.format == "nnssl (BaseMAETrainer)"
    assert (source.normalisation, source.spacing) == (["ZScoreNormalization"], [1, 1, 1])
    notes = " ".join(source.notes)
    assert "first two axes swapped" in notes
    assert "assumed" not in notes
    assert ("encoder only" in notes) == bool(prefix)
    assert "tensors are no part of a Primus and are not used, e.g." in notes
    assert source.turned
    other = detect(content | {"trainer_name": "SimMIMEvaTrainer"})
    assert not other.turned
    assert not any("swapped" in note for note in other.notes)
    encoder_of_it = load_encoder(tmp_path / "checkpoint_final.pth").eval()
    assert torch.equal(encoder_of_it.stages.eva.norm.weight, held["eva.norm.weight"])
    assert not torch.equal(encoder_of_it.stages.eva.pos_embed, held["eva.pos_embed"])


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_tell_what_they_can(kind):
    network = build_primus(primus_block(kind, (16, 16, 16), **SMALL), 2)
    source = detect(network.state_dict())
    assert holds(source, network)
    assert source.notes == (
        "6 heads are assumed, those of the published Primus of width 396",
        "a patch of 16x16x16 is assumed: the file says 8 tokens, and a cube is likeliest",
    )
    assert (source.format, source.input_channels) == ("state dict of a Primus", 2)


CHANGES: dict[str, dict[str, Any]] = {
    "without layer scale": {"init_values": None},
    "without the norm in attention": {"scale_attn_inner": False},
    "register tokens": {"num_register_tokens": 3},
    "another cell": {"patch_embed_size": [4, 8, 16], "input_shape": [8, 16, 32]},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["Primus", "PrimusV3"])
def test_state_dicts_of_other_settings(kind, change):
    if kind == "PrimusV3" and change == "another cell":
        changes: dict[str, Any] = {"depth_per_level": [1, 2], "ch_per_level": [4, 6, 8], "patch_embed_size": [4] * 3,
                                   "input_shape": [8] * 3, "add_skips": False}  # fmt: skip
    else:
        changes = CHANGES[change]
    network = build_primus(primus_block(kind, (16, 16, 16), **SMALL | changes))
    source = detect(network.state_dict())
    assert holds(source, network)
    again = build_primus(source.architecture)
    again.load_state_dict(source.weights, strict=False)
    image = torch.randn(1, 1, *source.patch_size)
    with torch.no_grad():
        assert torch.equal(again(image), network(image))


def test_the_table_of_rotations_tells_the_heads():
    network = build_primus(primus_block(patch=(16, 16, 16), **SMALL | {"eva_numheads": 11}))
    weights = network.state_dict() | {"eva.rope.pos_embed": network.eva.rope.pos_embed}
    source = detect(weights)
    assert source.architecture["arch_kwargs"]["eva_numheads"] == 11
    assert holds(source, network)
    assert not any("heads are assumed" in note or "not used" in note for note in source.notes)


def test_other_decoders_are_left_out():
    network = build_primus(primus_block(patch=(16, 16, 16), **SMALL))
    weights = network.state_dict()
    weights["up_projection.decode.2.weight"] = torch.ones(3)
    weights["mask_token"] = torch.ones(1, 1, 7)
    source = detect(weights)
    assert set(name_groups(network)) - set(source.weights) == {"up_projection.decode.2.weight", "mask_token"}
    assert "2 tensors are no part of a Primus and are not used, e.g. mask_token" in source.notes


def without(weights: dict[str, torch.Tensor], *starts: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(starts)}


def test_what_does_not_tell_enough_or_contradicts_itself_is_refused():
    whole = build_primus(primus_block(patch=(16, 16, 16), **SMALL)).state_dict()
    small = build_primus(primus_block()).state_dict()
    cases = {
        "width 48 without its plans: the tensors do not tell its number of heads": small,
        "12 positions are no cube, and it holds no plans": build_primus(primus_block(**SMALL)).state_dict(),
        "no positions are no cube": without(whole, "eva.pos_embed"),
        "a part of a Primus only": without(whole, "down_projection"),
        "eva.blocks.0.attn.proj.weight is missing, and 1 more": without(whole, "eva.blocks.0.attn.proj"),
        "eva.norm.bias has shape (3,) in place of (396,)": whole | {"eva.norm.bias": torch.ones(3)},
        "eva.surprise does not belong to it": whole | {"eva.surprise": torch.ones(3)},
        "holds 2 transformers (no prefix, teacher.)": whole | {"teacher.eva.norm.weight": torch.ones(3)},
        "eva.norm.bias holds int64": whole | {"eva.norm.bias": torch.ones(396, dtype=torch.int64)},
    }
    for message, weights in cases.items():
        with pytest.raises(CheckpointError, match=re.escape(message)):
            detect(weights)


BAD: list[dict[str, Any]] = [
    {"embed_dim": 10**9}, {"embed_dim": "48"}, {"eva_depth": 10**6}, {"eva_numheads": 7}, {"input_shape": [16, 24]},
    {"input_shape": [10**9, 16, 16]}, {"patch_embed_size": [0, 8, 8]}, {"patch_embed_size": [1, 1, 1]},
    {"input_shape": None}, {"num_register_tokens": 10**9}, {"rope_impl": "os.system"}, {"mlp_ratio": float("inf")},
    {"decoder_norm": "os.system"}, {"surprise": 1}, {"eva_depth": 3}, {"embed_dim": 96},
]  # fmt: skip


@pytest.mark.parametrize("change", BAD)
def test_plans_that_describe_another_network_or_none_are_one_line(change):
    content = stock(plans_with(primus_block(**change), [16, 24, 16]), network=build_primus(primus_block()))
    content["trainer_name"] = "nnUNetTrainerGenesisPretrain"
    with pytest.raises(CheckpointError) as refusal:
        detect(content)
    assert "\n" not in str(refusal.value)


def test_nnssl_plans_that_are_incomplete_or_say_another_place_are_refused():
    weights = build_primus(primus_block(patch=(16, 16, 16), **SMALL)).state_dict()
    content = nnssl_file("PrimusS", None, weights)  # names encoder.stages as the encoder
    with pytest.raises(CheckpointError, match=r"no Primus where it says that it has one \(encoder\.stageseva\)"):
        detect(content)
    del content["nnssl_adaptation_plan"]["pretrain_plan"]
    with pytest.raises(CheckpointError, match="incomplete nnssl adaptation plan"):
        detect(content)
