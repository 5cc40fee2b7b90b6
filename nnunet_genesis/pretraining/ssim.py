"""Structural similarity of restored and original patches where only part of a patch is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

SIGMA, RADIUS = 1.5, 5
"""Gaussian window of Wang et al. (IEEE TIP 2004), in voxels: 11 along each axis."""

C1, C2 = 0.01**2, 0.03**2
"""Their constants, for intensities that span 1."""


def similarity(restored: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (SSIM, Wang et al. 2004) around each voxel with a finite target.

    Windows are 3D for 3D patches, and one channel each. A window leaves out what is beyond the patch and voxels without
    a finite target, and weights the others so that they sum to 1: where it is whole this is the SSIM of scikit-image,
    and patches thinner than a window need no exception. Both patches are scaled as to bring the target's known
    voxels to 0..1, the range for which SSIM is defined; z-scored intensities, whose mean is 0, have none of their own.

    Args:
        restored: (B, C, *patch), two or three spatial axes.
        target: Alike, NaN where nothing is to be restored.

    Returns:
        float32 (B, C, *patch), -1..1; 0 where the target is not finite. A channel whose known voxels span less than 1
        is not stretched, only moved: noise would count as structure.
    """
    with torch.autocast(target.device.type, enabled=False):  # variances need float32
        known = torch.isfinite(target)
        x, y = _scaled(restored.float(), target.float(), known)
        fields = torch.stack([known.float(), x, y, x * x, y * y, x * y])
        weight, *moments = _windowed(fields.flatten(0, 2)).view(fields.shape)
        weight = torch.where(known, weight, 1.0)
        ux, uy, xx, yy, xy = (moment / weight for moment in moments)
        # variances are differences, which rounding may make negative
        vx, vy, vxy = (xx - ux * ux).clamp(min=0), (yy - uy * uy).clamp(min=0), xy - ux * uy
        luminance = (2 * ux * uy + C1) / (ux * ux + uy * uy + C1)
        return torch.where(known, luminance * (2 * vxy + C2) / (vx + vy + C2), 0.0)


def _scaled(restored: Tensor, target: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Both moved and scaled by what brings each channel's known target to 0..1; 0 where it is not known."""
    axes = tuple(range(2, target.ndim))
    low = torch.where(known, target, math.inf).amin(axes, keepdim=True)
    high = torch.where(known, target, -math.inf).amax(axes, keepdim=True)
    span = (high - low).clamp(min=1)
    x, y = (torch.where(known, (patch - low) / span, 0.0) for patch in (restored, target))
    return x, y


def _windowed(patches: Tensor) -> Tensor:
    """(N, *spatial) → Gaussian sums around each voxel, 0 beyond the patch."""
    distances = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float32, device=patches.device)
    kernel = torch.exp(-0.5 * (distances / SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    patches = patches.unsqueeze(1)
    convolve = functional.conv3d if patches.ndim == 5 else functional.conv2d
    for axis in range(2, patches.ndim):
        shape, padding = [1] * patches.ndim, [0] * (patches.ndim - 2)
        shape[axis], padding[axis - 2] = len(kernel), RADIUS
        patches = convolve(patches, kernel.view(shape), padding=padding)
    return patches.squeeze(1)
