"""Checkpoints of nnU-Net v1 compute the same in nnU-Net v2's network."""

from __future__ import annotations

import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_genesis.checkpoints.detect import detect
from nnunet_genesis.checkpoints.reading import read_pretrained
from nnunet_genesis.errors import CheckpointError
from tests.checkpoints import loaded
from tests.checkpoints.replicas import LUNA16_POOLS, generic_unet, run_generic_unet
from tests.checkpoints.test_reading import Trap

LUNA16_FEATURES = [32, 64, 128, 256, 320, 320]


def genesis_file(path: Path, weights: dict[str, torch.Tensor], legacy: bool = True) -> Path:
    content = {"epoch": 6, "state_dict": OrderedDict(weights), "optimizer_state_dict": {"state": {}}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("shape", [(32, 32, 64), (16, 64, 32)])
def test_the_luna16_network_gives_the_same_outputs(tmp_path: Path, shape, legacy):
    weights = generic_unet([4, 8, 16, 32, 40, 40], LUNA16_POOLS)
    source = read_pretrained(genesis_file(tmp_path / "genesis_nnunet_luna16_006.model", weights, legacy))
    assert source.format == "nnU-Net v1 (Generic_UNet)"
    assert source.architecture["arch_kwargs"]["strides"] == [[1, 1, 1], *LUNA16_POOLS]
    network = loaded(source, 2)
    image = torch.randn(1, 1, *shape)
    with torch.no_grad():
        ours, reference = network.eval()(image), run_generic_unet(weights, image, LUNA16_POOLS)
    assert len(ours) == len(reference) == 5
    for given_, expected in zip(ours, reference, strict=True):
        assert expected.std() > 0.1
        torch.testing.assert_close(given_, expected, rtol=0, atol=1e-4)


def test_the_published_sizes():
    weights = generic_unet(LUNA16_FEATURES, LUNA16_POOLS)
    assert (len(weights), sum(tensor.numel() for tensor in weights.values())) == (98, 30_785_184)
    source = detect({"state_dict": weights})
    assert (len(source.weights), source.parameters) == (108, 30_785_994)
    assert source.architecture["arch_kwargs"]["features_per_stage"] == LUNA16_FEATURES


@settings(max_examples=20, deadline=None)
@given(data=st.data(), dimensions=st.sampled_from([2, 3]), stages=st.integers(2, 4), convs=st.integers(2, 3))
def test_any_network_with_equal_kernels_gives_the_same_outputs(data, dimensions, stages, convs):
    pools = data.draw(st.lists(st.lists(st.integers(1, 2), min_size=dimensions, max_size=dimensions),
                               min_size=stages - 1, max_size=stages - 1))  # fmt: skip
    features = data.draw(st.lists(st.integers(2, 6), min_size=stages, max_size=stages))
    channels = data.draw(st.integers(1, 3))
    weights = generic_unet(features, pools, convs=convs, channels=channels, classes=3)
    source = detect({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}})
    assert source.input_channels == channels
    network = loaded(source, 3)
    image = torch.randn(2, channels, *[16] * dimensions)
    with torch.no_grad():
        for ours, expected in zip(network(image), run_generic_unet(weights, image, pools), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_kernels_of_the_decoder_are_kept_as_v1_has_them():
    pools, kernels = [[1, 2, 2], [2, 2, 2]], [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
    source = detect({"state_dict": generic_unet([4, 6, 8], pools, kernels)})
    assert source.architecture["arch_kwargs"]["kernel_sizes"] == kernels
    assert source.weights["decoder.stages.1.convs.0.conv.weight"].shape == (4, 8, 3, 3, 3)
    assert len(source.notes) == 2
    assert source.notes[-1] == "2 decoder convolutions have other kernels than nnU-Net v2 gives them"


def leaky(x: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, 0.01)


VARIANTS = [
    # trainer, its norm, activation, whether that comes first; class names as nnU-Net 1.7.1 spells them
    ("nnUNetTrainerV2", "instance", leaky, False),
    ("nnUNetTrainerV2_BN", "batch", leaky, False),
    ("nnUNetTrainerV2_NoNormalization", "none", leaky, False),
    ("nnUNetTrainerV2_ReLU", "instance", F.relu, False),
    ("nnUNetTrainerV2_ReLU_biasInSegOutput", "instance", F.relu, False),
    ("nnUNetTrainerV2_ReLU_convReLUIN", "instance", F.relu, True),
    ("nnUNetTrainerV2_lReLU_convReLUIN", "instance", leaky, True),
    ("nnUNetTrainerV2_LReLU_slope_2en1", "instance", lambda x: F.leaky_relu(x, 0.2), False),
    ("nnUNetTrainerV2_Mish", "instance", lambda x: x * torch.tanh(F.softplus(x)), False),
    ("nnUNetTrainerV2_GeLU", "instance", F.gelu, False),
    ("nnUNetTrainerV2_3ConvPerStage", "instance", leaky, False),
]


@pytest.mark.parametrize("pools", [[[1, 2, 2], [2, 2, 2]], [[2, 2], [2, 2]]], ids=["3D", "2D"])
@pytest.mark.parametrize(("trainer", "norm", "activation", "first"), VARIANTS, ids=[variant[0] for variant in VARIANTS])
def test_networks_of_its_variants_give_the_same_outputs(trainer, norm, activation, first, pools):
    weights = generic_unet([4, 6, 8], pools, norm=norm, convs=3 if "3Conv" in trainer else 2)
    if trainer.endswith("biasInSegOutput"):
        weights |= {f"seg_outputs.{level}.bias": torch.randn(2) for level in (0, 1)}
    source = detect({"state_dict": weights}, sidecar(name=trainer))
    assert source.format == f"nnU-Net v1 ({trainer})"
    assert source.notes == ()
    image = torch.randn(2, 1, *[16] * len(pools[0]))
    with torch.no_grad():
        ours = loaded(source, 2).eval()(image)
        expected = run_generic_unet(weights, image, pools, activation=activation, activation_first=first)
        heads = [weights.get(f"seg_outputs.{level}.bias", torch.zeros(2)) for level in (1, 0)]
        usual = run_generic_unet(weights, image, pools)
    for given_, reference, bias in zip(ours, expected, heads, strict=True):
        reference = reference + bias.view(-1, *[1] * len(pools[0]))
        torch.testing.assert_close(given_, reference, rtol=0, atol=1e-5 * float(reference.abs().max()))
    assert torch.equal(expected[0], usual[0]) == (activation is leaky and not first)  # the variant matters


@pytest.mark.parametrize(("trainer", "norm"), [("GN", "group"), ("FRN", "filter response")])
def test_norms_that_nnunet_v2_does_not_have_are_refused(trainer, norm):
    weights = generic_unet([4, 6], [[1, 2, 2]])
    with pytest.raises(CheckpointError, match=f"was trained by nnUNetTrainerV2_{trainer}, with {norm} normalisation"):
        detect({"state_dict": weights}, sidecar(name=f"nnUNetTrainerV2_{trainer}"))


def test_filter_response_normalisation_shows_without_plans():
    weights = generic_unet([4, 6], [[1, 2, 2]])
    weights["conv_blocks_context.0.blocks.0.instnorm.tau"] = torch.zeros(1, 4, 1, 1, 1)
    with pytest.raises(CheckpointError, match="filter response normalisation"):
        detect({"state_dict": weights})


@pytest.mark.parametrize(
    ("norm", "plans", "note"),
    [
        ("instance", None, r"instance normalisation and LeakyReLU of slope 0\.01 are assumed: no file of plans"),
        ("batch", None, r"^LeakyReLU of slope 0\.01 is assumed: no file of plans"),
        ("none", None, r"^LeakyReLU of slope 0\.01 is assumed: no file of plans"),
        ("instance", "MyTrainer", "are assumed: its trainer MyTrainer is none of nnU-Net v1's own"),
        ("instance", "", r"are assumed: its trainer \(without a name\) is none"),
    ],
)
def test_what_neither_tensors_nor_trainer_tell_is_noted(norm, plans, note):
    weights = generic_unet([4, 6], [[1, 2, 2]], norm=norm)
    source = detect({"state_dict": weights}, None if plans is None else sidecar(name=plans))
    assert len(source.notes) == 1
    assert re.search(note, source.notes[0])


def sidecar(**changes) -> OrderedDict:
    """The content of a `.model.pkl`, as v1 writes it."""
    stage = {"patch_size": np.array([64, 96, 96]), "current_spacing": np.array([2.0, 0.8, 0.8]), "batch_size": 2}
    plans = {"plans_per_stage": OrderedDict({0: stage, 1: {}}), "modalities": {1: "MR", 0: "CT"},
             "normalization_schemes": OrderedDict({0: "CT", 1: "nonCT"}), "num_classes": 2}  # fmt: skip
    init = ("plans.pkl", 0, "out", "in", False, 0, True, False, True)
    return OrderedDict(init=init, name="nnUNetTrainerV2", plans=plans) | changes


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_plans_beside_it_tell_channels_patch_and_normalisation(tmp_path: Path, protocol):
    path = genesis_file(tmp_path / "model_final.model", generic_unet([4, 6], [[1, 2, 2]], channels=2))
    assert read_pretrained(path).channels is None
    path.with_name("model_final.model.pkl").write_bytes(pickle.dumps(sidecar(), protocol))
    source = read_pretrained(path)
    assert source.channels == ["CT", "MR"]
    assert source.normalisation == ["CTNormalization", "ZScoreNormalization"]
    assert (source.patch_size, source.spacing) == ([64, 96, 96], [2.0, 0.8, 0.8])


@pytest.mark.parametrize(("inputs", "names"), [(3, None), (4, ["CT", "MR", "previous stage: 1", "previous stage: 2"])])
def test_the_second_stage_of_a_cascade_also_reads_labels(tmp_path: Path, inputs, names):
    path = genesis_file(tmp_path / "cascade.model", generic_unet([4, 6], [[1, 2, 2]], channels=inputs))
    path.with_name("cascade.model.pkl").write_bytes(pickle.dumps(sidecar()))
    source = read_pretrained(path)
    assert (source.channels, source.patch_size) == (names, [64, 96, 96])


def test_plans_that_would_run_code_are_refused_and_nothing_runs(tmp_path: Path):
    path = genesis_file(tmp_path / "a.model", generic_unet([4, 6], [[1, 2, 2]]))
    beside = tmp_path / "a.model.pkl"
    beside.write_bytes(pickle.dumps(sidecar(trap=Trap(tmp_path / "sprung"))))
    with pytest.raises(CheckpointError, match=r"a\.model\.pkl is refused: .*mkdir.* move it away"):
        read_pretrained(path)
    assert not (tmp_path / "sprung").exists()
    assert isinstance(pickle.loads(beside.read_bytes()), dict)
    assert (tmp_path / "sprung").exists()  # the trap is real
    os.rmdir(tmp_path / "sprung")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(sidecar())[:200], "cannot be read"),
        (b"no pickle at all", "cannot be read"),
        (pickle.dumps([1]), "holds a list"),
        (pickle.dumps({"plans": {}}), "that is not nnU-Net v1's"),
    ],
)
def test_damaged_plans_beside_it_are_named(tmp_path: Path, content, message):
    path = genesis_file(tmp_path / "a.model", generic_unet([4, 6], [[1, 2, 2]]))
    (tmp_path / "a.model.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as refusal:
        read_pretrained(path)
    assert "\n" not in str(refusal.value)


def test_variants_that_v2_cannot_express_are_refused():
    weights = generic_unet([4, 6], [[1, 2, 2]])
    with pytest.raises(CheckpointError, match="upsamples without weights"):
        detect({"state_dict": {name: tensor for name, tensor in weights.items() if not name.startswith("tu.")}})
    with pytest.raises(CheckpointError, match="holds extra.weight, which"):
        detect({"state_dict": weights | {"extra.weight": torch.ones(1)}})
