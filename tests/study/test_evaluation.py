"""Scores of a segmentation, against distances computed voxel by voxel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from nnunet_genesis.study.evaluation import evaluate, label_values, surface_scores

LABELS = {"labels": {"background": 0, "whole": [1, 2], "core": 2}}


def surface(mask: np.ndarray, spacing: list[float]) -> np.ndarray:
    padded = np.pad(mask, 1)
    return np.argwhere(padded & ~binary_erosion(padded)) * spacing


def reference(predicted: np.ndarray, truth: np.ndarray, spacing: list[float], tolerance: float) -> tuple[float, float]:
    distances = cdist(surface(predicted, spacing), surface(truth, spacing))
    there, back = distances.min(1), distances.min(0)
    near = (there <= tolerance).sum() + (back <= tolerance).sum()
    return near / (len(there) + len(back)), max(np.percentile(there, 95), np.percentile(back, 95))


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return np.linalg.norm(grid - np.array(centre), axis=-1) < radius


@pytest.mark.parametrize("spacing", [[1.0, 1.0, 1.0], [3.0, 0.7, 0.9]])
@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_surface_scores_in_3d(spacing, shift):
    truth, predicted = ball((14, 20, 22), (6, 9, 10), 5), ball((14, 20, 22), (7, 9 + shift, 10), 4.4)
    expected = reference(predicted, truth, spacing, 1.0)
    assert surface_scores(predicted, truth, spacing, 1.0) == pytest.approx(expected, abs=1e-5)


def test_surface_scores_of_a_2d_image():
    truth, predicted = ball((20, 22), (9, 10), 5), ball((20, 22), (11, 10), 5)
    expected = reference(predicted, truth, [0.5, 2.0], 1.0)
    assert surface_scores(predicted[None], truth[None], [999.0, 0.5, 2.0], 1.0) == pytest.approx(expected, abs=1e-5)


def test_where_a_label_is_missing():
    nothing, something = np.zeros((4, 5, 6), bool), ball((4, 5, 6), (2, 2, 2), 2)
    for pair in ((nothing, something), (something, nothing)):
        nsd, distance = surface_scores(*pair, [1.0, 1.0, 1.0], 1.0)
        assert nsd == 0
        assert math.isnan(distance)
    assert all(map(math.isnan, surface_scores(nothing, nothing, [1.0, 1.0, 1.0], 1.0)))


def test_a_case_with_regions_and_an_ignored_label(tmp_path):
    truth = ball((10, 12, 12), (5, 6, 6), 4).astype(np.uint8)
    truth[5:8, 5:8, 5:8] = 2
    predicted = truth.copy()
    truth[:, :3] = 3  # not to be judged
    predicted[:, :3] = 1
    predicted[predicted == 2] = 1
    for name, array in (("truth", truth), ("predicted", predicted)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((0.8, 0.9, 2.5))
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    description = {"labels": {**LABELS["labels"], "ignore": 3}}
    assert label_values(description) == {"whole": (1, 2), "core": 2}
    scores = evaluate(tmp_path / "predicted.nii.gz", tmp_path / "truth.nii.gz", SimpleITKIO(), description, 1.0)
    assert scores == {
        "whole": {"Dice": 1.0, "NSD": 1.0, "HD95": 0.0},
        "core": {"Dice": 0.0, "NSD": 0.0, "HD95": None},
    }
