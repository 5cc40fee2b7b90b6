"""The picture of corruptions before a training: what is drawn, that it repeats, and how it fails."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import seaborn
import torch

from nnunet_genesis.corruption import RECIPES
from nnunet_genesis.pretraining.figures import corruption_sheet
from nnunet_genesis.pretraining.patches import VALIDATION, PatchBatches
from nnunet_genesis.pretraining.preview import examples
from tests.conftest import run_genesis, use_folders, write_dataset

CASES = 4


@pytest.fixture(scope="module")
def plans_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Dataset 501, two channels, preprocessed for 2d and 3d_fullres; the folder of its plans."""
    with pytest.MonkeyPatch.context() as patch:
        base = use_folders(tmp_path_factory.mktemp("preview"), patch)
        write_dataset(base, 501, "Scans", CASES, channels=("T1", "T2"), labeled=False)
        assert run_genesis("plan", "-d", 501, "--template", "tiny") == 0
        assert run_genesis("preprocess", "-d", 501, "-c", "2d", "3d_fullres", "-np", 1) == 0
        yield base / "nnUNet_preprocessed" / "Dataset501_Scans"


@pytest.fixture
def draw(plans_folder: Path, tmp_path: Path) -> Callable[..., np.ndarray]:
    """Run `nnunet_genesis preview` on dataset 501; the picture, (height, width, RGB) in 0..1."""

    def run(*arguments: object, configuration: str = "3d_fullres") -> np.ndarray:
        picture = tmp_path / "sheet.png"
        assert run_genesis("preview", "-d", 501, "-c", configuration, "-o", picture, *arguments) == 0
        assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
        return matplotlib.image.imread(picture)[..., :3]

    return run


def other_plans(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> str:
    """Plans that use the same volumes, with something changed; their name."""
    plans = json.loads((folder / "nnUNetGenesisPlans.json").read_text())
    change(plans)
    (folder / f"{name}.json").write_text(json.dumps(plans))
    return name


def cells(picture: np.ndarray) -> tuple[int, int]:
    """Number of rows and columns of images: lines of pixels that are not all white, many in succession."""

    def long_runs(line: np.ndarray) -> int:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
        return int((edges[1::2] - edges[::2] > 50).sum())

    ink = (picture < 1).any(axis=2)
    return long_runs(ink[:, 60:].any(axis=1)), long_runs(ink[90:].any(axis=0))


def test_a_row_for_each_case_and_a_column_for_each_corruption_and_mixture(draw, capsys):
    assert cells(draw()) == (3, 1 + 4 + 3)
    told = capsys.readouterr().out
    assert "defaults" not in told
    assert len(set(re.findall(r"case\d", told))) == 3
    assert cells(draw("-n", 1, "--recipe", "masking")) == (1, 1 + 1 + 3)


def test_the_style_that_nnunet_leaves_behind_does_not_matter(draw):
    before = draw("-n", 1)
    with matplotlib.rc_context():
        seaborn.set_theme(font_scale=2.5)
        assert np.array_equal(draw("-n", 1), before)


def test_never_more_rows_than_cases(draw):
    assert cells(draw("-n", 50))[0] == CASES


def test_the_seed_of_the_plans_decides_every_pixel(draw, plans_folder):
    seeded = other_plans(plans_folder, "seeded", lambda plans: plans["genesis"]["pretraining"].update(seed=1))
    once = draw("-n", 2)
    assert np.array_equal(once, draw("-n", 2))
    assert not np.array_equal(once, draw("-n", 2, "-p", seeded))


def test_without_a_block_the_defaults_hold_and_a_line_says_so(draw, plans_folder, capsys):
    bare = other_plans(plans_folder, "bare", lambda plans: plans.pop("genesis"))
    assert np.array_equal(draw("-n", 1), draw("-n", 1, "-p", bare))
    assert "The plans bare have no settings for pre-training: the defaults hold." in capsys.readouterr().out


def test_a_labeled_dataset_that_nnunet_preprocessed(ready_once, tmp_path, monkeypatch, capsys):
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(name, str(ready_once / name))
    picture = tmp_path / "sheet.png"
    assert run_genesis("preview", "-d", 4, "-c", "3d_fullres", "-p", "nnUNetPlans", "-o", picture) == 0
    assert cells(matplotlib.image.imread(picture)[..., :3]) == (3, 8)
    assert len(set(re.findall(r"case\d", capsys.readouterr().out))) == 3


def test_the_recipe_of_the_plans_is_drawn(draw, plans_folder):
    block = {"name": "paper", "intensity": {"probability": 0}, "masking": {"probability": 1, "cell_size": 4}}
    mixed = other_plans(plans_folder, "mixed", lambda plans: plans["genesis"]["pretraining"].update(recipe=block))
    assert cells(draw("-n", 1, "-p", mixed)) == (1, 1 + 4 + 3)
    nothing = {"masking": {"probability": 0}} | {
        name: {"probability": 0} for name in ("shuffling", "intensity", "cutout")
    }
    idle = other_plans(plans_folder, "idle", lambda plans: plans["genesis"]["pretraining"].update(recipe=nothing))
    assert cells(draw("-n", 1, "-p", idle)) == (1, 1 + 3)


def masking(name: str, folder: Path, cell_size: Any, strides: Any = ((1, 1, 1), (1, 2, 2), (2, 2, 2))) -> str:
    def change(plans: dict[str, Any]) -> None:
        plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"] = strides
        plans["genesis"]["pretraining"]["recipe"] = {"name": "masking", "masking": {"cell_size": cell_size}}

    return other_plans(folder, name, change)


def test_cells_follow_the_network_of_the_plans(draw, plans_folder):
    tied = draw("-n", 1, "-p", masking("tied", plans_folder, 0))
    assert np.array_equal(tied, draw("-n", 1, "-p", masking("given", plans_folder, [2, 4, 4])))
    assert not np.array_equal(tied, draw("-n", 1, "-p", masking("even", plans_folder, 4)))


def test_the_channel_asked_for_is_drawn(draw):
    first, second = draw("-n", 1, "--channel", "T1"), draw("-n", 1, "--channel", "T2")
    assert np.array_equal(first, draw("-n", 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("size", [(48, 32), (1, 30), (9, 1)])
def test_a_slice_of_any_size(size, draw, plans_folder):
    def resize(plans: dict[str, Any]) -> None:
        plans["configurations"]["2d"]["patch_size"] = size

    assert cells(draw("-n", 2, "-p", other_plans(plans_folder, "slice", resize), configuration="2d")) == (2, 8)


@pytest.mark.parametrize("size", [(1, 16, 16), (64, 64, 64), (7, 9, 4)])
def test_a_thin_patch_and_one_larger_than_the_volume(size, draw, plans_folder):
    def resize(plans: dict[str, Any]) -> None:
        plans["configurations"]["3d_fullres"]["patch_size"] = size

    assert cells(draw("-n", 2, "-p", other_plans(plans_folder, "sized", resize))) == (2, 8)


def test_each_column_shows_what_its_heading_says():
    rng = np.random.default_rng(0)
    volumes = {f"case{i}": rng.normal(size=(2, 24, 26, 30)).astype(np.float32) for i in range(3)}
    dataset = SimpleNamespace(identifiers=sorted(volumes), load_case=lambda case: (volumes[case], None, None, {}))
    batches = PatchBatches(dataset, (24, 24, 24), 1, 1, 0, RECIPES["paper"].without(), 5, VALIDATION, 0.0)
    groups, patches, cases = examples(batches, RECIPES["paper"], 3)
    assert list(groups.values()) == [
        ["original"],
        ["shuffling", "intensity", "outer cutout\n(out-painting)", "inner cutout\n(in-painting)"],
        ["mixture 1", "mixture 2", "mixture 3"],
    ]
    assert sorted(cases) == sorted(volumes)
    for k, (clean, shuffled, bent, outer, inner, *mixtures) in enumerate(patches):
        assert torch.equal(clean, batches.crop(k)[0])
        for channel in range(2):
            before = clean[channel].flatten()
            assert torch.equal(shuffled[channel].flatten().sort().values, before.sort().values)
            steps = bent[channel].flatten()[before.argsort()].diff()
            assert (steps >= 0).all() or (steps <= 0).all()
            for cut in (outer, inner):
                assert 0 < (cut[channel] != clean[channel]).float().mean() <= 0.25
            assert (
                outer[channel, 12, 12, 12] == clean[channel, 12, 12, 12]
            )  # every window that is kept holds the centre
        for one, other in combinations([clean, shuffled, bent, outer, inner, *mixtures], 2):
            assert not torch.equal(one, other)


def test_mixtures_stand_like_their_original():
    volume = np.arange(4 * 5 * 6, dtype=np.float32).reshape(1, 4, 5, 6)
    dataset = SimpleNamespace(identifiers=["case"], load_case=lambda case: (volume, None, None, {}))
    mirroring = replace(RECIPES["paper"].without(), flip_probability=1.0)
    batches = PatchBatches(dataset, (4, 5, 6), 1, 1, 0, mirroring, 0, VALIDATION, 0.0)
    _, [[original, *mixtures]], _ = examples(batches, mirroring, 1)
    assert np.array_equal(original.numpy(), volume)
    assert len(mixtures) == 3
    assert all(torch.equal(mixture, original) for mixture in mixtures)


def test_all_images_of_a_row_share_the_greys_of_its_original(tmp_path):
    ramp = np.linspace(10, 20, 101 * 101).reshape(1, 101, 101)
    greys = {9: 0, 15: 0.5, 21: 1, np.nan: 1}
    ramp = np.concatenate([np.zeros_like(ramp), ramp])
    row = [ramp, *(np.full_like(ramp, value) for value in greys)]
    corruption_sheet([row], {"": list("abcde")}, ["case"], "title", tmp_path / "sheet.png", channel=1)
    picture = matplotlib.image.imread(tmp_path / "sheet.png")[..., 0]
    middle = picture[-picture.shape[0] // 3]
    centres = [int((0.3 + 0.7 + 1.46 * column) * 120) for column in range(1, 5)]
    assert middle[centres] == pytest.approx(list(greys.values()), abs=0.005)


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a failing preview prints."""
    assert run_genesis("preview", "-d", 501, *arguments) == 1
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert told.out == ""
    return told.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-o", "sheet.jpg"], "must be a .png file in a folder that exists, not"),
        (["-o", "missing/sheet.png"], "must be a .png file in a folder that exists, not"),
        (["-o", "folder.png"], "folder.png"),
        (["-o", "sheet.png", "-n", 0], "must be 1 to 50, not 0"),
        (["-o", "sheet.png", "-n", 51], "must be 1 to 50, not 51"),
        (["-o", "sheet.png", "--channel", "CT"], "Dataset501_Scans has no channel CT; it has T1, T2."),
        (["-o", "sheet.png", "-c", "3d_lowres"], "have no configuration 3d_lowres"),
        (["-o", "sheet.png", "-p", "absent"], "absent.json does not exist"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, text, plans_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert text in failure(capsys, "-c", "3d_fullres", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_wrong_setting_is_named(plans_folder, tmp_path, capsys):
    change = {"recipe": {"shuffling": {"window": 5}}}
    wrong = other_plans(plans_folder, "wrong", lambda plans: plans["genesis"]["pretraining"].update(change))
    told = failure(capsys, "-c", "3d_fullres", "-p", wrong, "-o", tmp_path / "sheet.png")
    assert 'Unknown key "window"' in told
    assert 'did you mean "windows"?' in told


def test_cells_that_have_no_edge_are_named(plans_folder, tmp_path, capsys):
    def told(cell_size: Any, strides: Any) -> str:
        plans = masking("odd", plans_folder, cell_size, strides)
        return failure(capsys, "-c", "3d_fullres", "-p", plans, "-o", tmp_path / "sheet.png")

    whole = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    assert '"cell_size" has 2 numbers, but patches have 3 axes' in told([4, 4], whole)

    def unnamed(plans: dict[str, Any]) -> None:
        plans["configurations"]["3d_fullres"]["architecture"] = {
            "network_class_name": "nnunet_genesis.unet3d.UNet3D",
            "arch_kwargs": {"features_per_stage": [4, 8, 8, 8]},
            "_kw_requires_import": [],
        }
        plans["genesis"]["pretraining"]["recipe"] = {"name": "masking", "masking": {"cell_size": 0}}

    plans = other_plans(plans_folder, "unnamed", unnamed)
    line = failure(capsys, "-c", "3d_fullres", "-p", plans, "-o", tmp_path / "sheet.png")
    assert "name no strides of the network of 3d_fullres" in line
    assert line.endswith("Give the edge of masked cells in voxels.\n")


def test_volumes_that_are_missing_lead_to_the_command_that_makes_them(nnunet, make_dataset, genesis, capsys):
    make_dataset(501, "Scans", 2, labeled=False)
    assert genesis("plan", "-d", 501, "--template", "tiny", "-p", "mine") == 0
    capsys.readouterr()
    told = failure(capsys, "-c", "2d", "-p", "mine", "-o", nnunet / "sheet.png")
    assert "There are no preprocessed volumes in" in told
    assert told.endswith("Run: nnunet_genesis preprocess -d 501 -c 2d -p mine\n")
