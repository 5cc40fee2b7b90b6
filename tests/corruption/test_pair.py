import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_genesis.corruption import RECIPES, apply_params, make_pair, room_for, sample_params
from nnunet_genesis.corruption.corruption import Params
from nnunet_genesis.corruption.cutout import CutoutParams
from nnunet_genesis.corruption.pair import PairParams
from nnunet_genesis.errors import DatasetError
from tests.corruption.reference import SPATIAL, bits, dtypes, ends, inside, noise, ordered, plain_pair, seeds, shapes

SINGLE = RECIPES["released"].alone()
ANY_NETWORK = [recipe for name, recipe in RECIPES.items() if name != "mae"]  # whose cells are those of a network
recipes = st.sampled_from([*ANY_NETWORK, *SINGLE.values()])
channels = st.integers(1, 5)
IDENTITY = RECIPES["paper"].without()


def light(recipe):
    """Fewer windows, so that many examples are quick."""
    return recipe.updated({"shuffling": {"windows": 100}}, "")


def rng(seed=0):
    return np.random.default_rng(seed)


@settings(max_examples=60, deadline=None)
@given(recipes, channels, shapes, seeds, dtypes)
def test_shape_type_and_input_are_kept(recipe, count, shape, seed, dtype):
    patch = noise((count, *shape), seed, dtype)
    before = bits(patch)
    corrupted, target = make_pair(patch, light(recipe), rng(seed))
    assert bits(patch) == before
    for result in (corrupted, target):
        assert result.shape == patch.shape
        assert result.dtype == dtype
        assert result.is_contiguous()
        assert result.untyped_storage().data_ptr() != patch.untyped_storage().data_ptr()
    assert corrupted.isfinite().all()
    assert not target.isinf().any()
    assert corrupted.untyped_storage().data_ptr() != target.untyped_storage().data_ptr()


edges = st.integers(1, 300)
patch_shapes = st.one_of(
    st.tuples(st.integers(1, 5), edges, edges), st.tuples(st.integers(1, 5), st.integers(1, 16), edges, edges)
)


@settings(max_examples=25, deadline=None)
@given(recipes, patch_shapes, dtypes, seeds, st.sampled_from(["plain", "view", "constant", "broken"]))
def test_patches_of_all_shapes_come_out_as_they_went_in(recipe, shape, dtype, seed, kind):
    patch = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if kind == "view":
        patch = patch.transpose(-1, -2).contiguous().transpose(-1, -2)
    if kind == "constant":
        patch[:] = 2.5
    broken = torch.zeros(shape, dtype=torch.bool)
    if kind == "broken":
        broken = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1)) > 0.99
        patch[broken] = torch.nan
    before = bits(patch)
    out, _ = apply_params(patch, sample_params(shape, light(recipe), rng(seed)))
    assert (out.shape, out.dtype, out.is_contiguous()) == (patch.shape, dtype, True)
    assert bits(patch) == before
    assert (out.isnan().flatten(1).sum(1) <= broken.flatten(1).sum(1)).all()
    assert not out.isinf().any()


@settings(max_examples=60, deadline=None)
@given(
    recipes, channels, st.one_of(shapes, st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(30, 150))), seeds
)
def test_a_pair_is_that_of_the_plain_tellings(recipe, count, shape, seed):
    patch = noise((count, *shape), seed)
    params = sample_params(patch.shape, dataclasses.replace(light(recipe), flip_probability=0.3), rng(seed))
    corrupted, target = apply_params(patch, params)
    expected, clean = plain_pair(patch.numpy(), params)
    assert np.array_equal(target.numpy(), clean, equal_nan=True)
    np.testing.assert_allclose(corrupted.numpy(), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(recipes, channels, shapes, seeds)
def test_the_same_seed_gives_the_same_pair_and_replays(recipe, count, shape, seed):
    patch = noise((count, *shape), seed)
    params = sample_params(patch.shape, light(recipe), rng(seed))
    first, again = (make_pair(patch, light(recipe), rng(seed)) for _ in range(2))
    sent = pickle.loads(pickle.dumps(params))
    for pair in (again, apply_params(patch, params), apply_params(patch, sent)):
        assert [bits(half) for half in pair] == [bits(half) for half in first]


class Listening(Params):
    """Changes nothing, and notes where its result is of use."""

    def __init__(self):
        self.regions = []

    def apply(self, channel, low, high):
        raise AssertionError("not everywhere")

    def apply_where_kept(self, channel, low, high, region):
        self.regions.append(region)


@pytest.mark.parametrize("outer", [True, False])
def test_a_corruption_knows_what_the_next_one_overwrites(outer):
    one, cutout = Listening(), CutoutParams(outer, (((2, 5), (0, 4)),), 0)
    apply_params(noise((1, 8, 9)), PairParams((1, 8, 9), (), ((one, None, cutout),), (0.5, 99.5)))
    apply_params(noise((1, 8, 9)), PairParams((1, 8, 9), (), ((cutout, one),), (0.5, 99.5)))
    for (cells, cuts), expected in zip(
        one.regions, [inside((8, 9), cutout) == outer, np.ones((8, 9), bool)], strict=True
    ):
        rows, columns = (np.repeat(np.arange(len(cut) - 1), np.diff(cut)) for cut in cuts)
        assert np.array_equal(cells[np.ix_(rows, columns)], expected)


@settings(max_examples=40, deadline=None)
@given(recipes, channels, shapes, seeds, st.sampled_from([torch.float16, torch.float32, torch.float64]))
def test_a_room_that_was_used_before_gives_the_same_pair(recipe, count, shape, seed, dtype):
    patch = noise((count, *shape), seed, dtype)
    params = sample_params(patch.shape, light(recipe), rng(seed))
    room = room_for(patch)
    for used in room:
        used.fill_(torch.inf)
    pair = apply_params(patch, params, room=room)
    assert [one is other for one, other in zip(pair, room, strict=True)] == [True, True]
    assert [bits(one) for one in pair] == [bits(one) for one in apply_params(patch, params)]


def test_a_room_for_other_patches_is_refused():
    patch = torch.zeros(1, 8, 8, 8)
    params = sample_params(patch.shape, RECIPES["paper"], rng())
    for other in (torch.zeros(1, 8, 8, 7), patch.half()):
        for room in (room_for(other), (room_for(patch)[0], room_for(other)[1])):
            with pytest.raises(DatasetError, match="room for a pair is for .*, not for a patch of .* room_for gives"):
                apply_params(patch, params, room=room)


@pytest.mark.parametrize("name", SINGLE)
def test_another_seed_gives_another_pair(name):
    patch = noise((2, 30, 30, 20))
    recipe = SINGLE[name]
    assert bits(make_pair(patch, recipe, rng(1))[0]) != bits(make_pair(patch, recipe, rng(2))[0])


@pytest.mark.parametrize("spatial", SPATIAL)
def test_without_corruptions_nothing_changes(spatial):
    patch = noise((3, *spatial))
    corrupted, clean = make_pair(patch, IDENTITY, rng())
    assert bits(corrupted) == bits(clean) == bits(patch)


@settings(max_examples=30, deadline=None)
@given(shapes, seeds)
def test_flips_mirror_both_halves_alike_and_once(shape, seed):
    patch = noise((2, *shape), seed)
    recipe = dataclasses.replace(light(RECIPES["paper"]), flip_probability=0.5)
    params = sample_params(patch.shape, recipe, rng(seed))
    expected = patch.numpy()[
        (slice(None), *(slice(None, None, -1 if a in params.flips else 1) for a in range(len(shape))))
    ]
    corrupted, clean = apply_params(patch, params)
    assert np.array_equal(clean.numpy(), expected)
    mirrored_before = apply_params(clean, dataclasses.replace(params, flips=()))
    assert [bits(half) for half in mirrored_before] == [bits(corrupted), bits(clean)]
    still = dataclasses.replace(params, channels=sample_params(patch.shape, IDENTITY, rng()).channels)
    assert bits(apply_params(patch, still)[0]) == bits(clean)


def test_every_spatial_axis_is_mirrored_half_of_the_time():
    flips = [
        sample_params((2, 4, 5, 6), dataclasses.replace(IDENTITY, flip_probability=0.5), rng(s)).flips
        for s in range(600)
    ]
    for axis in range(3):
        assert np.mean([axis in params for params in flips]) == pytest.approx(0.5, abs=0.08)
    assert {axis for params in flips for axis in params} == {0, 1, 2}


@settings(max_examples=30, deadline=None)
@given(recipes, shapes, seeds, st.integers(0, 2))
def test_a_channel_does_not_look_at_the_others(recipe, shape, seed, place):
    patch = noise((3, *shape), seed)
    other = patch.clone()
    other[[c for c in range(3) if c != place]] = noise((2, *shape), seed + 1) * 50 + 7
    params = sample_params(patch.shape, light(recipe), rng(seed))
    one, two = apply_params(patch, params)[0], apply_params(other, params)[0]
    assert bits(one[place]) == bits(two[place])
    alone = dataclasses.replace(params, shape=(1, *shape), channels=(params.channels[place],))
    assert bits(apply_params(patch[place : place + 1], alone)[0][0]) == bits(one[place])


def test_channels_are_sampled_independently_with_the_odds_of_the_recipe():
    params = [sample_params((2, 8, 8, 8), RECIPES["paper"], rng(seed)).channels for seed in range(1_500)]
    made = np.empty((1_500, 2, 4), dtype=object)
    made[:] = params
    happens = made != None  # noqa: E711
    np.testing.assert_allclose(happens.mean((0, 1)), [0.5, 0.9, 0.9, 0], atol=0.03)
    for gate in range(3):
        both = (happens[:, 0, gate] & happens[:, 1, gate]).mean()
        assert both == pytest.approx(happens[:, 0, gate].mean() * happens[:, 1, gate].mean(), abs=0.03)
    assert np.mean([p.outer for p in made[..., 2].ravel() if p]) == pytest.approx(0.8, abs=0.03)
    assert np.mean([c.decreasing for c in made[..., 1].ravel() if c]) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("shape", [(4, 16, 16, 16), (2, 9, 31)])
def test_shuffling_permutes_every_channel_within_itself(shape):
    patch = noise(shape)
    recipe = SINGLE["shuffling"].updated({"shuffling": {"max_window_size": 0.3}}, "")
    corrupted, _ = make_pair(patch, recipe, rng())
    for before, after in zip(patch, corrupted, strict=True):
        assert bits(ordered(before)) == bits(ordered(after))
        assert not torch.equal(before, after)


@pytest.mark.parametrize("name", ["paper", "released"])
def test_results_stay_in_the_range_of_the_patch(name):
    recipe = dataclasses.replace(RECIPES[name], range_percentiles=(0, 100))
    patch = noise((3, 20, 24, 16)) * torch.tensor([1.0, 30.0, 0.01]).view(3, 1, 1, 1) + 5
    for seed in range(8):
        corrupted, clean = make_pair(patch, recipe, rng(seed))
        for after, before in zip(corrupted, clean, strict=True):
            assert before.min() <= after.min() <= after.max() <= before.max()


@pytest.mark.parametrize("name", ["paper", "released"])
def test_a_constant_patch_stays_constant(name):
    patch = torch.full((2, 12, 14, 3), -4.25)
    assert bits(make_pair(patch, RECIPES[name], rng(5))[0]) == bits(patch)


@settings(max_examples=40, deadline=None)
@given(shapes, seeds, st.sampled_from([torch.nan, torch.inf, -torch.inf]))
def test_broken_voxels_do_not_spread(shape, seed, value):
    patch = noise((2, *shape), seed)
    patch[0][noise(shape, seed + 1) > 1.2] = value
    broken = int((~patch[0].isfinite()).sum())
    corrupted, clean = make_pair(patch, light(RECIPES["released"]), rng(seed))
    assert int((~corrupted[0].isfinite()).sum()) <= broken
    assert corrupted[1].isfinite().all()
    assert int((~clean.isfinite()).sum()) == broken


def test_a_patch_without_a_number_is_no_error():
    patch = torch.full((1, 8, 8), torch.nan)
    for recipe in SINGLE.values():
        corrupted, _ = make_pair(patch, recipe, rng())
        assert not corrupted.isinf().any()


def test_a_view_gives_the_pair_of_its_copy():
    patch = noise((12, 20, 3, 16)).permute(2, 0, 3, 1)
    one = make_pair(patch, RECIPES["paper"], rng(4))
    two = make_pair(patch.contiguous(), RECIPES["paper"], rng(4))
    assert [bits(half) for half in one] == [bits(half) for half in two]
    assert all(half.is_contiguous() for half in one)


def test_global_generators_are_left_alone():
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    make_pair(noise((2, 16, 16, 16)), RECIPES["released"], rng())
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]  # noqa: NPY002


def test_refusals_say_what_does_not_fit():
    params = sample_params((1, 8, 8), RECIPES["paper"], rng())
    with pytest.raises(DatasetError, match=r"\(1, 8, 8\).*\(2, 8, 8\): sample again"):
        apply_params(noise((2, 8, 8)), params)
    with pytest.raises(DatasetError, match=r"floating.*int16"):
        apply_params(torch.zeros((1, 8, 8), dtype=torch.int16), params)
    for shape in [(3,), (3, 4), (1, 0, 4), (0, 4, 4), (1, 2, 2, 2, 2)]:
        with pytest.raises(DatasetError, match="none empty"):
            sample_params(shape, RECIPES["paper"], rng())


def test_a_patch_is_measured_by_its_own_percentiles():
    patch = noise((2, 20, 22))
    curves = {
        percentiles: make_pair(patch, dataclasses.replace(SINGLE["intensity"], range_percentiles=percentiles), rng())[0]
        for percentiles in [(0, 100), (10, 80), (0.5, 99.5)]
    }
    for one, channel in enumerate(patch):
        for percentiles, corrupted in curves.items():
            low, high = ends(channel.numpy(), percentiles)
            span = channel[(channel >= low) & (channel <= high)], corrupted[one][(channel >= low) & (channel <= high)]
            assert [span[1].min().item(), span[1].max().item()] == pytest.approx([low, high], abs=1e-6)
