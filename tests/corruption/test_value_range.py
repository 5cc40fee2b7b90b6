import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_genesis.corruption.value_range import value_range
from tests.corruption.reference import dtypes, ends, noise, seeds, shapes

ROBUST = (0.5, 99.5)


@settings(max_examples=40, deadline=None)
@given(shapes, seeds, dtypes)
def test_both_ends_occur_in_order(shape, seed, dtype):
    channel = noise(shape, seed, dtype)
    low, high = value_range(channel, ROBUST)
    assert low <= high
    assert {low, high} <= set(channel.flatten().tolist())


@settings(max_examples=40, deadline=None)
@given(shapes, seeds)
def test_small_patches_give_plain_percentiles(shape, seed):
    channel = noise(shape, seed)
    expected = np.percentile(channel.double().numpy(), (5, 95))
    spread = np.sort(channel.double().numpy().ravel())
    tolerance = np.diff(spread).max() if spread.size > 1 else 0
    np.testing.assert_allclose(value_range(channel, (5, 95)), expected, atol=tolerance + 1e-6)


def test_a_large_patch_is_judged_on_all_its_axes():
    shape = (70, 130, 90)
    for axis, edge in enumerate(shape):
        ramp = torch.arange(float(edge)).view([-1 if a == axis else 1 for a in range(3)]).expand(shape)
        low, high = value_range(ramp, (2, 98))
        assert low == pytest.approx(0.02 * edge, abs=4)
        assert high == pytest.approx(0.98 * edge, abs=4)


def test_outliers_do_not_set_the_range():
    channel = noise((40, 40, 40))
    channel[0, 0, :20] = 1000
    assert value_range(channel, ROBUST)[1] < 4


def test_mostly_air_falls_back_to_the_extremes():
    channel = torch.full((70, 70, 70), -1.0)
    channel[33, 33, 33:37] = torch.tensor([2.0, 5.0, 3.0, -4.0])
    assert value_range(channel, ROBUST) == (-4.0, 5.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_ends_are_as_exact_as_the_channel(dtype):
    channel = noise((9, 10, 11), 3, dtype)
    low, high = value_range(channel, ROBUST)
    assert {low, high} <= set(channel.flatten().tolist())


@pytest.mark.parametrize("value", [0.0, -3.5, 1e4])
def test_a_constant_channel_has_one_value(value):
    assert value_range(torch.full((9, 9), value, dtype=torch.float16), ROBUST) == (value, value)


def test_only_finite_voxels_count():
    channel = noise((20, 20))
    expected = value_range(channel[:, 2:], ROBUST)
    channel[:, 0], channel[:10, 1], channel[10:, 1] = torch.nan, torch.inf, -torch.inf
    assert value_range(channel, ROBUST) == expected
    assert value_range(torch.full((3, 3), torch.nan), ROBUST) == (0.0, 0.0)


def test_a_view_gives_the_range_of_its_values():
    channel = noise((30, 40, 50))
    assert value_range(channel.permute(2, 0, 1), (0, 100)) == value_range(channel, (0, 100))


@settings(max_examples=60, deadline=None)
@given(shapes, seeds, st.sampled_from([(0, 100), (0.5, 99.5), (10, 80)]))
def test_a_small_patch_is_judged_on_all_its_finite_voxels(shape, seed, percentiles):
    channel = noise(shape, seed)
    broken, steps = channel.clone(), channel.round().clamp(0, 0.5) - 3
    broken.view(-1)[1:][noise(shape, seed + 9).view(-1)[1:] > 0.8] = torch.nan
    for each in (channel, broken, steps):
        assert value_range(each, percentiles) == ends(each.numpy(), percentiles)


@pytest.mark.parametrize(
    ("shape", "steps"), [((70, 90, 40), (3, 3, 2)), ((200, 200), (2, 2)), ((3, 600, 30), (1, 4, 1))]
)
def test_a_large_patch_is_thinned_out_along_its_longest_axes(shape, steps):
    channel = noise(shape)
    thinned = channel[tuple(slice(None, None, step) for step in steps)]
    assert value_range(channel, (2, 98)) == ends(thinned.numpy(), (2, 98))
