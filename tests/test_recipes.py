"""Every page of docs/recipes, its commands read from it and run to the end on a miniature of its download."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

from nnunet_genesis.checkpoints.reading import read_pretrained
from nnunet_genesis.resources import plans_folder
from nnunet_genesis.transfer.axes import to_zyx
from tests.challenges.layouts import write_brats21, write_lits, write_msd
from tests.challenges.unlabeled_layouts import write_chestxray, write_luna16
from tests.checkpoints.replicas import LUNA16_POOLS, generic_unet
from tests.checkpoints.test_nnunet_v1 import LUNA16_FEATURES
from tests.conftest import REPOSITORY, run_genesis, run_stock

PAGES = {path.stem: path.read_text() for path in (REPOSITORY / "docs/recipes").glob("*.md") if path.stem != "README"}
WIDTHS = [4, 6, 8]
PUBLISHED = "genesis_nnunet_luna16_006.model"
ADDED = {
    "nnunet_genesis dataset": "-np 1",
    "nnunet_genesis plan": "--epochs 1 --iterations 1 --validation-iterations 1 --plot-every 100",
    "nnunet_genesis preprocess": "-np 1",
    "nnunet_genesis transfer": "--epochs 1 --iterations 1",
    "nnunet_genesis submission": "-np 1",
    "nnUNetv2_plan_and_preprocess": "-npfp 1 -np 1",
    "nnUNetv2_train": "-device cpu",
    "nnUNetv2_predict": "-device cpu --disable_tta -npp 0 -nps 0",
    "python": "--device cpu --train 6 --test 3 --seeds 1 --steps 1 --edge 16",
}
"""What is added to commands so that they take a second; nothing else of a page is changed but `/data`."""
SKIPPED = ("tar", "unzip")
SHAPE = (10, 12, 12)


def commands(page: str) -> list[str]:
    """Lines of the page's shell blocks, in order."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def download_luna16(data: Path) -> None:
    write_luna16(data / "LUNA16")


def download_liver(data: Path) -> None:
    download_luna16(data)
    write_msd(data / "MSD", "Task03_Liver", SHAPE, cases=5)


def download_lung(data: Path) -> None:
    write_msd(data / "MSD", "Task06_Lung", SHAPE, cases=5)
    weights = generic_unet([*WIDTHS, 8, 8, 8], LUNA16_POOLS)
    torch.save({"epoch": 6, "state_dict": weights, "optimizer_state_dict": {}}, data / PUBLISHED)


def download_hippocampus(data: Path) -> None:
    write_msd(data / "MSD", "Task04_Hippocampus", SHAPE, cases=5)


def download_lits(data: Path) -> None:
    download_luna16(data)
    write_lits(data, (*range(5), 28), shape=SHAPE)


def download_brats(data: Path) -> None:
    write_brats21(data, [f"BraTS2021_{number:05d}" for number in range(20, 25)], shape=SHAPE)


def download_xrays(data: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (16, 16)).astype("u1") for _ in range(9)]
    write_chestxray(data / "CXR8", images, ["Nodule", "No Finding", "Effusion"] * 3, tests=3)


DOWNLOADS: dict[str, Callable[[Path], None]] = {
    "genesis_luna16": download_luna16,
    "msd_liver": download_liver,
    "msd_lung": download_lung,
    "msd_hippocampus": download_hippocampus,
    "lits": download_lits,
    "brats": download_brats,
    "chest_xray": download_xrays,
}
ARCHIVES = {"msd_liver": "liver.zip", "msd_lung": "lung.zip", "msd_hippocampus": "hippocampus.zip", "lits": "lits.zip",
            "brats": "brats.zip"}  # fmt: skip


def cut_networks(folder: Path) -> None:
    """Three stages and patches of 8 voxels in all plans that were planned or come from a template."""
    for path in [*folder.glob("*/nnUNetPlans.json"), *folder.glob("*/nnUNetGenesisPlans.json")]:
        plans = json.loads(path.read_text())
        for configuration in plans["configurations"].values():
            axes = len(configuration["patch_size"])
            kwargs = configuration["architecture"]["arch_kwargs"]
            kwargs |= {"n_stages": 3, "features_per_stage": WIDTHS, "kernel_sizes": [[3] * axes] * 3,
                       "strides": [[1] * axes, [2] * axes, [2] * axes], "n_conv_per_stage": [2] * 3,
                       "n_conv_per_stage_decoder": [2] * 2}  # fmt: skip
            configuration |= {"patch_size": [8] * axes, "batch_size": 2}
        path.write_text(json.dumps(plans))


def run(line: str, base: Path, patch: pytest.MonkeyPatch) -> None:
    """One command of a page; it must end as the page says."""
    words = shlex.split(os.path.expandvars(line.replace("/data", str(base / "data"))), comments=True)
    program = " ".join(words[:2]) if words[0] == "nnunet_genesis" else words[0]
    if program in SKIPPED:
        return
    words += ADDED.get(program, "").split()
    if words[0] == "nnunet_genesis":
        assert run_genesis(*words[1:]) == (2 if "# exit code 2" in line else 0), line
    elif words[0] == "python":
        patch.setattr("sys.argv", words[1:])
        runpy.run_path(str(REPOSITORY / words[1]), run_name="__main__")
    else:
        run_stock(patch, *words)
    if "plan_and_preprocess" in program or "--template" in words:
        cut_networks(base / "nnUNet_preprocessed")


def test_the_template_is_the_published_network_and_its_intensities(tmp_path):
    weights = generic_unet([*WIDTHS, 8, 8, 8], LUNA16_POOLS)
    torch.save({"epoch": 6, "state_dict": weights, "optimizer_state_dict": {}}, tmp_path / PUBLISHED)
    published = to_zyx(read_pretrained(tmp_path / PUBLISHED)).architecture
    plans = json.loads((plans_folder() / "genesis_luna16.json").read_text())
    ours = plans["configurations"]["3d_fullres"]["architecture"]
    assert ours["network_class_name"] == published["network_class_name"]
    assert ours["arch_kwargs"].pop("features_per_stage") == LUNA16_FEATURES
    differing = {key for key, value in ours["arch_kwargs"].items() if value != published["arch_kwargs"][key]}
    assert not differing
    statistics = plans["foreground_intensity_properties_per_channel"]["0"]
    volume = CTNormalization(intensityproperties=statistics).run(np.float32([-2000, -775.8457, 40, 3000]))
    np.testing.assert_allclose(volume, (np.array([-1000, -775.8457, 40, 1000]) + 775.8457) / 251.9326, rtol=1e-5)


def test_every_page_has_a_download():
    assert set(PAGES) == set(DOWNLOADS)
    index = (REPOSITORY / "docs/recipes/README.md").read_text()
    assert all(f"({name}.md)" in index for name in PAGES)


@pytest.mark.parametrize("name", sorted(DOWNLOADS))
def test_all_commands_of_the_page_run_from_the_download_to_the_end(name, nnunet, monkeypatch, capsys):
    monkeypatch.chdir(nnunet)
    (nnunet / "data").mkdir()
    DOWNLOADS[name](nnunet / "data")
    for line in commands(PAGES[name]):
        run(line, nnunet, monkeypatch)
    shown = capsys.readouterr().out
    if name in ARCHIVES:
        archive = f"{ARCHIVES[name]}: "
        assert shown.count(archive) == 2  # written, and checked
        assert shown.count("all as the challenge wants them") == 2
        assert "100.0% of the encoder" in shown
    assert ("mean AUC" in shown) == (name == "chest_xray")
