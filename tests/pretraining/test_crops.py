"""Where patches are cut: a generator for each sample, crops that are more than air, volumes in turn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_genesis.batches import load
from nnunet_genesis.corruption import RECIPES, make_pair
from nnunet_genesis.pretraining.patches import (
    ATTEMPTS,
    TRAINING,
    VALIDATION,
    contrast,
    pad,
    random_window,
    ranked,
    stacked,
)
from nnunet_genesis.volume_index import spread
from tests.pretraining.test_patches import PLAIN, Volumes, batches, noise

PAPER = RECIPES["paper"]


def clean(volumes: Volumes, k: int, **changes) -> np.ndarray:
    """Sample `k` before it is corrupted, as an array."""
    return batches(volumes, recipe=PLAIN, batch_size=1, global_batch_size=1, **changes)[k]["data"][0].numpy()


@pytest.mark.parametrize("stream", [TRAINING, VALIDATION])
def test_each_sample_has_one_generator_for_its_crop_and_one_for_its_corruptions(stream):
    """What is documented, so that a training of years ago can be repeated."""
    assert (TRAINING, VALIDATION) == (0, 1)
    volumes = Volumes(*(noise(2, 12, 10 + i, 11, seed=i) for i in range(7)))
    batch = batches(volumes, seed=5, stream=stream, minimum_contrast=0.0, batch_size=3, global_batch_size=4, first=1)[6]
    for place, k in enumerate((25, 26, 27)):
        rng = np.random.default_rng([5, stream, k, 0])
        order = ranked(volumes.identifiers, 6)  # not that of the hold-out, which is the seed's
        case = volumes.identifiers[rng.integers(7)] if stream == TRAINING else order[k % 7]
        crop = torch.from_numpy(
            np.array(volumes.volumes[case][random_window(volumes.volumes[case].shape, (8, 8, 8), rng)], np.float32)
        )
        corrupted, target = make_pair(crop, PAPER, np.random.default_rng([5, stream, k, 1]))
        assert batch["keys"][place] == case
        assert torch.equal(batch["target"][place], target)
        assert torch.equal(batch["data"][place], corrupted)


def test_volumes_take_turns_in_an_order_that_adding_some_keeps():
    few, many = ([f"case{i}" for i in range(count)] for count in (8, 12))
    for seed in range(3):
        order = ranked(many, seed)
        assert sorted(order) == sorted(many)
        assert order != many
        assert ranked(few, seed) == [case for case in order if case in few]
        assert ranked(many[::-1], seed) == order
    assert ranked(many, 0) != ranked(many, 1)


def patchy(channels: int, seed: int) -> np.ndarray:
    """A volume whose crops differ much in how much they vary, in each channel elsewhere."""
    rng = np.random.default_rng(seed)
    scale = np.exp(np.add.outer(rng.normal(0, 1.5, (channels, 14)), rng.normal(0, 1.5, 15))[..., None])
    return (rng.normal(size=(channels, 14, 15, 16)) * scale).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_is_the_first_that_varies_enough_or_else_the_one_that_varies_most(channels):
    taken = []
    for k in range(12):
        volume = patchy(channels, k)
        rng = np.random.default_rng([0, TRAINING, k, 0])
        rng.integers(1)  # the case
        crops = [np.array(volume[random_window(volume.shape, (6, 6, 6), rng)], np.float32) for _ in range(ATTEMPTS)]
        ratios = [crop.reshape(channels, -1).std(1) / spread(volume) for crop in crops]
        contrasts = [float(ratio.max()) for ratio in ratios]  # one channel with something to see is enough
        for expected in (0.0, contrasts[k % ATTEMPTS], np.nextafter(max(contrasts), np.inf), 0.5):
            first = next((n for n, contrast in enumerate(contrasts) if contrast >= expected), int(np.argmax(contrasts)))
            crop = clean(Volumes(volume), k, patch_size=(6, 6, 6), minimum_contrast=float(expected))
            assert np.array_equal(crop, crops[first])
            taken.append(first)
    assert len(set(taken)) > 5  # all sorts were asked for
    assert ATTEMPTS == 10


def test_a_channel_without_any_variation_is_never_what_makes_a_crop_good():
    """The other channel decides, though 0 / 0 is no number."""
    flat = np.concatenate([np.zeros((1, 14, 15, 16), np.float32), patchy(1, 3)])
    for k in range(5):
        both = clean(Volumes(flat), k, patch_size=(6, 6, 6), minimum_contrast=0.7)
        alone = clean(Volumes(flat[1:]), k, patch_size=(6, 6, 6), minimum_contrast=0.7)
        assert np.array_equal(both[1:], alone)


@pytest.mark.parametrize("shape", [(2, 6, 7, 9), (1, 1, 4, 5)])
def test_spread_is_the_variation_over_the_three_central_planes(shape):
    volume = noise(*shape) * np.arange(1, shape[0] + 1).reshape(-1, 1, 1, 1)
    z, y, x = (length // 2 for length in shape[1:])
    for channel, found in zip(volume, spread(volume), strict=True):
        planes = np.concatenate([channel[z].ravel(), channel[:, y].ravel(), channel[:, :, x].ravel()])
        assert found == pytest.approx(planes.std(), rel=1e-5)
    volume[:, z, 0, 0] = np.nan
    assert np.isfinite(spread(volume)).all()


def test_only_the_patch_is_read_of_a_compressed_volume():
    class Compressed:
        shape = (1, 40, 50, 60)

        def __getitem__(self, window) -> np.ndarray:
            sizes = [len(range(*part.indices(length))) for part, length in zip(window, self.shape, strict=True)]
            assert np.prod(sizes) <= 50 * 60
            return np.random.default_rng(0).normal(size=sizes)

    crop = np.array(Compressed()[random_window(Compressed().shape, (8, 9, 10), np.random.default_rng(0))], np.float32)
    assert (crop.shape, crop.dtype) == ((1, 8, 9, 10), np.float32)
    assert spread(Compressed()).shape == (1,)
    batches(Volumes(Compressed()))[0]


class Counted(Volumes):
    """Counts how often a volume is opened."""

    opened = 0

    def load_case(self, identifier: str):
        self.opened += 1
        return super().load_case(identifier)


@pytest.mark.parametrize("crops", [2, 3])
def test_several_crops_of_a_volume_are_functions_of_seed_and_number(crops):
    volumes = Counted(*(noise(1, 12, 10 + i, 11, seed=i) for i in range(7)))
    changes = {"recipe": PLAIN, "minimum_contrast": 0.0, "seed": 5, "crops_per_volume": crops}
    batch = batches(volumes, batch_size=6, global_batch_size=6, **changes)[3]
    assert volumes.opened == 6 // crops
    for place, k in enumerate(range(18, 24)):
        leader = np.random.default_rng([5, TRAINING, k - k % crops, 0]).integers(7)
        rng = np.random.default_rng([5, TRAINING, k, 0])
        rng.integers(7)  # its own case, which nobody sees
        volume = volumes.volumes[case := volumes.identifiers[leader]]
        assert batch["keys"][place] == case
        np.testing.assert_array_equal(batch["data"][place], volume[random_window(volume.shape, (8, 8, 8), rng)])
    assert len(set(batch["keys"])) > 1
    halves = [batches(volumes, batch_size=3, global_batch_size=6, first=first, **changes)[3] for first in (0, 3)]
    assert torch.equal(batch["data"], torch.cat([half["data"] for half in halves]))  # whoever cuts them


def test_validation_takes_one_crop_of_a_volume_at_a_time():
    volumes = Volumes(*(noise(1, 12, 10 + i, 11, seed=i) for i in range(7)))
    one, other = (batches(volumes, stream=VALIDATION, crops_per_volume=crops)[1] for crops in (1, 4))
    assert one["keys"] == other["keys"]
    assert torch.equal(one["data"], other["data"])


@pytest.mark.parametrize("missing", [0, 5])
def test_contrast_is_the_deviation_of_what_is_known(missing):
    crop = np.random.default_rng(0).normal(3, 2, (2, 4, 5, 6)).astype(np.float32)
    crop.reshape(2, -1)[:, :missing] = np.nan
    ignored = torch.zeros((4, 5, 6), dtype=torch.bool)
    ignored[0] = True
    for mask in (None, ignored):
        known = [channel[~np.isnan(channel)] for channel in (crop if mask is None else crop[:, 1:])]
        expected = max(channel.astype(np.float64).std() / usual for channel, usual in zip(known, (2, 1), strict=True))
        assert contrast(crop, mask, np.array([2.0, 1.0])) == pytest.approx(expected, rel=1e-5)
    assert contrast(crop, torch.ones_like(ignored), np.ones(2)) == 0


class Stacked(torch.utils.data.Dataset):
    def __getitem__(self, number):
        batch = stacked([torch.full((1, 2, 3), 7.0), torch.full((1, 2, 2), 8.0)], (2, 3), 0.0)
        return {"data": batch, "shared": batch.is_shared()}


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_processes_stack_into_memory_that_the_trainer_sees(workers):
    (batch,) = load(Stacked(), [0], workers, pin_memory=False)
    assert batch["shared"] == bool(workers)
    assert batch["data"].tolist() == [[[[7.0] * 3] * 2], [[[8.0, 8.0, 0.0]] * 2]]


def test_a_patch_that_is_large_enough_is_not_copied():
    patch = torch.zeros(1, 2, 3)
    assert pad(patch, (2, 3), 0.0) is patch
