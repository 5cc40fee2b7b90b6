import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nnunet_genesis.corruption import RECIPES, make_pair
from nnunet_genesis.corruption.masking import Masking
from nnunet_genesis.errors import SettingsError
from tests.corruption.reference import applied, bits, in_cells, noise, seeds, shapes


def rng(seed=0):
    return np.random.default_rng(seed)


@settings(max_examples=60, deadline=None)
@given(shapes, seeds)
def test_whole_cells_of_the_grid_are_masked(shape, seed):
    params = Masking(ratio=(0.5, 0.5), cell_size=5).sample(shape, rng(seed))
    mask = params.loss_mask(shape).numpy()
    assert mask.shape == shape
    edges = [min(5, math.ceil(voxels / 2)) for voxels in shape]
    corners = mask[tuple(slice(None, None, edge) for edge in edges)]  # one voxel of each cell
    expanded = corners
    for axis, (edge, voxels) in enumerate(zip(edges, shape, strict=True)):
        expanded = expanded.repeat(edge, axis).take(range(voxels), axis)
    assert np.array_equal(expanded, mask)
    assert corners.sum() == max(1, round(0.5 * corners.size))


@settings(max_examples=40, deadline=None)
@given(shapes, seeds, st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), st.booleans())
def test_what_is_masked_is_hidden_and_the_rest_is_left_out_whatever_the_type(shape, seed, dtype, absent):
    """The target is the channel where the input hides it, and nothing elsewhere."""
    shape = tuple(edge + 5 for edge in shape) if absent else shape  # one cell cannot be absent
    channel = noise(shape, seed, dtype)
    params = Masking(cell_size=5, masked_as="absent" if absent else "zeros").sample(shape, rng(seed))
    masked = params.loss_mask(channel.shape)
    hidden, target = applied(channel, params, -2, 2), channel.clone()
    params.leave_out(target)
    emptied = channel.masked_fill(masked, math.nan if absent else 0.0)
    for found, expected in ((hidden, emptied), (target, channel.masked_fill(~masked, math.nan))):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(shapes, seeds)
def test_cells_have_an_edge_along_each_axis_and_a_network_gives_those_that_are_0(shape, seed):
    stride = (2, 5, 7)[: len(shape)]
    for cell_size, edges in ((0, stride), ((3, *[0] * (len(shape) - 1)), (3, *stride[1:])), (4, [4] * len(shape))):
        params = Masking(cell_size=cell_size).fitted(stride).sample(shape, rng(seed))
        assert params.edges == tuple(min(edge, math.ceil(n / 2)) for edge, n in zip(edges, shape, strict=True))
    same = Masking(cell_size=4), Masking(cell_size=(4,) * len(shape)), Masking(cell_size=4).fitted(stride)
    assert len({one.sample(shape, rng(seed)) for one in same}) == 1


@given(shapes, seeds, st.floats(0.01, 1))
def test_one_ratio_draws_as_it_did_before_ratios_had_a_range(shape, seed, ratio):
    edges = [min(4, math.ceil(n / 2)) for n in shape]
    cells = math.prod(math.ceil(n / edge) for n, edge in zip(shape, edges, strict=True))
    drawn, expected = rng(seed), rng(seed)
    masking = Masking(cell_size=4).updated({"ratio": ratio}, "old plans")
    assert masking == Masking(cell_size=4, ratio=(ratio, ratio))
    params = masking.sample(shape, drawn)
    assert params.cells == tuple(sorted(expected.permutation(cells)[: max(1, round(ratio * cells))].tolist()))
    assert drawn.bit_generator.state == expected.bit_generator.state


def test_of_a_range_every_ratio_is_drawn_equally_often():
    masking = Masking(ratio=(0.3, 0.8), cell_size=1)
    shares = [len(masking.sample((20, 20), rng(seed)).cells) / 400 for seed in range(1000)]
    assert min(shares) >= 0.3
    assert max(shares) <= 0.8
    assert stats.kstest(shares, stats.uniform(0.3, 0.5).cdf).pvalue > 0.01


def test_cells_without_an_edge_or_of_other_axes_are_refused():
    with pytest.raises(SettingsError, match='"cell_size" is 0, which stands for the stride of a network'):
        Masking(cell_size=(4, 0)).sample((8, 8), rng())
    for refuse in (Masking(cell_size=(4, 4)).fitted, lambda shape: Masking(cell_size=(4, 4)).sample(shape, rng())):
        with pytest.raises(SettingsError, match='"cell_size" has 2 numbers, but patches have 3 axes'):
            refuse((8, 8, 8))


def test_every_cell_is_masked_equally_often():
    masks = np.mean(
        [
            Masking(ratio=(0.25, 0.25), cell_size=4).sample((16, 16), rng(s)).loss_mask((16, 16)).numpy()
            for s in range(900)
        ],
        0,
    )
    np.testing.assert_allclose(masks, 0.25, atol=0.07)


def test_masked_voxels_are_zero_and_the_others_are_kept():
    channel = noise((20, 24, 9), 1)
    params = Masking(cell_size=6).sample(channel.shape, rng())
    out, masked = applied(channel, params, -2, 2), params.loss_mask(channel.shape)
    assert np.array_equal(masked.numpy(), in_cells(channel.shape, params))
    assert 0.6 < masked.float().mean() < 0.9
    assert (out[masked] == 0).all()
    assert bits(out[~masked]) == bits(channel[~masked])


def test_only_masked_voxels_are_to_be_restored_and_all_channels_hide_the_same():
    patch = noise((3, 24, 24, 24), 2)
    corrupted, target = make_pair(patch, RECIPES["masking"], rng(1))
    masked = target.isfinite()
    assert (masked == masked[:1]).all()
    assert (corrupted[masked] == 0).all()
    assert bits(target[masked]) == bits(patch[masked])
    assert bits(corrupted[~masked]) == bits(patch[~masked])


def test_other_corruptions_leave_everything_to_be_restored():
    patch = noise((2, 16, 16))
    assert bits(make_pair(patch, replace(RECIPES["released"], flip_probability=0.0), rng())[1]) == bits(patch)


def test_a_patch_of_one_voxel_is_masked():
    corrupted, target = make_pair(torch.ones(1, 1, 1, 1), RECIPES["masking"], rng())
    assert (corrupted.item(), target.item()) == (0, 1)


@given(shapes, seeds, st.floats(0.01, 1))
def test_cells_that_are_left_out_are_drawn_like_those_that_are_masked_but_one_stays(shape, seed, ratio):
    masked = Masking(cell_size=2, ratio=(ratio, ratio))
    left_out = replace(masked, masked_as="absent")
    cells = math.prod(math.ceil(n / 2) for n in shape)
    if min(shape) > 2 and ratio * cells < cells - 0.5:
        assert left_out.sample(shape, rng(seed)).cells == masked.sample(shape, rng(seed)).cells
    if cells > 1:
        assert len(left_out.sample(shape, rng(seed)).cells) < cells
        assert len(replace(left_out, ratio=(1.0, 1.0)).sample(shape, rng(seed)).cells) == cells - 1


def test_the_recipe_mae_leaves_cells_out_and_never_makes_them_smaller():
    patch = torch.ones(2, 8, 16, 8)
    corrupted, target = make_pair(patch, RECIPES["mae"].fitted((8, 8, 8)), rng())
    assert torch.equal(corrupted.isnan(), target == 1)
    assert torch.equal(corrupted.isfinite(), target.isnan())
    assert corrupted.isnan()[:, :, :8].float().mean() in (0, 1)  # cells as long as the patch stay whole
    with pytest.raises(SettingsError, match='"cell_size" is 0'):
        make_pair(patch, RECIPES["mae"], rng())
