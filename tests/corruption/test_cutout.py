import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nnunet_genesis.corruption import RECIPES
from nnunet_genesis.corruption.boxes import grown, random_box, region, shrunk, union, union_share
from nnunet_genesis.corruption.cutout import Cutout, CutoutParams
from tests.corruption.reference import DTYPES, SPATIAL, applied, bits, dtypes, inside, noise, painted, seeds, shapes

recipes = st.sampled_from(["paper", "released"])


def sampled(cutout, shape, outer, rng):
    return dataclasses.replace(cutout, outer_share=float(outer)).sample(shape, rng)


def replaced_share(params, shape):
    covered = float(union(params.boxes, shape).mean())
    return 1 - covered if params.outer else covered


def shares(name, shape, outer, samples):
    rng = np.random.default_rng(1)
    return [replaced_share(sampled(RECIPES[name].cutout, shape, outer, rng), shape) for _ in range(samples)]


@settings(max_examples=60, deadline=None)
@given(shapes, seeds, st.floats(0, 1), st.floats(0, 1), st.integers(0, 9), st.booleans())
def test_a_box_fits_any_patch(shape, seed, low, high, margin, up):
    low, high = sorted((low, high))
    box = random_box(shape, (low, high), margin, up, np.random.default_rng(seed))
    for (start, stop), edge in zip(box, shape, strict=True):
        assert 0 <= start < stop <= edge
        assert low * edge - 1 < stop - start < max(1, high * edge) + 1
        assert min(start, edge - stop) >= min(margin, (edge - (stop - start)) // 2)


@settings(max_examples=40, deadline=None)
@given(shapes, seeds, st.integers(0, 6))
def test_the_share_of_a_union_is_that_of_its_mask(shape, seed, count):
    rng = np.random.default_rng(seed)
    boxes = [random_box(shape, (0.1, 0.7), 0, False, rng) for _ in range(count)]
    assert union_share(boxes, shape) == pytest.approx(union(boxes, shape).mean())
    cells, cuts = region(boxes, shape)
    for axis, cut in enumerate(cuts):
        cells = cells.repeat(np.diff(cut), axis)
    np.testing.assert_array_equal(cells, union(boxes, shape))


def test_boxes_grow_and_shrink_by_a_voxel_on_each_side():
    assert grown(((0, 4), (3, 5)), (5, 9)) == ((0, 5), (2, 6))
    assert shrunk(((0, 4), (3, 5), (2, 3), (0, 3))) == ((1, 3), (3, 5), (2, 3), (1, 2))


@settings(max_examples=120, deadline=None)
@given(recipes, shapes, st.booleans(), seeds)
def test_the_limit_is_a_law(name, shape, outer, seed):
    params = sampled(RECIPES[name].cutout, shape, outer, np.random.default_rng(seed))
    assert replaced_share(params, shape) <= RECIPES[name].cutout.max_replaced + 1e-12


@settings(max_examples=60, deadline=None)
@given(shapes, st.booleans(), seeds, st.floats(0, 0.3))
def test_any_limit_holds(shape, outer, seed, limit):
    cutout = Cutout(1.0, float(outer), 6, 0.9, (0.1, 0.9), (0.1, 0.9), limit, 2)
    params = cutout.sample(shape, np.random.default_rng(seed))
    assert replaced_share(params, shape) <= limit + 1e-12


@pytest.mark.parametrize("outer", [True, False])
def test_a_cutout_is_cut_down_to_its_limit_not_dropped(outer):
    extent = (0.2, 0.2) if outer else (0.9, 0.9)
    for limit in (0.1, 0.25):
        cutout = Cutout(1.0, float(outer), 1, 1.0, extent, extent, limit, 3)
        params = cutout.sample((60, 60), np.random.default_rng(0))
        assert 0.6 * limit < replaced_share(params, (60, 60)) <= limit


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("shape", [(64, 64, 32), (14, 256, 256), (1, 96, 96), (64, 64)])
def test_the_limit_leaves_something_to_restore(shape, outer):
    found = np.array(shares("paper", shape, outer, 40))
    assert (found > 0).mean() > 0.95
    assert 0.04 < np.median(found) < 0.25


@pytest.mark.parametrize(
    ("outer", "bulk", "middle"), [(True, (0.56, 0.83), (0.62, 0.70)), (False, (0.01, 0.09), (0.045, 0.075))]
)
def test_released_shares_are_those_of_the_released_code(outer, bulk, middle):
    found = shares("released", (64, 64, 32), outer, 150) + shares("released", (96, 96, 96), outer, 150)
    # one cutout in twenty has a single window, and then up to 92 % lie outside of it
    assert bulk[0] < np.quantile(found, 0.03)
    assert np.quantile(found, 0.93) < bulk[1]
    assert middle[0] < np.median(found) < middle[1]


def test_windows_are_counted_as_asked():
    rng = np.random.default_rng(0)
    counts = [len(sampled(RECIPES["released"].cutout, (40, 40), True, rng).boxes) for _ in range(2_000)]
    found = np.bincount(counts, minlength=6)[1:] / 2_000
    np.testing.assert_allclose(found, [0.05, 0.0475, 0.0451, 0.0429, 0.8145], atol=0.025)


def test_windows_keep_the_margin_where_the_patch_allows():
    rng = np.random.default_rng(0)
    for outer in (True, False):
        boxes = [box for _ in range(50) for box in sampled(RECIPES["released"].cutout, (40, 14, 2), outer, rng).boxes]
        faces = np.array(boxes)
        assert faces[:, :2, 0].min() == 3
        assert faces[:, 0, 1].max() == 37
        assert faces[:, 1, 1].max() == 11


@pytest.mark.parametrize("shape", SPATIAL)
@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_right_side_is_painted_and_within_the_range(shape, outer, dtype):
    channel = noise(shape, 2, dtype)
    before = bits(channel)
    params = sampled(RECIPES["released"].cutout, shape, outer, np.random.default_rng(3))
    out = applied(channel, params, -1.5, 2.5)
    mask = torch.from_numpy(inside(shape, params) != outer)
    assert out.dtype == dtype
    assert bits(channel) == before
    assert bits(out[~mask]) == bits(channel[~mask])
    assert ((out[mask] >= -1.5) & (out[mask] <= 2.5)).all()
    assert (out[mask] == channel[mask]).sum() <= 0.1 * mask.sum()


@settings(max_examples=40, deadline=None)
@given(recipes, shapes, st.booleans(), seeds, dtypes)
def test_it_agrees_with_the_plain_telling(name, shape, outer, seed, dtype):
    channel = noise(shape, seed, dtype)
    params = sampled(RECIPES[name].cutout, shape, outer, np.random.default_rng(seed))
    expected = painted(channel.float().numpy(), params, -1.5, 2.5)
    assert bits(applied(channel, params, -1.5, 2.5)) == bits(torch.from_numpy(expected).to(dtype))


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("shape", [(32, 40, 24), (1, 96, 96), (90, 110)])
def test_what_is_painted_is_uniform_and_knows_nothing_of_its_neighbours(shape, outer):
    params = sampled(RECIPES["released"].cutout, shape, outer, np.random.default_rng(3))
    out = applied(torch.zeros(shape), params, -1.5, 2.5).numpy()[inside(shape, params) != outer]
    assert stats.kstest(out, stats.uniform(-1.5, 4).cdf).pvalue > 0.001
    for step in (1, 2, shape[-1]):
        assert abs(np.corrcoef(out[:-step], out[step:])[0, 1]) < 4 / len(out) ** 0.5


def test_noise_is_uniform_over_the_range():
    out = applied(torch.zeros(60, 60), CutoutParams(False, (((0, 60), (0, 60)),), 7), -3.0, 5.0)
    quartiles = torch.quantile(out, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    np.testing.assert_allclose(quartiles.numpy(), [-3, -1, 1, 3, 5], atol=0.25)


@settings(max_examples=20, deadline=None)
@given(shapes, seeds, dtypes)
def test_the_seed_decides(shape, seed, dtype):
    channel = noise(shape, seed, dtype)
    whole = (tuple((0, edge) for edge in shape),)
    first, again, other = (applied(channel, CutoutParams(False, whole, s), -1.0, 1.0) for s in (1, 1, 2))
    assert bits(first) == bits(again) != bits(other)


def test_a_constant_is_painted_with_itself():
    channel = torch.full((6, 6), 2.5)
    assert bits(applied(channel, CutoutParams(True, (), 0), 2.5, 2.5)) == bits(channel)
