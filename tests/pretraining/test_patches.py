"""Batches: a function of seed and number alone, cut where there is something to see."""

from __future__ import annotations

import itertools
from dataclasses import replace

import blosc2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_genesis.batches import load
from nnunet_genesis.corruption import RECIPES, apply_params
from nnunet_genesis.errors import SettingsError
from nnunet_genesis.ignored_regions import DIGEST, IGNORED
from nnunet_genesis.pretraining.patches import (
    TRAINING,
    VALIDATION,
    PatchBatches,
    fitted,
    pad,
    random_window,
)
from tests.corruption.reference import plain_pair

PLAIN = RECIPES["paper"].without()


class Volumes:
    """What nnU-Net's datasets offer, in memory."""

    def __init__(self, *volumes: np.ndarray) -> None:
        self.volumes = {f"case{i}": volume for i, volume in enumerate(volumes)}
        self.identifiers = sorted(self.volumes)

    def load_case(self, identifier: str):
        return self.volumes[identifier], None, None, {}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def batches(volumes: Volumes, patch_size: tuple[int, ...] = (8, 8, 8), **changes) -> PatchBatches:
    settings = {"batch_size": 2, "global_batch_size": 2, "first": 0, "recipe": RECIPES["paper"], "seed": 0,
                "stream": TRAINING, "minimum_contrast": 0.2} | changes  # fmt: skip
    return PatchBatches(volumes, patch_size, **settings)


def same(one: dict, other: dict) -> bool:
    targets = torch.equal(torch.nan_to_num(one["target"], 1e9), torch.nan_to_num(other["target"], 1e9))
    return torch.equal(one["data"], other["data"]) and targets and one["keys"] == other["keys"]


VOLUMES = Volumes(noise(1, 12, 14, 16), noise(1, 9, 20, 7, seed=1), noise(1, 5, 30, 30, seed=2))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(workers):
    alone = list(itertools.islice(load(batches(VOLUMES), itertools.count(), 0, False), 7))
    shared = list(itertools.islice(load(batches(VOLUMES), itertools.count(), workers, False), 7))
    assert all(map(same, alone, shared))


def test_batches_do_not_depend_on_the_number_of_gpus():
    whole = batches(VOLUMES, batch_size=3, global_batch_size=3)[5]
    first = batches(VOLUMES, batch_size=2, global_batch_size=3)[5]
    second = batches(VOLUMES, batch_size=1, global_batch_size=3, first=2)[5]
    assert same(whole, {key: [*first[key], *second[key]] if key == "keys" else torch.cat([first[key], second[key]])
                        for key in whole})  # fmt: skip


def test_a_batch_keeps_what_it_has_when_others_follow():
    """Whole patches are corrupted in memory that the next batch uses again; those of smaller volumes are not."""
    stream = batches(VOLUMES, batch_size=3, global_batch_size=3)
    several = [stream[number] for number in range(6)]
    for number, batch in enumerate(several):
        assert same(batch, batches(VOLUMES, batch_size=3, global_batch_size=3)[number])
    most = max(batch["keys"].count("case0") for batch in several)
    assert 0 < most == len(stream._room)


def test_streams_seeds_and_numbers_differ():
    datas = [
        batches(VOLUMES)[0], batches(VOLUMES)[1], batches(VOLUMES, seed=1)[0], batches(VOLUMES, stream=VALIDATION)[0]
    ]  # fmt: skip
    for one, other in itertools.combinations(datas, 2):
        assert not torch.equal(one["data"], other["data"])


def test_validation_walks_through_all_volumes():
    keys = [key for n in range(3) for key in batches(VOLUMES, stream=VALIDATION)[n]["keys"]]
    assert sorted(keys[:3]) == ["case0", "case1", "case2"]
    assert keys[:3] == keys[3:]


def test_other_recipes_corrupt_the_same_crops():
    one = batches(VOLUMES, stream=VALIDATION, recipe=PLAIN)[0]
    other = batches(VOLUMES, stream=VALIDATION, recipe=RECIPES["paper"].alone()["intensity"])[0]
    assert torch.equal(torch.nan_to_num(one["target"]), torch.nan_to_num(other["target"]))
    assert not torch.equal(one["data"], other["data"])


@pytest.mark.parametrize("recipe", ["paper", "masking"])
@pytest.mark.parametrize("patch_size", [(8, 8, 8), (12, 10)])
def test_a_batch_is_the_pairs_of_its_crops_in_their_padding(recipe, patch_size):
    """The padding is no part of what is corrupted: the middle of a patch is the pair of its crop."""
    source = batches(VOLUMES, patch_size, recipe=replace(RECIPES[recipe], flip_probability=0.5), batch_size=6,
                     global_batch_size=6)  # fmt: skip
    padded = 0
    for number, k in itertools.product(range(3), range(6)):
        batch, (crop, params, case, _) = source[number], source.crop(6 * number + k)
        left = [(want - have) // 2 for have, want in zip(crop.shape[1:], patch_size, strict=True)]
        window = tuple(slice(a, a + n) for a, n in zip(left, crop.shape[1:], strict=True))
        for half, expected, outside in zip(
            ("data", "target"), plain_pair(crop.numpy(), params), (0, np.nan), strict=True
        ):
            whole = np.full((1, *patch_size), outside, np.float32)
            whole[(slice(None), *window)] = expected
            np.testing.assert_allclose(batch[half][k].numpy(), whole, rtol=1e-5, atol=1e-5)
        assert batch["keys"][k] == case
        padded += crop.shape[1:] != patch_size
    assert 0 < padded < 18


def test_a_crop_is_cut_from_the_volume_and_mirrored_with_its_params_only():
    mirroring = replace(PLAIN, flip_probability=1.0)
    plain, mirrored = batches(VOLUMES), batches(VOLUMES, recipe=mirroring)
    crop, params, *_ = mirrored.crop(0)
    assert params.flips == (0, 1, 2)
    assert torch.equal(crop, plain.crop(0)[0])
    assert all(torch.equal(half, crop.flip(1, 2, 3)) for half in apply_params(crop, params))
    assert torch.equal(mirrored[0]["data"][0], pad(crop.flip(1, 2, 3), (8, 8, 8), 0.0))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    patch=st.one_of(st.tuples(*[st.integers(1, 10)] * 3), st.tuples(*[st.integers(1, 10)] * 2)),
    channels=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_volume_gives_patches_of_the_size_asked_for(shape, patch, channels, seed):
    batch = batches(Volumes(noise(channels, *shape)), patch, seed=seed)[0]
    assert batch["data"].shape == batch["target"].shape == (2, channels, *patch)
    assert batch["data"].dtype == batch["target"].dtype == torch.float32
    assert torch.isfinite(batch["data"]).all()
    inside = torch.isfinite(batch["target"])
    full = shape[-len(patch):]  # fmt: skip
    assert inside[0, 0].sum() == np.prod(np.minimum(full, patch))
    assert (batch["data"][~inside] == 0).all()


def test_an_uncorrupted_crop_is_a_piece_of_the_volume():
    volume = np.arange(1 * 6 * 7 * 8, dtype=np.float32).reshape(1, 6, 7, 8)
    crop = np.array(volume[random_window(volume.shape, (2, 3, 4), np.random.default_rng(0))], np.float32)
    z, y, x = np.argwhere(volume[0] == crop[0, 0, 0, 0])[0]
    assert np.array_equal(crop, volume[:, z : z + 2, y : y + 3, x : x + 4])
    flat = np.array(volume[random_window(volume.shape, (3, 4), np.random.default_rng(0))], np.float32)
    z, y, x = np.argwhere(volume[0] == flat[0, 0, 0])[0]
    assert np.array_equal(flat, volume[:, z, y : y + 3, x : x + 4])


def test_crop_positions_reach_every_voxel():
    volume, seen = np.arange(5 * 5 * 5, dtype=np.float32).reshape(1, 5, 5, 5), set()
    for seed in range(300):
        seen.update(
            np.array(volume[random_window(volume.shape, (2, 2, 2), np.random.default_rng(seed))], np.float32)
            .ravel()
            .tolist()
        )
    assert len(seen) == 125


def body_in_air() -> np.ndarray:
    volume = np.random.default_rng(0).normal(0, 0.02, (1, 40, 40, 40)).astype(np.float32)
    volume[:, 11:29, 11:29, 11:29] += np.random.default_rng(1).normal(3, 1, (1, 18, 18, 18))
    return volume


def test_crops_avoid_empty_air():
    shares = {}
    for contrast in (0.0, 0.2):
        sampler = batches(Volumes(body_in_air()), recipe=PLAIN, minimum_contrast=contrast)
        shares[contrast] = np.mean([sampler.crop(k)[0].std() < 0.1 for k in range(60)])
    assert shares[0.0] > 0.3
    assert shares[0.2] < 0.05


def test_a_volume_of_air_does_not_hang():
    batch = batches(Volumes(np.zeros((1, 20, 20, 20), np.float32)))[0]
    data, target = batch["data"], batch["target"]
    assert (data == 0).all()
    assert (target == 0).all()


def test_padding_is_centred():
    padded = pad(torch.ones(1, 2, 3), (5, 4), 0.0)[0]
    assert padded.sum() == 6
    assert (padded[1:3, :3] == 1).all()


MAE = RECIPES["mae"].fitted((4, 4, 4))


class MarkedVolumes(Volumes):
    """Half of each volume is ignored."""

    def load_case(self, identifier: str):
        volume = self.volumes[identifier]
        segmentation = np.zeros((1, *volume.shape[1:]), np.int16)
        segmentation[:, :, : volume.shape[2] // 2] = IGNORED
        marked = blosc2.asarray(segmentation)
        marked.schunk.vlmeta[DIGEST] = "of a mask"
        return volume, marked, None, {}


def cells(patches: torch.Tensor, edge: int = 4) -> torch.Tensor:
    """Share of each cell (B, 1, *grid) that is True in any channel."""
    return torch.nn.functional.avg_pool3d(patches.any(1, keepdim=True).float(), edge)


@pytest.mark.parametrize("marked", [False, True])
def test_cells_that_are_left_out_are_those_of_the_whole_patch(marked):
    """Also where a volume is smaller than the patch, and its padding no whole number of cells."""
    volumes = [noise(2, 12, 14, 16), noise(2, 9, 20, 7, seed=1), noise(2, 5, 30, 30, seed=2)]
    source = (MarkedVolumes if marked else Volumes)(*volumes)
    changes = {"recipe": replace(MAE, flip_probability=0.5), "batch_size": 6, "global_batch_size": 6}
    for number in range(3):
        made = batches(source, (8, 12, 8), **changes)[number]
        hidden, restored = made["data"].isnan(), made["target"].isfinite()
        assert torch.equal(hidden, restored)
        assert hidden.any((1, 2, 3, 4)).sum() > 3
        whole = batches(source, (8, 12, 8), **changes | {"recipe": replace(PLAIN, flip_probability=0.0)})[number]
        masked = [one.channels[0][-1].loss_mask((8, 12, 8)) for one in
                  (batches(source, (8, 12, 8), **changes).crop(6 * number + n)[1] for n in range(6))]  # fmt: skip
        assert set(cells(torch.stack(masked)[:, None]).unique().tolist()) == {0, 1}
        assert [int(mask.sum()) for mask in masked] == [9 * 64] * 6  # three quarters of twelve cells
        assert torch.equal(hidden, torch.stack(masked)[:, None] & hidden)
        known = whole["target"].isfinite().sum()  # all that is neither padding nor ignored, masked or not
        assert 0 < hidden.sum() < known


def test_what_is_hidden_is_in_the_target_and_nowhere_else():
    plain = batches(VOLUMES, (8, 8, 8), recipe=PLAIN, minimum_contrast=0)[0]
    made = batches(VOLUMES, (8, 8, 8), recipe=MAE, minimum_contrast=0)[0]
    hidden = made["data"].isnan()
    assert torch.equal(made["target"][hidden], plain["target"][hidden])
    seen = ~hidden & plain["target"].isfinite() & (made["data"] != 0)
    assert torch.equal(made["data"][seen], plain["target"][seen])
    assert seen.any()


def plans(network: str = "nnunet_genesis.primus.Primus", patch=(16, 24, 16), **arguments) -> dict:
    block = {"network_class_name": network, "arch_kwargs": {"patch_embed_size": [8, 8, 8], "input_shape": [16, 24, 16],
             **arguments}, "_kw_requires_import": []}  # fmt: skip
    configuration = {"patch_size": list(patch), "architecture": block}
    return {"plans_name": "p", "configurations": {"3d_fullres": configuration}}


def test_cells_that_are_left_out_are_the_networks_tokens():
    assert fitted(RECIPES["mae"], plans(), "3d_fullres").masking.cell_size == (8, 8, 8)
    given = RECIPES["mae"].updated({"masking": {"cell_size": 8}}, "")
    assert fitted(given, plans(), "3d_fullres").masking.cell_size == (8, 8, 8)
    assert fitted(RECIPES["mae"], plans(patch_embed_size=[16, 8, 8]), "3d_fullres").masking.edges((16, 24, 16)) == (
        16, 8, 8)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "cell", "message"),
    [
        ({"network": "dynamic_network_architectures.architectures.unet.PlainConvUNet"}, 0, "needs a Primus.*PlainConvUNet.*recipe masking"),
        ({"patch": (24, 16)}, 0, "needs a Primus, which is 3D only; 3d_fullres has patches with 2 axes"),
        ({}, 4, r'"cell_size" is 4, but .* \(8, 8, 8\).*Set it to 0'),
        ({"patch_embed_size": [16, 24, 16]}, 0, "makes one token of a patch"),
    ],
)  # fmt: skip
def test_cells_are_left_out_by_a_primus_that_has_them_only(changes, cell, message):
    recipe = RECIPES["mae"].updated({"masking": {"cell_size": cell}}, "")
    with pytest.raises(SettingsError, match=message) as refusal:
        fitted(recipe, plans(**changes), "3d_fullres")
    assert "\n" not in str(refusal.value)
