import json
from dataclasses import replace

import pytest

from nnunet_genesis.corruption import RECIPES, Recipe, read_recipe
from nnunet_genesis.errors import SettingsError


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name):
    block = json.loads(json.dumps(RECIPES[name].block()))
    assert Recipe().updated(block, "here") == RECIPES[name]
    assert read_recipe(block, "here") == RECIPES[name]


def test_the_recipes_follow_paper_and_released_code():
    paper, released = RECIPES["paper"], RECIPES["released"]
    assert (paper.shuffling.windows, paper.cutout.windows, paper.cutout.max_replaced) == (1_000, 10, 0.25)
    assert (released.shuffling.windows, released.cutout.windows, released.cutout.max_replaced) == (10_000, 5, 1.0)
    for recipe in (paper, released):
        odds = [corruption.probability for corruption in recipe.corruptions.values()]
        assert odds == [0.5, 0.9, 0.9, 0.0]
        assert recipe.cutout.outer_share == 0.8


def test_corruptions_stand_in_their_order_of_application():
    assert list(Recipe().corruptions) == ["shuffling", "intensity", "cutout", "masking"]


def test_a_block_overrides_the_recipe_it_names():
    made = read_recipe({"name": "released", "cutout": {"outer_share": 0.1}, "flip_probability": 0.5}, "here")
    released = RECIPES["released"]
    assert made == replace(released, cutout=replace(released.cutout, outer_share=0.1), flip_probability=0.5)
    assert read_recipe({}, "here") == read_recipe("paper", "here") == Recipe()


def test_former_names_of_settings_are_read():
    former = {
        "shuffling": {"extent": 0.2, "cover": 1.5},
        "cutout": {"further_window": 0.5, "outer_extent": [0.5, 0.6], "inner_extent": [0.2, 0.3], "limit": 0.4},
        "masking": {"edge": 8},
    }
    paper = RECIPES["paper"]
    cutout = replace(
        paper.cutout,
        next_window_probability=0.5,
        outer_window_size=(0.5, 0.6),
        inner_window_size=(0.2, 0.3),
        max_replaced=0.4,
    )
    made = read_recipe(former, "here")
    assert made == replace(
        paper,
        shuffling=replace(paper.shuffling, max_window_size=0.2, max_coverage=1.5),
        cutout=cutout,
        masking=replace(paper.masking, cell_size=8),
    )
    for name, block in former.items():
        assert not set(block) & set(made.block()[name])


def test_each_corruption_alone_always_takes_place_with_its_sizes():
    flipping = replace(RECIPES["released"], flip_probability=0.5)
    alone = flipping.alone()
    assert list(alone) == ["shuffling", "intensity", "outer_cutout", "inner_cutout"]
    for name, recipe in alone.items():
        odds = {key: corruption.probability for key, corruption in recipe.corruptions.items()}
        assert odds == {key: float(name.endswith(key)) for key in odds}
        assert recipe.flip_probability == 0
        assert recipe.shuffling.windows == 10_000
    assert alone["outer_cutout"].cutout.outer_share == 1
    assert alone["inner_cutout"].cutout.outer_share == 0


def test_what_a_recipe_does_not_use_does_not_stand_alone():
    assert list(RECIPES["masking"].alone()) == ["masking"]
    assert RECIPES["paper"].without().alone() == {}


@pytest.mark.parametrize(
    ("block", "advice"),
    [
        ({"shufling": {}}, 'Unknown key "shufling" in plans: did you mean "shuffling"'),
        ({"shuffling": {"window": 3}}, 'Unknown key "window" in plans / "shuffling": did you mean "windows"'),
        ({"shuffling": 3}, 'plans / "shuffling" must be a block of settings in braces, not 3'),
        ({"intensity": {"probability": 1.1}}, 'In plans / "intensity": "probability" must be at most 1'),
        ({"flip_probability": -0.1}, '"flip_probability" must be at least 0'),
        ({"flip_probability": float("nan")}, '"flip_probability" must be'),
        ({"shuffling": {"windows": 0}}, '"windows" must be at least 1'),
        ({"shuffling": {"windows": 1.5}}, '"windows" must be a whole number'),
        ({"shuffling": {"max_window_size": 0}}, '"max_window_size" must be above 0'),
        ({"shuffling": {"max_coverage": 0}}, '"max_coverage" must be above 0'),
        ({"cutout": {"outer_window_size": [0.9, 0.1]}}, '"outer_window_size" must be two ascending numbers'),
        ({"cutout": {"inner_window_size": [0.1, 1.1]}}, '"inner_window_size" must be at most 1'),
        ({"range_percentiles": [-1, 99]}, '"range_percentiles" must be at least 0'),
        ({"cutout": {"max_replaced": "half"}}, '"max_replaced" must be a number'),
        ({"cutout": {"margin": -1}}, '"margin" must be at least 0'),
        ({"masking": {"ratio": 0}}, '"ratio" must be above 0'),
        ({"masking": {"ratio": [0, 0.5]}}, '"ratio" must be above 0'),
        ({"masking": {"ratio": [0.5, 1.5]}}, '"ratio" must be at most 1'),
        ({"masking": {"ratio": [0.9, 0.6]}}, '"ratio" must be two ascending numbers'),
        ({"masking": {"ratio": [0.5, 0.6, 0.7]}}, '"ratio" must be two ascending numbers'),
        ({"masking": {"ratio": []}}, '"ratio" must be two ascending numbers'),
        ({"masking": {"ratio": "most"}}, '"ratio" must be two ascending numbers'),
        ({"masking": {"cell_size": -1}}, '"cell_size" must be at least 0'),
        ({"masking": {"cell_size": [4, -1]}}, '"cell_size" must be at least 0'),
        ({"masking": {"cell_size": [4, [4]]}}, '"cell_size" must be a whole number, not [4]'.replace("[", r"\[")),
        ({"masking": {"cell_size": []}}, '"cell_size" must be one number, or two or three for the axes'),
        ({"masking": {"cell_size": [4] * 4}}, '"cell_size" must be one number, or two or three for the axes'),
        ({"name": "book"}, "Unknown recipe 'book' in plans: choose one of paper, released"),
        ({"name": ["paper"]}, "Unknown recipe"),
        ("book", "Unknown recipe 'book' in plans: choose one of paper, released"),
        (None, 'plans must be "paper" or "released" or "masking" or "mae" or a block'),
    ],
)
def test_refusals_name_the_culprit(block, advice):
    with pytest.raises(SettingsError, match=advice.replace("(", r"\(")):
        read_recipe(block, "plans")
