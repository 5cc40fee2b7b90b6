import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_genesis.corruption.intensity import KNOTS, Intensity, IntensityParams
from nnunet_genesis.corruption.value_range import value_range
from tests.corruption.reference import applied, bent, bent_value, bits, dtypes, noise, seeds, shapes

unit = st.floats(0, 1)
curves = st.builds(IntensityParams, st.tuples(unit, unit), st.tuples(unit, unit), st.booleans())
EXTREME = [IntensityParams((1, a), (0, b), flip) for a in (0, 1) for b in (0, 1) for flip in (False, True)]


def rising(values, decreasing):
    return bool((values.diff() * (-1 if decreasing else 1) > 0).all())


@settings(max_examples=150, deadline=None)
@given(curves)
def test_the_table_is_strictly_monotone_from_end_to_end(params):
    table = torch.from_numpy(params.table())
    assert rising(table, params.decreasing)
    assert {float(table[0]), float(table[-1])} == {0.0, 1.0}


@settings(max_examples=60, deadline=None)
@given(curves, st.floats(-100, 100), st.floats(0.01, 100))
def test_the_map_is_one_to_one_on_all_numbers(params, low, width):
    high = low + width
    grid = torch.linspace(low - width, high + width, 5_000, dtype=torch.float64)
    assert rising(applied(grid, params, low, high), params.decreasing)


@settings(max_examples=60, deadline=None)
@given(curves)
def test_the_range_is_mapped_onto_itself(params):
    ends = applied(torch.tensor([-2.0, 3.0], dtype=torch.float64), params, -2.0, 3.0)
    expected = [3.0, -2.0] if params.decreasing else [-2.0, 3.0]
    assert ends.tolist() == pytest.approx(expected, abs=1e-12)
    within = applied(torch.linspace(-2, 3, 999), params, -2.0, 3.0)
    assert -2 <= float(within.min()) <= float(within.max()) <= 3


@settings(max_examples=60, deadline=None)
@given(curves)
def test_knots_agree_with_bisection(params):
    picked = np.linspace(0, KNOTS - 1, 12).astype(int)
    expected = [bent_value(knot / (KNOTS - 1), params, 0.0, 1.0) for knot in picked]
    # a curve that stands upright (x stationary) is steep between two entries of the table over t
    np.testing.assert_allclose(params.table()[picked], expected, atol=5e-4)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_any_value_agrees_with_bisection(seed, dtype):
    params = Intensity().sample((2, 2), np.random.default_rng(seed))
    values = torch.linspace(-7, 9, 41, dtype=dtype)
    out = applied(values, params, -4.0, 6.0)
    assert out.dtype == dtype
    expected = [bent_value(value, params, -4.0, 6.0) for value in values.tolist()]
    np.testing.assert_allclose(out.double().numpy(), expected, atol=0.02)


@pytest.mark.parametrize("params", EXTREME)
def test_extreme_curves_agree_at_the_knots(params):
    values = torch.arange(KNOTS, dtype=torch.float64) / (KNOTS - 1)
    expected = [bent_value(float(value), params, 0.0, 1.0) for value in values[::73]]
    np.testing.assert_allclose(applied(values, params, 0.0, 1.0)[::73].numpy(), expected, atol=5e-4)


def test_beyond_the_range_distances_are_kept():
    values = torch.tensor([-5.0, -1.0, 1.0, 4.0, torch.inf, -torch.inf])
    up = applied(values, IntensityParams((0.2, 0.7), (0.4, 0.9), False), -1.0, 1.0)
    down = applied(values, IntensityParams((0.2, 0.7), (0.4, 0.9), True), -1.0, 1.0)
    assert up.tolist() == values.tolist()
    assert down.tolist() == [5.0, 1.0, -1.0, -4.0, -torch.inf, torch.inf]


@pytest.mark.parametrize("seed", range(10))
def test_z_scored_data_do_not_collapse(seed):
    channel = noise((32, 32, 32), seed)
    low, high = value_range(channel, (0.5, 99.5))
    out = applied(channel, Intensity().sample((2, 2), np.random.default_rng(seed)), low, high)
    _, counts = out.unique(return_counts=True)
    assert int(counts.max()) < 0.01 * channel.numel()


@settings(max_examples=60, deadline=None)
@given(shapes, seeds, curves, st.floats(-3, 0), st.floats(0.01, 5))
def test_the_loop_interpolates_as_numpy_does(shape, seed, params, low, width):
    channel = 2 * noise(shape, seed).double()
    channel.view(-1)[:3] = torch.tensor([low, low + width, low + width / 2], dtype=torch.float64)[: channel.numel()]
    out = applied(channel, params, low, low + width)
    np.testing.assert_allclose(out.numpy(), bent(channel.numpy(), params, low, low + width), rtol=0, atol=1e-9)


def test_control_points_and_directions_are_uniform():
    rng = np.random.default_rng(0)
    params = [Intensity(decreasing=0.3).sample((2, 2), rng) for _ in range(4_000)]
    points = np.array([curve.first + curve.second for curve in params])
    assert np.allclose(points.mean(0), 0.5, atol=0.02)
    assert np.allclose(points.std(0), 12**-0.5, atol=0.02)
    assert abs(np.mean([curve.decreasing for curve in params]) - 0.3) < 0.03


@settings(max_examples=30, deadline=None)
@given(shapes, seeds, dtypes, curves)
def test_nan_stays_at_its_place(shape, seed, dtype, params):
    channel = noise(shape, seed, dtype)
    holes = noise(shape, seed + 1) > 1
    clean = applied(channel, params, -2.0, 2.0)
    before = bits(channel)
    out = applied(channel.masked_fill(holes, torch.nan), params, -2.0, 2.0)
    assert bits(channel) == before
    assert torch.equal(out.isnan(), holes)
    assert bits(out[~holes]) == bits(clean[~holes])


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.0, 0.0), (0.0, 1e-40), (-3e38, 3e38)])
def test_a_degenerate_range_changes_nothing(low, high):
    channel = noise((5, 5))
    out = applied(channel, EXTREME[0], low, high)
    assert bits(out) == bits(channel)
    assert out.data_ptr() != channel.data_ptr()
