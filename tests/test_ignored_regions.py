"""Masks in ignoreTr: marked like the image, left out of loss and errors, and never half applied."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_genesis.corruption import RECIPES, apply_params, sample_params
from nnunet_genesis.errors import DatasetError
from nnunet_genesis.ignored_regions import digest_in
from nnunet_genesis.preprocessing import preprocess
from nnunet_genesis.pretraining.patches import TRAINING, PatchBatches
from tests.conftest import run_genesis, shrink_plans, write_dataset

DATASET, PLANS = "Dataset501_Scans", "nnUNetGenesisPlans"
SHAPE = (20, 24, 22)


def write_mask(folder: Path, array: np.ndarray, name: str = "case0.nii.gz", **geometry: Any) -> None:
    image = sitk.GetImageFromArray(array.astype(np.float32))
    for key, value in geometry.items():
        getattr(image, f"Set{key}")(value)
    (folder / "ignoreTr").mkdir(exist_ok=True)
    sitk.WriteImage(image, str(folder / "ignoreTr" / name))


def half(axis: int = 2) -> np.ndarray:
    """The mask of the lower half along an axis of the image, in values of all sorts."""
    mask = np.zeros(SHAPE)
    mask[tuple(slice(SHAPE[n] // 2) if n == axis else slice(None) for n in range(3))] = [3, -1, 0.5, *[9] * 8][: SHAPE[2] // 2] if axis == 2 else 1  # fmt: skip
    return mask


@pytest.fixture
def raw(nnunet: Path) -> Path:
    """Dataset 501 of three cases, planned; its raw folder."""
    folder = write_dataset(nnunet, 501, "Scans", 3, labeled=False)
    assert run_genesis("plan", "-d", 501, "--template", "tiny", "--epochs", 1, "--iterations", 2, "--minimum-contrast", 0,
                       "--validation-iterations", 1) == 0  # fmt: skip
    shrink_plans(plans_file(nnunet))
    return folder


def plans_file(base: Path) -> Path:
    return base / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json"


def volumes(base: Path, configuration: str = "3d_fullres") -> Path:
    return base / "nnUNet_preprocessed" / DATASET / f"{PLANS}_{configuration}"


def run(configuration: str = "3d_fullres") -> tuple[int, int, dict[str, str]]:
    report = preprocess(DATASET, PLANS, configuration, progress=False)
    return report.written, report.already_there, report.failed


def contents(folder: Path) -> dict[str, bytes]:
    """Voxels by the name of the file: blosc2 does not always write the same bytes."""
    return {path.name: blosc2.open(str(path), mode="r")[:].tobytes() for path in folder.glob("*.b2nd")}


def marks(folder: Path, case: str = "case0") -> np.ndarray:
    segmentation = blosc2.open(str(folder / f"{case}_seg.b2nd"), mode="r")
    assert digest_in(segmentation)
    return segmentation[:][0] == 1


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_marks_go_through_axes_crop_and_spacing_like_the_image(raw, nnunet, configuration):
    """The mask of bright voxels is where the preprocessed image is bright; the image itself does not change."""
    file = raw / "imagesTr" / "case0_0000.nii.gz"
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    image[:4] = image[:, :, -5:] = 0  # cropped
    image[8:14, 3:14, 6:12] = 2000
    geometry = {"Spacing": (1.0, 1.5, 2.0), "Origin": (-4.0, 7.0, 11.0), "Direction": (-1, 0, 0, 0, 1, 0, 0, 0, -1)}
    written = sitk.GetImageFromArray(image)
    for key, value in geometry.items():
        getattr(written, f"Set{key}")(value)
    sitk.WriteImage(written, str(file))
    plans = json.loads(plans_file(nnunet).read_text()) | {"transpose_forward": [1, 2, 0]}
    plans_file(nnunet).write_text(json.dumps(plans))
    assert run(configuration)[0] == 3
    folder = volumes(nnunet, configuration)
    before = contents(folder)
    write_mask(raw, image == 2000, **geometry)
    assert run(configuration) == (1, 2, {})
    assert {name for name, content in contents(folder).items() if content != before[name]} == {"case0_seg.b2nd"}
    volume = blosc2.open(str(folder / "case0.b2nd"), mode="r")[:][0]
    bright = volume > (volume.max() + np.median(volume)) / 2
    marked = marks(folder)
    assert 100 < marked.sum() < 0.5 * marked.size
    assert (marked & bright).sum() > 0.9 * max(marked.sum(), bright.sum())


def test_a_case_is_done_again_when_its_mask_has_changed_and_only_then(raw, nnunet):
    folder = volumes(nnunet)
    assert run() == (3, 0, {})
    plain = contents(folder)
    assert digest_in(blosc2.open(str(folder / "case0_seg.b2nd"), mode="r")) == ""
    (raw / "ignoreTr").mkdir()
    assert run() == (0, 3, {})
    write_mask(raw, half())
    assert run() == (1, 2, {})
    assert run() == (0, 3, {})
    first = marks(folder)
    write_mask(raw, half(0))
    assert run() == (1, 2, {})
    assert not np.array_equal(marks(folder), first)
    (raw / "ignoreTr" / "case0.nii.gz").unlink()
    assert run() == (1, 2, {})
    assert contents(folder) == plain
    (folder / "case1_seg.b2nd").write_text("damaged")
    assert run() == (1, 2, {})
    assert contents(folder) == plain


@pytest.mark.parametrize(
    ("array", "geometry", "reason"),
    [
        (half()[1:], {}, "its mask in ignoreTr has another size than the image"),
        (half().transpose(1, 2, 0), {}, "its mask in ignoreTr has another size than the image"),
        (half(), {"Spacing": (1, 1, 1.1)}, "its mask in ignoreTr has another spacing than the image"),
        (half(), {"Origin": (0, 0, 1)}, "its mask in ignoreTr has another origin than the image"),
        (half(), {"Direction": (-1, 0, 0, 0, -1, 0, 0, 0, 1)}, "its mask in ignoreTr has another direction than"),
        (np.ones(SHAPE), {}, "its mask in ignoreTr covers all of the image; remove the case"),
        (np.where(half(), np.nan, 1), {}, "its mask in ignoreTr holds voxels that are NaN"),
        (half(), {"Spacing": (1000, 1000, 1000)}, "its mask in ignoreTr would become"),
    ],
)
def test_a_case_whose_mask_does_not_fit_is_left_out_with_the_reason(raw, nnunet, array, geometry, reason):
    assert run() == (3, 0, {})
    write_mask(raw, array, **geometry)
    written, there, failed = run()
    assert (written, there, list(failed)) == (0, 2, ["case0"])
    assert reason in failed["case0"]
    assert not list(volumes(nnunet).glob("case0*"))  # not without its mask either


def test_a_file_that_is_no_mask_of_a_case_stops_everything(raw, nnunet):
    write_mask(raw, half(), "case7.nii.gz")
    with pytest.raises(DatasetError, match=r"ignoreTr holds case7.nii.gz, no mask of a case. Name it CASE.nii.gz"):
        run()
    assert not volumes(nnunet).exists()
    (raw / "ignoreTr" / "case7.nii.gz").rename(raw / "ignoreTr" / ".hidden")
    assert run() == (3, 0, {})


def batches(base: Path, configuration: str = "3d_fullres", **changes: Any) -> PatchBatches:
    patch = (24, 24, 16) if configuration == "3d_fullres" else (28, 16)
    options = {"batch_size": 12, "global_batch_size": 12, "first": 0, "recipe": RECIPES["released"], "seed": 0,
               "stream": TRAINING, "minimum_contrast": 0.0} | changes  # fmt: skip
    return PatchBatches(nnUNetDatasetBlosc2(str(volumes(base, configuration))), patch, **options)


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_ignored_voxels_have_no_target_and_all_else_is_as_without_a_mask(raw, nnunet, configuration):
    assert run(configuration)[0] == 3
    before = batches(nnunet, configuration)[0]
    write_mask(raw, half())
    write_mask(raw, half(1), "case2.nii.gz")
    assert run(configuration)[0] == 2
    sampler = batches(nnunet, configuration)
    after = sampler[0]
    assert set(before["keys"]) == {"case0", "case1", "case2"}
    assert torch.equal(after["data"], before["data"])
    differ = torch.isnan(after["target"]) & ~torch.isnan(before["target"])
    assert torch.equal(torch.nan_to_num(after["target"])[~differ], torch.nan_to_num(before["target"])[~differ])
    for k, case in enumerate(after["keys"]):
        _, params, _, ignored = sampler.crop(k)
        assert differ[k].any() == (case != "case1") == (ignored is not None)
        if ignored is not None:
            assert differ[k].sum() == ignored.sum()
            mirrored = ignored.flip(params.flips)
            left = [(want - have) // 2 for have, want in zip(mirrored.shape, differ.shape[2:], strict=True)]
            inner = differ[k, 0][tuple(slice(a, a + n) for a, n in zip(left, mirrored.shape, strict=True))]
            assert torch.equal(inner, mirrored)


def test_masking_and_ignored_voxels_add_up():
    patch, ignored = torch.randn(2, 9, 10, 11), torch.rand(9, 10, 11) < 0.3
    recipe = RECIPES["masking"].updated({"flip_probability": 1, "masking": {"cell_size": 3}}, "here")
    params = sample_params(patch.shape, recipe, np.random.default_rng(0))
    without = apply_params(patch, params)
    corrupted, target = apply_params(patch, params, ignored)
    assert torch.equal(corrupted, without[0])
    assert torch.equal(torch.isnan(target), torch.isnan(without[1]) | ignored.flip((0, 1, 2)))


def test_crops_are_informative_by_what_is_not_ignored(raw, nnunet):
    """A crop whose visible part is flat is passed over, as is one that is wholly ignored."""
    mask = np.ones(SHAPE)
    mask[10:14, 10:14, 10:14] = 0
    for case in ("case0", "case1", "case2"):
        write_mask(raw, mask, f"{case}.nii.gz")
    assert run()[0] == 3

    def hidden(minimum: float) -> float:
        sampler = batches(nnunet, minimum_contrast=minimum)
        sampler.patch_size = (8, 8, 8)
        return float(np.mean([sampler.crop(k)[3].all() for k in range(60)]))

    assert hidden(0.0) > 0.2
    assert hidden(0.1) < hidden(0.0) / 4


def test_pretraining_and_its_pictures_know_nothing_of_ignored_voxels(raw, nnunet, stock, monkeypatch):
    """Whatever the network restores there, loss and errors stay; pictures show white."""
    write_mask(raw, half())
    write_mask(raw, half(), "case1.nii.gz")
    write_mask(raw, half(), "case2.nii.gz")
    assert run()[0] == 3
    drawn: list[Any] = []
    monkeypatch.setattr(
        "nnunet_genesis.pretraining.restoration_log.restoration_sheet", lambda rows, *_: drawn.extend(rows)
    )
    stock(
        "nnUNetv2_train", 501, "3d_fullres", "all", "-tr", "nnUNetTrainerGenesisPretrain", "-p", PLANS, "-device", "cpu"
    )
    assert drawn
    assert all(np.isnan(original).any() and np.isfinite(original).any() for original, *_ in drawn)
    assert all(np.isfinite(restored).all() for _, _, restored in drawn)
    (summary,) = (nnunet / "nnUNet_results").rglob("restoration_summary.json")
    assert all(math.isfinite(error) for error in json.loads(summary.read_text())["errors"]["recipe"].values())
    trainer = get_trainer_from_args(
        "501", "3d_fullres", "all", "nnUNetTrainerGenesisPretrain", PLANS, device=torch.device("cpu")
    )
    trainer.initialize()
    batch = trainer._batches(["case0", "case1", "case2"], TRAINING)[0]
    errors = trainer.validation_step(batch)["errors"]
    forward = trainer.network.forward
    hole = torch.isnan(batch["target"])
    assert hole.any()
    monkeypatch.setattr(trainer.network, "forward", lambda data: torch.where(hole, 1e6, forward(data)))
    assert [error["mse"] for error in trainer.validation_step(batch)["errors"]] == [error["mse"] for error in errors]


def test_the_preview_shows_ignored_voxels_white(raw, nnunet, monkeypatch):
    write_mask(raw, half())
    assert run()[0] == 3
    rows: list[Any] = []
    monkeypatch.setattr("nnunet_genesis.pretraining.preview.corruption_sheet", lambda images, *_: rows.extend(images))
    assert run_genesis("preview", "-d", 501, "-c", "3d_fullres", "-o", nnunet / "sheet.png") == 0
    assert sorted(bool(np.isnan(original).any()) for original, *_ in rows) == [False, False, True]
    assert all(np.isfinite(corrupted).all() for _, *others in rows for corrupted in others)


def test_labels_are_no_marks(ready_once, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(name, str(ready_once / name))
    (folder,) = (ready_once / "nnUNet_preprocessed" / "Dataset004_Target").glob("nnUNetPlans_3d_fullres")
    sampler = PatchBatches(nnUNetDatasetBlosc2(str(folder)), (16, 16, 16), 4, 4, 0, RECIPES["paper"], 0, TRAINING, 0.0)
    assert (sampler.volumes.load_case("case0")[1][:] == 1).any()
    assert torch.isfinite(sampler[0]["target"]).all()
