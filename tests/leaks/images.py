"""Images with detail at many scales, and the same ones as other software would save them."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter


def scan(seed: int, shape: tuple[int, ...] = (34, 40, 38)) -> np.ndarray:
    """(z, y, x) float32 intensities of an organ that looks the same in every case, with detail of its own."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    organ = np.exp(-3 * (grid**2).sum(0))
    detail = gaussian_filter(rng.normal(size=shape), 2)
    return (400 + 300 * organ + 60 * detail / detail.std()).astype(np.float32)


def resampled(array: np.ndarray, factor: float) -> sitk.Image:
    """With voxels `factor` times as large, the centre of the first one kept, by linear interpolation."""
    image = sitk.GetImageFromArray(array)
    size = [round(length / factor) for length in image.GetSize()]
    grid = (image.GetOrigin(), [factor] * 3, image.GetDirection())
    return sitk.Resample(image, size, sitk.Transform(), sitk.sitkLinear, *grid, float(array.min()))
