"""What README and docs/corruptions.md tell is what the code does: flags, values, blocks, the example."""

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

from nnunet_genesis.cli import build_parser
from nnunet_genesis.cli_settings import add_flags
from nnunet_genesis.corruption import RECIPES, Recipe, corrupt, corrupt_batch, draw, to_restore
from nnunet_genesis.corruption.corruption import Corruption
from nnunet_genesis.settings import PretrainingSettings

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
CORRUPTIONS = (REPOSITORY / "docs" / "corruptions.md").read_text()
CHANNELS, SHAPE = 2, (10, 6, 8)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", CORRUPTIONS, re.MULTILINE | re.DOTALL)


def flags_of(command: str) -> set[str]:
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {flag for flag in commands.choices[command]._option_string_actions if flag.startswith("--")} - {"--help"}


def flags_in_table(heading: str) -> set[str]:
    table = README[README.index(f"\n| {heading} |") :].split("\n\n")[0]
    return {
        flag for row in table.splitlines() for flag in re.findall(r"`(--[\w-]+)`", row.split("|")[1] if row else "")
    }


def test_the_tables_of_the_readme_hold_every_setting_and_no_other():
    elsewhere = {"--like", "--template", "--like-plans"}
    assert flags_in_table("`plan`") | flags_in_table("recipe") == flags_of("plan") - elsewhere
    assert flags_in_table("`transfer`") == flags_of("transfer") - {"--from-scratch", "--to"}


def test_every_command_of_the_readme_exists():
    known = set(build_parser()._actions[-1].choices)
    assert set(re.findall(r"^nnunet_genesis (\w+)", README, re.MULTILINE)) <= known
    assert "preview" in known


def number(text: str) -> Any:
    """`3/7` → 0.428…, `[1/6, 1/3]` → a tuple."""
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
        assert getattr(holder, setting) == pytest.approx(value), setting
    kind: Any = type(getattr(RECIPES["paper"], name)) if name else Recipe
    assert {setting for _, setting, _ in told} == {one.name for one in fields(kind) if "text" in one.metadata}


def test_the_documented_block_is_read_as_documented():
    (block,) = blocks("json")
    settings = PretrainingSettings.of_plans(json.loads(block))
    released = RECIPES["released"]
    assert settings.corrupt_on == "workers"
    assert settings.recipe == replace(
        released,
        flip_probability=0.0,
        shuffling=replace(released.shuffling, windows=5000),
        cutout=replace(released.cutout, outer_extent=(0.6, 0.9), limit=0.4),
        masking=replace(released.masking, probability=0.1),
    )


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The documented example, imported from a file of its own."""
    file = tmp_path_factory.mktemp("example") / "missing_planes.py"
    file.write_text(blocks("python")[0])
    spec = importlib.util.spec_from_file_location("missing_planes", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["missing_planes"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["missing_planes"]


@pytest.fixture(scope="module")
def longer(example: ModuleType) -> type[Recipe]:
    """`Recipe` with the documented line at its end."""
    program = f"@dataclass(frozen=True)\nclass Longer(Recipe):\n{blocks('python')[1]}"
    assert len(ast.parse(program).body[0].body) == 1
    names = {"dataclass": dataclass, "field": field, "Recipe": Recipe, "__name__": "missing_planes", **vars(example)}
    exec(program, names)
    return names["Longer"]


def patch(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(1, 1, (CHANNELS, *SHAPE)).astype(np.float32))


@pytest.mark.parametrize("way", ["worker", "batch"])
@pytest.mark.parametrize("spatial", [SHAPE, SHAPE[1:], (1, 1, 1)])
def test_the_example_corrupts_and_scores_what_it_says(way, spatial, longer):
    recipe = longer().without().updated({"missing_planes": {"probability": 1, "share": 0.5}}, "here")
    clean = patch().flatten()[: CHANNELS * int(np.prod(spatial))].view(CHANNELS, *spatial)
    before = clean.clone()
    drawn = draw(clean.shape, recipe, np.random.default_rng(1))
    corrupted = corrupt(clean, drawn) if way == "worker" else corrupt_batch(clean[None], [drawn])[0]
    missing = (corrupted == 0).flatten(2).all(2)
    assert torch.equal(missing[0], missing[1])
    assert missing[0].sum() == max(1, round(0.5 * spatial[0]))
    assert torch.equal(corrupted[~missing], clean[~missing])
    target = to_restore(clean, drawn)
    assert torch.equal(target[missing], clean[missing])
    assert torch.isnan(target[~missing]).all()
    assert torch.equal(clean, before)


def test_the_example_is_off_by_default_and_changes_no_recipe(longer):
    for seed in range(20):
        ours, theirs = (draw((2, *SHAPE), one, np.random.default_rng(seed)) for one in (longer(), RECIPES["paper"]))
        assert torch.equal(corrupt(patch(), ours), corrupt(patch(), theirs))


def test_the_example_has_flags_and_a_column_of_its_own(longer):
    recipe = longer().updated({"missing_planes": {"probability": 0.5}}, "here")
    assert list(recipe.alone())[-1] == "missing_planes"
    parser = argparse.ArgumentParser()
    kind = type(recipe.missing_planes)
    assert issubclass(kind, Corruption)
    add_flags(parser, kind, prefix="missing_planes_")
    flags = {flag for flag in parser._option_string_actions if "planes" in flag}
    assert flags == set(re.findall(r"`(--missing[\w-]+)`", CORRUPTIONS))


def test_local_links_lead_somewhere():
    for file in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
            assert "://" in link or (file.parent / link).exists(), f"{file.name}: {link}"
