import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from nnunet_genesis.corruption import RECIPES
from nnunet_genesis.corruption.shuffling import Shuffling, ShufflingParams
from tests.corruption.reference import (
    SPATIAL,
    applied,
    bits,
    dtypes,
    noise,
    ordered,
    seeds,
    shapes,
    shuffled,
)

MANY = Shuffling(windows=500, max_window_size=0.1, max_coverage=9.0)


def rng(seed=0):
    return np.random.default_rng(seed)


def sources(params, shape):
    """Where each voxel comes from, as flat index."""
    return applied(torch.arange(math.prod(shape), dtype=torch.float64).view(shape), params, 0, 0).long().numpy()


def travelled(params, shape):
    """How far each voxel came along each axis, in voxels."""
    return np.stack(np.unravel_index(sources(params, shape), shape)) - np.indices(shape)


def distances(origins):
    """How far each voxel came, in voxels, from the flat indices of where it comes from."""
    steps = np.stack(np.unravel_index(origins, origins.shape)) - np.indices(origins.shape)
    return np.linalg.norm(steps, axis=0)


@settings(max_examples=40, deadline=None)
@given(shapes, seeds, dtypes)
def test_the_values_are_the_same_in_another_order(shape, seed, dtype):
    channel = noise(shape, seed, dtype)
    out = applied(channel, Shuffling(windows=200, max_window_size=0.3, max_coverage=9.0).sample(shape, rng(seed)), 0, 1)
    assert out.dtype == dtype
    assert out.shape == channel.shape
    assert bits(ordered(out)) == bits(ordered(channel))


@pytest.mark.parametrize("shape", [(11, 13, 17), (40, 33)])
def test_large_windows_are_shuffled_as_it_is_told(shape):
    """More voxels than are drawn in one go."""
    whole = [[0, edge] for edge in shape]
    params = ShufflingParams(np.array([whole, [[1, edge] for edge in shape]], np.int32), 5)
    channel = noise(shape)
    assert np.array_equal(applied(channel, params, 0, 1).numpy(), shuffled(channel.numpy(), params))


@settings(max_examples=40, deadline=None)
@given(shapes, seeds)
def test_windows_are_bounded_and_inside(shape, seed):
    windows = MANY.sample(shape, rng(seed)).windows
    starts, stops = windows[..., 0], windows[..., 1]
    assert (starts >= 0).all()
    assert (stops <= np.array(shape)).all()
    assert (stops - starts >= 1).all()
    assert (stops - starts <= np.maximum(1, np.array(shape) // 10)).all()


def test_windows_have_uniform_edges_and_places():
    windows = Shuffling(windows=60_000, max_coverage=999.0).sample((40, 60), rng()).windows
    lengths = windows[..., 1] - windows[..., 0]
    for axis, longest in enumerate((4, 6)):
        for length in range(1, longest + 1):
            chosen = windows[lengths[:, axis] == length, axis, 0]
            assert len(chosen) / len(windows) == pytest.approx(1 / longest, abs=0.01)
            places = np.bincount(chosen) / len(chosen)
            assert len(places) == (40, 60)[axis] - length + 1
            np.testing.assert_allclose(places, 1 / len(places), atol=0.006)


@pytest.mark.parametrize("shape", SPATIAL)
def test_it_agrees_with_the_plain_telling(shape):
    params = Shuffling(windows=60, max_window_size=0.25, max_coverage=9.0).sample(shape, rng(3))
    channel = noise(shape, 4)
    assert np.array_equal(applied(channel, params, 0, 1).numpy(), shuffled(channel.numpy(), params))


def test_every_permutation_of_a_window_is_equally_likely():
    window = np.array([[[3, 5], [2, 4]]], dtype=np.int32)  # four voxels: 24 permutations
    channel, counts = torch.zeros(6, 6), {}
    channel[3:5, 2:4] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    generator = rng(0)
    for _ in range(4_800):
        out = applied(channel, ShufflingParams(window, int(generator.integers(2**63))), 0, 1)
        order = tuple(out[3:5, 2:4].flatten().tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    # the 99.99th percentile of chi-square with 23 degrees of freedom
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 56


def test_one_window_moves_voxels_inside_it_only():
    params = ShufflingParams(np.array([[[3, 11], [20, 24], [0, 9]]], dtype=np.int32), seed=5)
    window = np.zeros((30, 30, 30), dtype=bool)
    window[3:11, 20:24, 0:9] = True
    moved = (travelled(params, (30, 30, 30)) != 0).any(0)
    assert moved[window].mean() > 0.9
    assert not (moved & ~window).any()


def test_displacement_stays_local():
    shape = (64, 64, 32)
    steps = np.abs(travelled(RECIPES["released"].shuffling.sample(shape, rng(1)), shape))
    assert (np.quantile(steps.reshape(3, -1), 0.99, axis=1) <= np.array(shape) * 0.2).all()


@pytest.mark.parametrize(("name", "low", "high"), [("paper", 0.10, 0.18), ("released", 0.68, 0.83)])
@pytest.mark.parametrize("shape", [(64, 64, 32), (96, 96, 96)])
def test_the_share_of_touched_voxels_is_that_of_the_method(name, low, high, shape):
    shuffling = RECIPES[name].shuffling
    params = shuffling.sample(shape, rng(2))
    assert len(params.windows) == shuffling.windows
    assert low < (travelled(params, shape) != 0).any(0).mean() < high


@pytest.mark.parametrize("shape", [(64, 64, 32), (1, 96, 96), (20, 80, 64), (160, 128)])
@pytest.mark.parametrize("name", ["paper", "released"])
def test_voxels_go_as_far_as_with_permutations_of_numpy(name, shape):
    """One window after another, each with a permutation of its own: what one leaves there, the next takes on."""
    ours, theirs = [], []
    for seed in range(4):
        params = RECIPES[name].shuffling.sample(shape, rng(seed))
        ours.append(distances(sources(params, shape)))
        permuted, generator = np.arange(math.prod(shape)).reshape(shape), rng(seed + 100)
        for window in params.windows.tolist():
            part = permuted[tuple(slice(*ends) for ends in window)]
            part[...] = generator.permutation(part.ravel()).reshape(part.shape)
        theirs.append(distances(permuted))
    assert np.mean(np.array(ours) > 0) == pytest.approx(np.mean(np.array(theirs) > 0), rel=0.02)
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.05)
    farther = [[(np.array(steps) > distance).mean() for distance in range(12)] for steps in (ours, theirs)]
    np.testing.assert_allclose(farther[0], farther[1], atol=0.02)


@pytest.mark.parametrize("shape", [(256, 256), (1, 64, 64), (30, 30, 30), (5, 6, 7)])
def test_windows_cover_no_patch_more_often_than_asked(shape):
    windows = Shuffling(windows=10_000, max_coverage=2.5).sample(shape, rng(2)).windows
    assert (windows[..., 1] - windows[..., 0]).prod(1).sum() / math.prod(shape) == pytest.approx(2.5, rel=0.1)


def test_the_seed_decides():
    channel, windows = noise((30, 30)), MANY.sample((30, 30), rng()).windows
    first, again, other = (applied(channel, ShufflingParams(windows, seed), 0, 1) for seed in (1, 1, 2))
    assert bits(first) == bits(again) != bits(other)


def test_nan_and_infinity_are_moved_not_multiplied():
    channel = noise((20, 20))
    channel[3:6, 3:6] = torch.nan
    channel[9, 9] = torch.inf
    out = applied(channel, Shuffling(windows=300, max_window_size=0.3, max_coverage=9.0).sample((20, 20), rng()), 0, 1)
    assert int(out.isnan().sum()) == 9
    assert bits(ordered(out)) == bits(ordered(channel))
