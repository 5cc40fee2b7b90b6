import dataclasses
import json

import pytest

from nnunet_genesis.corruption import CORRUPTIONS, RECIPES, Recipe, read_recipe
from nnunet_genesis.errors import SettingsError


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name):
    block = json.loads(json.dumps(RECIPES[name].block()))
    assert Recipe.read(block, "here") == RECIPES[name]
    assert read_recipe(block, "here") == RECIPES[name]


def test_the_recipes_follow_paper_and_released_code():
    paper, released = RECIPES["paper"], RECIPES["released"]
    assert (paper.shuffle_windows, paper.cutout_windows, paper.cutout_limit) == (1_000, 10, 0.25)
    assert (released.shuffle_windows, released.cutout_windows, released.cutout_limit) == (10_000, 5, 1.0)
    for recipe in (paper, released):
        odds = (recipe.shuffle_probability, recipe.curve_probability, recipe.painting_probability)
        assert odds == (0.5, 0.9, 0.9)
        assert recipe.outer_share == 0.8


def test_a_block_overrides_the_recipe_it_names():
    made = read_recipe({"name": "released", "outer_share": 0.1}, "here")
    assert made == dataclasses.replace(RECIPES["released"], outer_share=0.1)
    assert read_recipe({}, "here") == read_recipe("paper", "here") == Recipe()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_only_one_corruption_always(name):
    single = RECIPES["released"].only(name)
    on = {
        "intensity": single.curve_probability,
        "shuffling": single.shuffle_probability,
        "outer_cutout": single.painting_probability * single.outer_share,
        "inner_cutout": single.painting_probability * (1 - single.outer_share),
    }
    assert on == {key: float(key == name) for key in CORRUPTIONS}
    assert single.flip_probability == 0
    assert single.shuffle_windows == 10_000


@pytest.mark.parametrize(
    ("block", "advice"),
    [
        ({"shufle_windows": 3}, 'Unknown key "shufle_windows" in plans: did you mean "shuffle_windows"'),
        ({"curve_probability": 1.1}, 'In plans: "curve_probability" must be at most 1'),
        ({"flip_probability": -0.1}, '"flip_probability" must be at least 0'),
        ({"flip_probability": float("nan")}, '"flip_probability" must be'),
        ({"shuffle_windows": 0}, '"shuffle_windows" must be at least 1'),
        ({"shuffle_windows": 1.5}, '"shuffle_windows" must be a whole number'),
        ({"shuffle_extent": 0}, '"shuffle_extent" must be above 0'),
        ({"shuffle_cover": 0}, '"shuffle_cover" must be above 0'),
        ({"outer_extent": [0.9, 0.1]}, '"outer_extent" must be two ascending numbers'),
        ({"inner_extent": [0.1, 1.1]}, '"inner_extent" must be at most 1'),
        ({"range_percentiles": [-1, 99]}, '"range_percentiles" must be at least 0'),
        ({"cutout_limit": "half"}, '"cutout_limit" must be a number'),
        ({"cutout_margin": -1}, '"cutout_margin" must be at least 0'),
        ({"name": "book"}, "Unknown recipe 'book' in plans: choose one of paper, released"),
        ({"name": ["paper"]}, "Unknown recipe"),
        ("book", "Unknown recipe 'book' in plans: choose one of paper, released"),
        (None, 'plans must be "paper" or "released" or a block'),
    ],
)
def test_refusals_name_the_culprit(block, advice):
    with pytest.raises(SettingsError, match=advice.replace("(", r"\(")):
        read_recipe(block, "plans")


def test_only_refuses_an_unknown_corruption():
    with pytest.raises(SettingsError, match='"blur": choose one of intensity, shuffling'):
        Recipe().only("blur")
