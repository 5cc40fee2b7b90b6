"""Structural similarity: against scikit-image, and where a patch is not known, thin, constant or of half precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from nnunet_genesis.pretraining.loss import RestorationLoss, restoration_errors, validation_loss
from nnunet_genesis.pretraining.ssim import RADIUS, similarity

NAN = float("nan")
SHAPES = [(2, 1, 24, 26), (1, 2, 14, 15, 16)]


def patches(*shape: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth original patches, and restored ones that are similar."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=shape).cumsum(-1) * scale / 4 - 1
    return tuple(torch.from_numpy(p.astype(np.float32)) for p in (target + rng.normal(0, scale / 3, shape), target))  # type: ignore[return-value]


def reference(restored: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    """SSIM around each voxel of patches in which everything is known, by scikit-image."""
    maps = []
    for x, y in zip(restored.double().flatten(0, 1).numpy(), target.double().flatten(0, 1).numpy(), strict=True):
        low, span = y.min(), max(1.0, np.ptp(y))
        maps.append(structural_similarity((x - low) / span, (y - low) / span, data_range=1.0, gaussian_weights=True,
                                          use_sample_covariance=False, full=True)[1])  # fmt: skip
    return np.array(maps).reshape(target.shape)


def inner(*shape: int) -> tuple[slice, ...]:
    return (slice(None), slice(None), *(slice(RADIUS, edge - RADIUS) for edge in shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [3.0, 0.02])
def test_away_from_the_border_it_is_that_of_scikit_image(shape, scale):
    restored, target = patches(*shape, scale=scale)
    where = inner(*shape[2:])
    ours, theirs = similarity(restored, target).numpy()[where], reference(restored, target)[where]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.ptp(theirs) > 1e-3


def test_windows_that_are_cut_off_are_weighted_to_1():
    """Against the definition, voxel by voxel, in a patch thinner than a window with unknown voxels."""
    restored, target = patches(1, 1, 4, 9)
    target[0, 0, 1, 2:4] = NAN
    known = target[0, 0].isfinite().numpy()
    y = target[0, 0].numpy().astype(float)
    low, span = y[known].min(), max(1.0, np.ptp(y[known]))
    x, y = (restored[0, 0].numpy().astype(float) - low) / span, (y - low) / span
    places = np.argwhere(known)
    for row, column in places:
        weights = np.exp(-((places - [row, column]) ** 2).sum(1) / (2 * 1.5**2))
        weights[(abs(places - [row, column]) > RADIUS).any(1)] = 0
        weights /= weights.sum()
        ux, uy = (weights * x[known]).sum(), (weights * y[known]).sum()
        vx, vy = (weights * (x[known] - ux) ** 2).sum(), (weights * (y[known] - uy) ** 2).sum()
        both = (weights * (x[known] - ux) * (y[known] - uy)).sum()
        expected = (2 * ux * uy + 1e-4) * (2 * both + 9e-4) / ((ux**2 + uy**2 + 1e-4) * (vx + vy + 9e-4))
        assert similarity(restored, target)[0, 0, row, column].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_not_known_is_as_if_the_patch_ended_there(shape):
    """Beside voxels without a target, similarities are those of a smaller patch; the mean is over known voxels."""
    restored, target = patches(*shape)
    expected = similarity(restored[..., 4:], target[..., 4:])
    target[..., :4], restored[..., 0] = NAN, NAN
    ours = similarity(restored, target)
    torch.testing.assert_close(ours[..., 4:], expected, atol=1e-6, rtol=0)
    assert (ours[..., :4] == 0).all()
    assert RestorationLoss("ssim")(restored, target).item() == pytest.approx(1 - expected.mean().item(), abs=1e-6)


def test_gradients_are_finite_and_stay_with_known_voxels():
    restored, target = patches(1, 1, 12, 3, 9)
    target[:, :, 5:, :, 4:] = NAN
    restored.requires_grad_()
    RestorationLoss("ssim")(restored, target).backward()
    assert restored.grad is not None
    assert restored.grad.isfinite().all()
    assert ((restored.grad != 0) == target.isfinite()).all()


@pytest.mark.parametrize("known", ["none", "one voxel", "constant"])
def test_patches_without_structure_have_a_finite_loss(known):
    target = torch.full((1, 1, 6, 7, 8), 2.0 if known == "constant" else NAN)
    if known == "one voxel":
        target[0, 0, 2, 2, 2] = 5.0
    restored = patches(*target.shape)[0].requires_grad_()
    loss = RestorationLoss("ssim")(restored, target)
    loss.backward()
    assert restored.grad is not None
    assert restored.grad.isfinite().all()
    assert (loss.item() == 0) == (known == "none")
    assert RestorationLoss("ssim")(target, target).item() == pytest.approx(0, abs=1e-6)


def test_half_precision_costs_the_input_only():
    restored, target = patches(1, 1, 16, 16, 16)
    exact = RestorationLoss("ssim")(restored.bfloat16().float(), target).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert RestorationLoss("ssim")(restored.bfloat16(), target).item() == exact


def test_a_perfect_restoration_has_no_loss_and_a_wrong_one_has():
    restored, target = patches(2, 2, 12, 12)
    losses = [RestorationLoss("ssim")(guess, target).item() for guess in (target, restored, -target)]
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert 0.01 < losses[1] < losses[2]


def test_the_validation_loss_is_the_loss_of_the_patches():
    restored, target = patches(2, 2, 12, 13)
    target[:, :, :3] = NAN
    (first, second) = restoration_errors(restored, target, {"copy_mse": restored})
    for kind in ("mse", "l1", "ssim"):
        mean = (validation_loss(kind, first) + validation_loss(kind, second)) / 2
        assert mean == pytest.approx(RestorationLoss(kind)(restored, target).item(), rel=1e-5)


def test_steps_along_the_gradient_restore():
    _, target = patches(1, 1, 10, 10, 10)
    guess = torch.zeros_like(target, requires_grad=True)
    optimizer, before = torch.optim.Adam([guess], 0.1), RestorationLoss("ssim")(guess, target).item()
    for _ in range(40):
        optimizer.zero_grad()
        loss = RestorationLoss("ssim")(guess, target)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.4 * before
