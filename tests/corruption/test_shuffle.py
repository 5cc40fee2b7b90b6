import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from nnunet_genesis.corruption import RECIPES
from nnunet_genesis.corruption.shuffle import Shuffle, draw_shuffle, shuffle, shuffle_sources, shuffle_windows
from tests.corruption.reference import SPATIAL, bits, dtypes, noise, ordered, seeds, shapes, shuffled


def rng(seed=0):
    return np.random.default_rng(seed)


@settings(max_examples=40, deadline=None)
@given(shapes, seeds, dtypes)
def test_the_values_are_the_same_in_another_order(shape, seed, dtype):
    channel = noise(shape, seed, dtype)
    before = bits(channel)
    out = shuffle(channel, draw_shuffle(shape, 200, 0.3, 9.0, rng(seed)))
    assert out.dtype == dtype
    assert out.shape == channel.shape
    assert bits(ordered(out)) == bits(ordered(channel))
    assert bits(channel) == before


@settings(max_examples=40, deadline=None)
@given(shapes, seeds)
def test_windows_are_bounded_and_inside(shape, seed):
    drawn = draw_shuffle(shape, 500, 0.1, 9.0, rng(seed))
    starts, stops = shuffle_windows(shape, drawn)
    assert (starts >= 0).all()
    assert (stops <= np.array(shape)).all()
    assert (stops - starts >= 1).all()
    assert (stops - starts <= np.maximum(1, np.array(shape) // 10)).all()


def test_windows_reach_all_edges_and_extents():
    starts, stops = shuffle_windows((40, 60), draw_shuffle((40, 60), 4_000, 0.1, 99.0, rng()))
    assert (starts.min(0) == 0).all()
    assert (stops.max(0) == (40, 60)).all()
    assert [sorted(set(extents)) for extents in (stops - starts).T.tolist()] == [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize("shape", SPATIAL)
def test_it_agrees_with_the_plain_telling(shape):
    drawn = draw_shuffle(shape, 60, 0.25, 9.0, rng(3))
    channel = noise(shape, 4)
    assert np.array_equal(shuffle(channel, drawn).numpy(), shuffled(channel.numpy(), drawn))


def test_one_window_moves_voxels_inside_it_only():
    drawn = Shuffle(1, (9, 9, 9), seed=5)
    start, stop = (faces[0] for faces in shuffle_windows((30, 30, 30), drawn))
    window = np.zeros((30, 30, 30), dtype=bool)
    window[tuple(map(slice, start, stop))] = True
    moved = shuffle_sources((30, 30, 30), drawn).ravel() != np.arange(27_000)
    assert moved.any()
    assert not (moved & ~window.ravel()).any()


def test_displacement_stays_local():
    shape = (64, 64, 32)
    sources = shuffle_sources(shape, draw_shuffle(shape, 10_000, 0.1, 2.5, rng(1)))
    came = np.stack(np.unravel_index(sources, shape))
    steps = np.abs(came - np.indices(shape))
    assert (np.quantile(steps.reshape(3, -1), 0.99, axis=1) <= np.array(shape) * 0.2).all()


@pytest.mark.parametrize(("name", "low", "high"), [("paper", 0.10, 0.18), ("released", 0.68, 0.83)])
@pytest.mark.parametrize("shape", [(64, 64, 32), (96, 96, 96)])
def test_the_share_of_touched_voxels_is_that_of_the_method(name, low, high, shape):
    recipe = RECIPES[name]
    drawn = draw_shuffle(shape, recipe.shuffle_windows, recipe.shuffle_extent, recipe.shuffle_cover, rng(2))
    sources = shuffle_sources(shape, drawn)
    assert drawn.windows == recipe.shuffle_windows
    assert low < np.mean(sources.ravel() != np.arange(sources.size)) < high


@pytest.mark.parametrize("shape", [(256, 256), (1, 64, 64), (30, 30, 30), (5, 6, 7)])
def test_windows_cover_no_patch_more_often_than_asked(shape):
    drawn = draw_shuffle(shape, 10_000, 0.1, 2.5, rng(2))
    starts, stops = shuffle_windows(shape, drawn)
    assert (stops - starts).prod(1).sum() / math.prod(shape) == pytest.approx(2.5, rel=0.1)


def test_the_seed_decides():
    channel = noise((30, 30))
    first, again, other = (shuffle(channel, Shuffle(50, (5, 5), seed)) for seed in (1, 1, 2))
    assert bits(first) == bits(again) != bits(other)


def test_nan_and_infinity_are_moved_not_multiplied():
    channel = noise((20, 20))
    channel[3:6, 3:6] = torch.nan
    channel[9, 9] = torch.inf
    out = shuffle(channel, Shuffle(300, (6, 6), 0))
    assert int(out.isnan().sum()) == 9
    assert bits(ordered(out)) == bits(ordered(channel))
