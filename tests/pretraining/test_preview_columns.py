"""The picture of `nnunet_genesis preview`: each image against the patch and the corruption that it stands for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from nnunet_genesis.corruption import RECIPES, make_pair
from nnunet_genesis.pretraining.patches import VALIDATION, random_window, ranked
from tests.conftest import run_genesis, use_folders, write_dataset

SEED, PATCH = 3, (16, 9, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Dataset 501, two channels, small patches, preprocessed for 3d_fullres; the folder of its plans."""
    with pytest.MonkeyPatch.context() as patch:
        base = use_folders(tmp_path_factory.mktemp("columns"), patch)
        write_dataset(base, 501, "Scans", 3, channels=("T1", "T2"), labeled=False)
        assert run_genesis("plan", "-d", 501, "--template", "tiny", "--seed", SEED, "--minimum-contrast", 0) == 0
        path = base / "nnUNet_preprocessed" / "Dataset501_Scans" / "nnUNetGenesisPlans.json"
        plans = json.loads(path.read_text())
        plans["configurations"]["3d_fullres"]["patch_size"] = PATCH
        path.write_text(json.dumps(plans))
        assert run_genesis("preprocess", "-d", 501, "-c", "3d_fullres", "-np", 1) == 0
        yield path.parent


@pytest.fixture
def drawn(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run `preview`; the axes, one row per patch, and all texts of the figure."""

    def draw(*arguments: object, name: str = "sheet.png") -> tuple[np.ndarray, list[str]]:
        saved, savefig = [], Figure.savefig
        with monkeypatch.context() as patch:
            patch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), savefig(self, *a, **k))[1])
            command = ("preview", "-d", 501, "-c", "3d_fullres", "-o", tmp_path / name)
            assert run_genesis(*command, *arguments) == 0
        texts = [text.get_text() for text in saved[0].texts]
        rows = sum(text.get_rotation() == 90 for text in saved[0].texts)
        return np.array(saved[0].axes).reshape(rows, -1), texts

    return draw


def original(folder: Path, k: int) -> tuple[torch.Tensor, str]:
    """Patch `k` of a validation on all volumes, and its case."""
    case = ranked(["case0", "case1", "case2"], SEED + 1)[k % 3]
    volume = blosc2.open(str(folder / "nnUNetGenesisPlans_3d_fullres" / f"{case}.b2nd"), mode="r")
    rng = np.random.default_rng([SEED, VALIDATION, k, 0])
    return torch.from_numpy(np.array(volume[random_window(volume.shape, PATCH, rng)], np.float32)), case


@pytest.mark.parametrize(
    ("arguments", "channel", "recipe", "rows"),
    [
        ((), 0, "paper", 3),
        (("--channel", "T2", "-n", 2), 1, "paper", 2),
        (("--recipe", "masking", "--channel", "T1", "-n", 1), 0, "masking", 1),
    ],
)
def test_columns_are_the_original_each_corruption_alone_and_mixtures(folder, drawn, arguments, channel, recipe, rows):
    axes, texts = drawn(*arguments)
    chosen = RECIPES[recipe]
    recipes = [*chosen.alone().values(), chosen, chosen, chosen]
    assert axes.shape == (rows, 1 + len(recipes))
    assert f"Patches of Dataset501_Scans, 3d_fullres, {('T1', 'T2')[channel]}" in texts
    for k, across in enumerate(axes):
        clean, case = original(folder, k)
        assert case in texts
        shown = [np.ma.filled(ax.images[0].get_array().astype(float), np.nan) for ax in across]
        middle = clean.shape[1] // 2
        np.testing.assert_allclose(shown[0], clean[channel, middle], rtol=1e-5)
        for column, one in enumerate(recipes):
            corrupted, _ = make_pair(clean, one, np.random.default_rng([SEED, k, column]))
            np.testing.assert_allclose(shown[1 + column], corrupted[channel, middle], rtol=1e-4, atol=1e-5)
    assert [text for text in texts if text.startswith("case")] == [original(folder, k)[1] for k in range(rows)]


def test_an_ending_in_capitals_is_one_too(drawn, tmp_path):
    drawn("-n", 1, name="SHEET.PNG")
    assert (tmp_path / "SHEET.PNG").is_file()


def test_fifty_rows_may_be_asked_for(drawn):
    assert len(drawn("-n", 50)[0]) == 3
