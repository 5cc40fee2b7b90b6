"""Values: what a network restores arrives in the intensities and on the grid of the image."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from scipy.ndimage import gaussian_filter

from nnunet_genesis.errors import CheckpointError, DatasetError, GenesisError
from nnunet_genesis.restoring.restorer import Restorer

ANISOTROPIC = (2.5, 0.8, 0.7)
CT = {
    "normalization_schemes": ["CTNormalization"],
    "foreground_intensity_properties_per_channel": {
        "0": {"mean": 40.0, "std": 50.0, "percentile_00_5": -60.0, "percentile_99_5": 140.0}
    },
}
BOTH = pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])


def scan(shape=(9, 22, 26), channels: int = 1, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(channels, *shape))
    return (400 + 900 * gaussian_filter(noise, (0, 1, 2, 2))).astype(np.float32)


@BOTH
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), ANISOTROPIC])
def test_a_network_that_copies_restores_the_image_itself(make_checkpoint, configuration, spacing):
    image = scan()
    given = image.copy()
    restored = Restorer(make_checkpoint(configuration)).restore(image, spacing)
    assert restored.difference.max() < 1e-5
    np.testing.assert_allclose(restored.volume, given, rtol=1e-5)
    np.testing.assert_array_equal(image, given)


@BOTH
def test_what_a_network_adds_is_added_in_the_units_of_each_channel(make_checkpoint, configuration):
    image = scan(channels=2)
    image[1] *= 3
    image[:, :2] = image[:, :, :3] = 0  # cropped
    checkpoint = make_checkpoint(configuration, ("T1", "T2"), shift=(0.5, -1.0), transpose_forward=[1, 0, 2],
                                 transpose_backward=[1, 0, 2])  # fmt: skip
    restored = Restorer(checkpoint).restore(image, ANISOTROPIC)
    inside = image[:, 2:, 3:]
    box = np.zeros(image.shape[1:])
    box[2:, 3:] = 0.75
    np.testing.assert_allclose(restored.difference, box, atol=1e-4)
    assert (restored.difference[restored.box] > 0.7).all()
    assert restored.difference[restored.box].shape == inside.shape[1:]
    for channel, given, shift in zip(restored.volume, inside, (0.5, -1.0), strict=True):
        np.testing.assert_allclose(channel[2:, 3:], given + shift * given.std(), rtol=1e-4)
        assert not channel[:2].any()


def test_clipped_intensities_of_ct_are_kept(make_checkpoint):
    image = scan() - 300
    assert image.min() < -60
    assert image.max() > 140
    restored = Restorer(make_checkpoint(shift=(0.5,), **CT)).restore(image, (1, 1, 1))
    np.testing.assert_allclose(restored.volume, image + 0.5 * 50, atol=0.1)


@pytest.mark.parametrize("scheme", ["NoNormalization", "RescaleTo01Normalization", "ZScoreNormalization"])
@pytest.mark.parametrize("masked", [False, True])
def test_every_normalisation_is_undone(make_checkpoint, scheme, masked):
    image = np.abs(scan()) + 1
    image[0, :3, 3:9, :9] = 0  # air at the border of the head, which a mask leaves out
    unit = {
        "NoNormalization": 1.0,
        "RescaleTo01Normalization": np.ptp(image),
        "ZScoreNormalization": image[image > 0].std() if masked else image.std(),
    }
    checkpoint = make_checkpoint(shift=(0.5,), normalization_schemes=[scheme], use_mask_for_norm=[masked])
    restored = Restorer(checkpoint).restore(image, (1, 1, 1))
    np.testing.assert_allclose(restored.volume - image, 0.5 * unit[scheme], rtol=1e-3)


@BOTH
def test_images_are_prepared_as_nnunet_prepares_them(make_checkpoint, configuration, tmp_path):
    class Recording(Restorer):
        def _changed(self, image: torch.Tensor) -> torch.Tensor:
            self.seen = image.clone()
            return super()._changed(image)

    image = sitk.GetImageFromArray(scan()[0])
    image.SetSpacing(ANISOTROPIC[::-1])
    sitk.WriteImage(image, str(tmp_path / "a_0000.nii.gz"))
    restorer = Recording(make_checkpoint(configuration, transpose_forward=[1, 0, 2], transpose_backward=[1, 0, 2]))
    restorer.restore(sitk.GetArrayFromImage(image)[None], image.GetSpacing()[::-1])
    preprocessor = restorer.configuration.preprocessor_class(verbose=False)
    expected, _, _ = preprocessor.run_case(
        [str(tmp_path / "a_0000.nii.gz")], None, restorer.plans, restorer.configuration, {}
    )
    assert restorer.seen.shape == expected.shape
    assert expected.shape[1:] != (22, 9, 26)
    np.testing.assert_allclose(restorer.seen.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("configuration", "edges"), [("2d", [32, 32]), ("3d_fullres", [32, 32, 32])])
def test_an_image_as_large_as_a_patch_is_restored_as_the_network_does(make_checkpoint, configuration, edges):
    restorer = Restorer(make_checkpoint(configuration, shift=None, patch_size=edges))
    image = scan((32, 32, 32) if configuration != "2d" else (5, 32, 32))
    restored = restorer.restore(image, (1, 1, 1))
    normalised = torch.from_numpy((image - image.mean()) / image.std())
    with torch.inference_mode():
        patches = normalised[None] if configuration != "2d" else normalised.movedim(1, 0)
        expected = restorer.network(patches)
    expected = expected[0] if configuration != "2d" else expected.movedim(0, 1)
    np.testing.assert_allclose(restored.difference, (expected - normalised).abs()[0], atol=1e-4)
    np.testing.assert_allclose(restored.volume, expected * image.std() + image.mean(), atol=1e-4 * image.std())


@BOTH
def test_patches_are_joined_as_nnunet_joins_them(make_checkpoint, configuration):
    restorer = Restorer(make_checkpoint(configuration, shift=None))
    image = torch.from_numpy(scan((9, 40, 35)) / 500)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    described = {"labels": {"background": 0}, "channel_names": {"0": "T1"}, "file_ending": ".nii.gz"}
    predictor.manual_initialization(restorer.network, restorer.plans, restorer.configuration, None, described, "", None)
    expected = predictor.predict_sliding_window_return_logits(image).float()
    ours = restorer._window(image) + image
    # nnU-Net's float16 is coarse where patches have small weights
    assert (ours - expected).abs().median() < 1e-3
    assert (ours - expected).abs()[..., 6:-6, 6:-6].max() < 0.02


@BOTH
@pytest.mark.parametrize("passes", [2, 5])
def test_what_is_hidden_is_not_seen(make_checkpoint, configuration, passes):
    """A network that copies restores the value that stands for hidden voxels, everywhere."""
    image = scan()
    restored = Restorer(make_checkpoint(configuration), hide=passes).restore(image, (1, 1, 1))
    np.testing.assert_allclose(restored.volume, image.mean(), rtol=1e-4)
    np.testing.assert_allclose(restored.difference, np.abs(image[0] - image.mean()) / image.std(), atol=1e-4)


def test_every_pass_shows_another_part_and_counts_where_it_hides(make_checkpoint):
    class Recording(Restorer):
        def _window(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(image)
            return torch.full_like(image, float(len(seen))) - image

    seen: list[torch.Tensor] = []
    image = scan((20, 20, 40)) + 1000
    recording = Recording(make_checkpoint(patch_size=[16, 16, 16]), hide=3)
    assert recording.cell == (8, 8, 8)
    change = recording._changed(torch.from_numpy(image))
    shown = torch.stack([one[0] != 0 for one in seen])
    assert (shown.sum(0) == 1).all()
    assert shown[:, :8, :8, :8].flatten(1).all(1).sum() == 1  # cells of half a patch
    for number, (one, part) in enumerate(zip(seen, shown, strict=True), 1):
        np.testing.assert_array_equal(one[0][part], image[0][part])
        others = sum({1, 2, 3} - {number}) / 2
        np.testing.assert_allclose((change + image)[0][part], others, rtol=1e-3)


@BOTH
@pytest.mark.parametrize("cell_size", [0, 3, "per axis"])
def test_cells_are_those_of_the_recipe(make_checkpoint, configuration, cell_size):
    """With 0, the total stride of the network: 4 along each axis for the template."""
    axes = 2 if configuration == "2d" else 3
    given = list(range(2, 2 + axes)) if cell_size == "per axis" else cell_size
    masking = {"probability": 1.0, "cell_size": given}
    block = {"pretraining": {"recipe": {"masking": masking}}}
    restorer = Restorer(make_checkpoint(configuration, genesis=block), hide=2)
    assert restorer.cell == (tuple(given) if cell_size == "per axis" else (given or 4,) * axes)
    restorer.restore(scan(), (1, 1, 1))


def test_an_image_of_one_cell_cannot_be_hidden(make_checkpoint):
    with pytest.raises(DatasetError, match="too small to hide"):
        Restorer(make_checkpoint(), hide=4).restore(scan((8, 8, 8)), (1, 1, 1))


def test_large_intensities_do_not_overflow(make_checkpoint):
    image = 1e5 * scan()
    restored = Restorer(make_checkpoint(shift=(7e6,), normalization_schemes=["NoNormalization"])).restore(
        image, (1, 1, 1)
    )
    np.testing.assert_allclose(restored.difference, 7e6, rtol=1e-3)


@pytest.mark.parametrize(("change", "message"), [
    ({"trainer_name": "nnUNetTrainer"}, "is a checkpoint of nnUNetTrainer, which restores no images. Name one of nnUNetTrainerGenesisPretrain"),
    ({"trainer_name": "nnUNetTrainerGenesisFinetune"}, "of nnUNetTrainerGenesisFinetune, which restores no"),
    ({"trainer_name": None}, "of an unknown trainer"),
    ({"trainer_name": "a\x1b[31m\nb"}, r"of a\?\[31m b, which"),
    ({"init_args": {}}, "is incomplete"),
    ({"init_args": {"plans": {}, "configuration": "2d", "dataset_json": {}}}, "cannot be used. .*has no configurations"),
    ({"network_weights": {}}, "does not hold the network that its plans describe"),
    ({"network_weights": 3}, 'has no "network_weights"'),
])  # fmt: skip
def test_other_checkpoints_are_refused_in_one_line(make_checkpoint, change, message):
    path = make_checkpoint()
    torch.save(torch.load(path, weights_only=True) | change, path)
    with pytest.raises(CheckpointError, match=message) as error:
        Restorer(path)
    assert str(path) in str(error.value)


def test_weights_that_are_not_finite_are_refused(make_checkpoint):
    path = make_checkpoint()
    content = torch.load(path, weights_only=True)
    next(iter(content["network_weights"].values())).view(-1)[0] = torch.nan
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="NaN or infinite values in encoder.stages.0"):
        Restorer(path)


@pytest.mark.parametrize("passes", [-1, 1, 65])
def test_numbers_of_passes_have_bounds(make_checkpoint, passes):
    with pytest.raises(GenesisError, match=f"not in {passes}"):
        Restorer(make_checkpoint(), hide=passes)


def test_images_that_cannot_be_prepared_are_refused(make_checkpoint):
    restorer = Restorer(make_checkpoint())
    with pytest.raises(DatasetError, match="would become"):
        restorer.restore(scan(), (100.0, 100.0, 100.0))
    image = np.zeros((1, 9, 9, 9), dtype=np.float32)
    image[:, 3:6, 3:6, 3:6] = 5
    with pytest.raises(DatasetError, match="is constant once it is cropped"):
        restorer.restore(image, (1, 1, 1))


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_missing_gpu_is_named(make_checkpoint, device):
    if getattr(torch, device).is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DatasetError, match="finds no GPU. .* --device cpu"):
        Restorer(make_checkpoint(), device=device)
