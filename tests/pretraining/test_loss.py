"""Loss and errors: against numpy, and blind to padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_genesis.pretraining.loss import RestorationLoss, mean_errors, restoration_errors

NAN = float("nan")


def random_patches(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize(("kind", "reference"), [("mse", np.square), ("l1", np.abs)])
def test_loss_is_the_mean_over_known_voxels(kind, reference):
    restored, target = random_patches(0, 2, 3, 4, 5, 6), random_patches(1, 2, 3, 4, 5, 6)
    target[:, :, 0] = NAN
    expected = reference(restored[:, :, 1:].numpy() - target[:, :, 1:].numpy()).mean()
    assert RestorationLoss(kind)(restored, target).item() == pytest.approx(expected, rel=1e-5)


def test_padding_gets_no_gradient_and_never_nan():
    restored, target = random_patches(0, 1, 1, 4, 4).requires_grad_(), random_patches(1, 1, 1, 4, 4)
    target[..., :2] = NAN
    RestorationLoss("mse")(restored, target).backward()
    assert torch.all(restored.grad[..., :2] == 0)
    assert torch.all(restored.grad[..., 2:] != 0)
    assert RestorationLoss("mse")(restored, torch.full_like(target, NAN)).item() == 0


def test_errors_against_numpy():
    restored, target, corrupted = (random_patches(seed, 1, 2, 6, 7) for seed in range(3))
    target[0, 0, :2], corrupted[0, :, :2] = NAN, 100
    (error,) = restoration_errors(restored, target, {"copy_mse": corrupted})
    out, clean, bad = (patch[0, :, 2:].numpy().astype(float) for patch in (restored, target, corrupted))
    mse = ((out - clean) ** 2).mean()
    assert error["mse"] == pytest.approx(mse, rel=1e-5)
    assert error["mae"] == pytest.approx(np.abs(out - clean).mean(), rel=1e-5)
    assert error["psnr"] == pytest.approx(10 * np.log10((clean.max() - clean.min()) ** 2 / mse), rel=1e-4)
    assert error["copy_mse"] == pytest.approx(((bad - clean) ** 2).mean(), rel=1e-5)
    per_channel = clean.reshape(2, -1)
    assert error["mean_mse"] == pytest.approx(per_channel.var(axis=1).mean(), rel=1e-4)


def test_constant_patches_have_no_psnr_and_do_not_spoil_the_mean():
    target = torch.cat([torch.ones(1, 1, 4, 4), random_patches(0, 1, 1, 4, 4)])
    errors = restoration_errors(target + 0.5, target, {"copy_mse": target})
    assert np.isnan(errors[0]["psnr"])
    assert mean_errors(errors)["psnr"] == errors[1]["psnr"]
    assert mean_errors(errors)["copy_mse"] == 0


@pytest.mark.parametrize("broken", [float("inf"), NAN])
def test_a_broken_output_shows_and_stops_nothing(broken):
    target = random_patches(0, 2, 1, 4, 4)
    restored = target.clone()
    restored[0, 0, 0, 0] = broken
    summary = mean_errors(restoration_errors(restored, target, {"copy_mse": target}))
    assert not np.isfinite(summary["mse"])
    assert not np.isfinite(summary["mae"])


def test_a_patch_of_padding_alone_is_left_out():
    assert restoration_errors(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), NAN), {}) == []
