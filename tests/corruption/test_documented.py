"""docs/corruptions.md tells what the code does: values, the block of settings, the example."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_genesis.cli_settings import add_flags
from nnunet_genesis.corruption import RECIPES, Recipe, apply_params, make_pair, sample_params
from nnunet_genesis.corruption.corruption import Corruption
from nnunet_genesis.settings import PretrainingSettings

CORRUPTIONS = (Path(__file__).parents[2] / "docs" / "corruptions.md").read_text()
CHANNELS, SHAPE = 2, (10, 6, 8)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", CORRUPTIONS, re.MULTILINE | re.DOTALL)


def number(text: str) -> Any:
    """`3/7` → 0.428…, `[1/6, 1/3]` → a tuple; a word is itself."""
    if text.strip().isalpha():
        return text.strip()
    found = tuple(float(Fraction(part.strip())) for part in text.strip("[] ").split(","))
    return found if "[" in text else found[0]


def values_in_table(section: str) -> Iterator[tuple[str, str, Any]]:
    """Recipe, setting and value of every cell."""
    header, _, *rows = [line for line in section.splitlines() if line.startswith("|")]
    recipes = re.findall(r"`(\w+)`", header)
    for row in rows:
        setting, *cells = row.strip("|").split("|")
        for recipe, cell in zip(recipes, cells, strict=False):
            yield recipe, setting.strip(" `"), number(cell)


@pytest.mark.parametrize("name", ["", *RECIPES["paper"].corruptions])
def test_the_tables_of_the_corruptions_hold_every_value(name):
    start = CORRUPTIONS.index(f"\n## `{name}`" if name else "\n## What all of them share")
    told = list(values_in_table(CORRUPTIONS[start + 1 :].split("\n## ")[0]))
    for recipe, setting, value in told:
        holder = getattr(RECIPES[recipe], name) if name else RECIPES[recipe]
        held = getattr(holder, setting)
        both = isinstance(held, tuple) and not isinstance(value, tuple)
        expected = value if isinstance(value, str) else pytest.approx((value, value) if both else value)
        assert held == expected, setting
    kind: Any = type(getattr(RECIPES["paper"], name)) if name else Recipe
    assert {setting for _, setting, _ in told} == {one.name for one in fields(kind) if "text" in one.metadata}


def test_the_documented_block_is_read_as_documented():
    (block,) = blocks("json")
    settings = PretrainingSettings.of_plans(json.loads(block))
    released = RECIPES["released"]
    assert settings.loss == "l1"
    assert settings.recipe == replace(
        released,
        flip_probability=0.0,
        shuffling=replace(released.shuffling, windows=5000),
        cutout=replace(released.cutout, outer_window_size=(0.6, 0.9), max_replaced=0.4),
        masking=replace(released.masking, probability=0.1),
    )


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The documented example, imported from a file of its own."""
    file = tmp_path_factory.mktemp("example") / "missing_planes.py"
    file.write_text(blocks("python")[1])
    spec = importlib.util.spec_from_file_location("missing_planes", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["missing_planes"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["missing_planes"]


@pytest.fixture(scope="module")
def longer(example: ModuleType) -> type[Recipe]:
    """`Recipe` with the documented line at its end."""
    program = f"@dataclass(frozen=True)\nclass Longer(Recipe):\n{blocks('python')[2]}"
    assert len(ast.parse(program).body[0].body) == 1
    names = {"dataclass": dataclass, "field": field, "Recipe": Recipe, "__name__": "missing_planes", **vars(example)}
    exec(program, names)
    return names["Longer"]


def patch(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(1, 1, (CHANNELS, *SHAPE)).astype(np.float32))


@pytest.mark.parametrize("spatial", [SHAPE, SHAPE[1:], (1, 1, 1)])
def test_the_example_corrupts_and_scores_what_it_says(spatial, longer):
    recipe = longer().without().updated({"missing_planes": {"probability": 1, "share": 0.5}}, "here")
    clean = patch().flatten()[: CHANNELS * int(np.prod(spatial))].view(CHANNELS, *spatial)
    before = clean.clone()
    params = sample_params(clean.shape, recipe, np.random.default_rng(1))
    corrupted, target = apply_params(clean, params)
    missing = (corrupted == 0).flatten(2).all(2)
    assert torch.equal(missing[0], missing[1])
    assert missing[0].sum() == max(1, round(0.5 * spatial[0]))
    assert torch.equal(corrupted[~missing], clean[~missing])
    assert torch.equal(target[missing], clean[missing])
    assert torch.isnan(target[~missing]).all()
    assert torch.equal(clean, before)


def test_the_example_is_off_by_default_and_changes_no_recipe(longer):
    for seed in range(20):
        ours, theirs = (make_pair(patch(), one, np.random.default_rng(seed)) for one in (longer(), RECIPES["paper"]))
        assert torch.equal(ours[0], theirs[0])


def test_the_example_has_flags_and_a_column_of_its_own(longer):
    recipe = longer().updated({"missing_planes": {"probability": 0.5}}, "here")
    assert list(recipe.alone())[-1] == "missing_planes"
    parser = argparse.ArgumentParser()
    kind = type(recipe.missing_planes)
    assert issubclass(kind, Corruption)
    add_flags(parser, kind, prefix="missing_planes_")
    flags = {flag for flag in parser._option_string_actions if "planes" in flag}
    assert flags == set(re.findall(r"`(--missing[\w-]+)`", CORRUPTIONS))


def test_the_augmentation_of_the_documents_corrupts_the_image():
    names: dict[str, Any] = {}
    exec(blocks("python")[0], names)
    trainer = names["nnUNetTrainerCorrupted"]
    assert issubclass(trainer, nnUNetTrainer)
    rotation = {"rotation_for_DA": (-0.1, 0.1), "deep_supervision_scales": None, "mirror_axes": (0, 1)}
    arguments = {"patch_size": (12, 12, 12), "do_dummy_2d_data_aug": False} | rotation
    theirs = nnUNetTrainer.get_training_transforms(**arguments).transforms
    *like_theirs, last = trainer.get_training_transforms(**arguments).transforms
    assert [type(one) for one in like_theirs] == [type(one) for one in theirs]
    assert last.apply_probability == 0.2
    image, labels = torch.randn(1, 12, 12, 12), torch.ones(1, 12, 12, 12)
    results = [last.transform(image=image, segmentation=labels) for _ in range(5)]  # one in 200 stays as it is
    assert {result["image"].shape for result in results} == {image.shape}
    assert not all(torch.equal(result["image"], image) for result in results)
    assert all(result["segmentation"] is labels for result in results)
