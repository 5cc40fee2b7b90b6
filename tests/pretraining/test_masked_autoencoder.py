"""A masked autoencoder: the library's own encoder where all is visible, blind to what is hidden."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nnunet_genesis import primus
from nnunet_genesis.pretraining.cells import (
    from_cells,
    in_intensities,
    into_cells,
    normalised,
    visible_cells,
    voxels_of,
)
from nnunet_genesis.pretraining.infilling import guesses, infilled
from nnunet_genesis.pretraining.masked_autoencoder import MaskedAutoencoder, encode_visible, set_drop_path

PATCH, CELL, CELLS = (16, 24, 16), (8, 8, 8), 12
KINDS = [primus.Primus, primus.PrimusV2, primus.PrimusV3]


def small(kind: type = primus.Primus, **changes) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"embed_dim": 48, "eva_depth": 2, "eva_numheads": 2, "patch_embed_size": CELL, "input_shape": PATCH}
    return kind(input_channels=2, num_classes=2, **sizes, **changes).eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 2, *PATCH, generator=torch.Generator().manual_seed(1))


def drawn(*counts: int, seed: int = 2) -> Tensor:
    """For each count a row of cells of which so many are visible."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(CELLS, generator=generator) < count for count in counts])


def hide(x: Tensor, visible: Tensor) -> Tensor:
    return x.masked_fill(~voxels_of(visible, CELL, PATCH), torch.nan)


@pytest.mark.parametrize("options", [{}, {"num_register_tokens": 3}, {"use_rot_pos_emb": False},
                                     {"init_values": 0.1, "scale_attn_inner": True}])  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_with_all_cells_visible_the_tokens_are_those_of_the_library(kind, options):
    network, x = small(kind, **options), images()
    seen = []
    network.up_projection.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        network(x)
        ours = encode_visible(network, x, torch.ones(2, CELLS, dtype=torch.bool), CELL)
    assert torch.equal(ours, seen[0].flatten(2).transpose(1, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_no_hidden_voxel_influences_a_visible_token(kind):
    network, x, visible = small(kind), images().requires_grad_(), drawn(5, 5)
    encode_visible(network, x, visible, CELL).square().sum().backward()
    shown = voxels_of(visible, CELL, PATCH).expand_as(x)
    assert torch.all(x.grad[~shown] == 0)
    assert torch.all(x.grad[shown] != 0)


def test_visible_tokens_keep_their_place_and_their_neighbours():
    """A token depends on which other cells are visible, and on where it is."""
    network, x = small(), images(1)
    some, others = torch.zeros(2, 1, CELLS, dtype=torch.bool)
    some[0, [1, 4, 7]], others[0, [1, 4, 9]] = True, True
    first, second = encode_visible(network, x, some, CELL), encode_visible(network, x, others, CELL)
    assert first.shape == (1, 3, 48)
    assert not torch.allclose(first[:, 0], second[:, 0], atol=1e-4)
    alike = x[:, :, :8, :8, :8].repeat(1, 1, 2, 3, 2)
    assert not torch.allclose(*encode_visible(network, alike, some, CELL)[0, :2], atol=1e-4)


def test_the_encoder_works_on_visible_tokens_alone():
    network, lengths = small(), []
    network.eva.blocks[0].register_forward_pre_hook(lambda module, given: lengths.append(given[0].shape[:2]))
    model = MaskedAutoencoder(network, PATCH, CELL, 1)
    model(hide(images(4), drawn(3, 5, 3, 1)))
    assert sorted(map(tuple, lengths)) == [(1, 1), (1, 5), (2, 3)]


def test_samples_are_restored_alike_whatever_their_batch_hides():
    model, x, visible = MaskedAutoencoder(small(), PATCH, CELL, 2), images(3), drawn(3, 9, 3)
    together = model(hide(x, visible))
    for n in range(3):
        torch.testing.assert_close(model(hide(x, visible)[n : n + 1])[0], together[n], rtol=1e-4, atol=1e-5)
    assert together.shape == x.shape
    assert together.isfinite().all()


def test_a_cell_with_one_hidden_voxel_is_hidden():
    model, x = MaskedAutoencoder(small(), PATCH, CELL, 1), images(1)
    x[0, 1, 3, 11, 9] = torch.nan
    assert visible_cells(x, CELL).logical_not().nonzero().tolist() == [[0, 3]]
    other = x.clone()
    other[:, :, :8, 8:16, 8:] = torch.where(x[:, :, :8, 8:16, 8:].isnan(), torch.nan, 7.0)
    assert torch.equal(model(x), model(other))


def test_every_parameter_is_trained_the_mask_token_too():
    model = MaskedAutoencoder(small(primus.PrimusV2), PATCH, CELL, 2)
    model(hide(images(), drawn(3, 5))).square().sum().backward()
    assert not [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert model.network.mask_token.requires_grad


def test_the_weights_hold_those_of_the_primus_under_one_prefix():
    stock = small().state_dict()
    ours = MaskedAutoencoder(small(), PATCH, CELL, 1).state_dict()
    inner = {name.removeprefix("network."): value for name, value in ours.items() if name.startswith("network.")}
    assert inner.keys() == stock.keys()
    assert {name for name in stock if not torch.equal(inner[name], stock[name])} == {"mask_token"}
    assert {name.split(".")[0] for name in ours} == {"network", "decoder_of_tokens"}
    small().load_state_dict(inner)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_drop_path_is_that_of_the_pretraining(rate):
    network = small(drop_path_rate=0.3)
    names = set(network.state_dict())
    set_drop_path(network, rate)
    network.train()
    outputs = [network(images()) for _ in range(3)]
    assert (rate == 0) == all(torch.equal(outputs[0], other) for other in outputs)
    assert set(network.state_dict()) == names
    assert getattr(network.eva.blocks[-1].drop_path1, "drop_prob", 0.0) == rate


def test_cells_are_the_tokens_of_the_library_and_can_be_put_back():
    x = images()
    assert torch.equal(from_cells(into_cells(x, CELL), CELL, PATCH), x)
    corner = into_cells(x, CELL).view(2, 2, 3, 2, -1)[:, 1, 2, 0]
    assert torch.equal(corner, x[:, :, 8:, 16:, :8].flatten(1))


def test_targets_are_normalised_like_a_layer_norm_without_weights():
    x = 3 * images() + 5
    expected = nn.functional.layer_norm(into_cells(x, CELL), (2 * 512,), eps=1e-6)
    torch.testing.assert_close(into_cells(normalised(x, x, CELL), CELL), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(in_intensities(normalised(x, x, CELL), x, CELL), x, rtol=1e-4, atol=1e-4)


def test_voxels_that_are_not_to_be_restored_have_no_part_in_the_statistics():
    x = images()
    known = normalised(x[:, :, :, :8], x[:, :, :, :8], CELL)
    x[:, :, :4, 8:] = torch.nan
    wild = torch.where(x.isnan(), 1e6, x)
    assert torch.equal(normalised(x, x, CELL).isnan(), x.isnan())
    torch.testing.assert_close(normalised(wild, x, CELL)[:, :, :, :8], known)
    half = normalised(wild, x, CELL)[:, :, 4:8, 8:16, :8].flatten(1)
    torch.testing.assert_close(half.mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(half.std(1, correction=0), torch.ones(2), atol=1e-3, rtol=0)


def test_other_values_are_measured_in_the_targets_unit_with_the_mean_given():
    x = images()
    ours = normalised(3 * normalised(x, x, CELL) - 8, x, CELL)
    spread = into_cells(x, CELL).std(2, correction=0)
    torch.testing.assert_close(into_cells(ours, CELL).std(2, correction=0), 3 / spread, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(into_cells(ours, CELL).mean(2), torch.zeros(2, CELLS), atol=1e-4, rtol=0)


def test_infilling_restores_what_is_linear_and_what_is_constant():
    patch, cell = (40, 40, 40), (8, 8, 8)
    axes = torch.meshgrid(*[torch.arange(edge, dtype=torch.float32) for edge in patch], indexing="ij")
    plane = (2 * axes[0] - 3 * axes[1] + axes[2]).expand(1, 2, *patch).clone()
    plane[:, 1] = 7.0
    visible = torch.ones(1, 125, dtype=torch.bool)
    visible[0, [31, 62, 63, 93]] = False  # inside
    inner = slice(4, -4)  # beyond the centres of the outermost cells nothing can be interpolated
    filled = infilled(plane.masked_fill(~voxels_of(visible, cell, patch), torch.nan), visible, cell)
    torch.testing.assert_close(
        filled[:, :, inner, inner, inner], plane[:, :, inner, inner, inner], rtol=1e-4, atol=1e-3
    )
    assert torch.allclose(filled[:, 1], plane[:, 1])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_visible_cells_are_enough_for_the_baselines(count):
    visible = drawn(count)
    x = hide(images(1), visible)
    found = guesses(x, CELL)
    assert all(guess.isfinite().all() and guess.shape == x.shape for guess in found.values())
    means = torch.nanmean(x.flatten(2), 2)
    torch.testing.assert_close(found["visible_mse"][..., 0, 0, 0], means)
    assert torch.equal(found["visible_mse"].amax((2, 3, 4)), found["visible_mse"].amin((2, 3, 4)))
