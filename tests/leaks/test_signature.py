"""The signature is that of the image, whatever it is saved as; and not that of another image."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from nnunet_genesis.leaks.case_record import CaseRecord
from nnunet_genesis.leaks.search import IDENTICAL, NAMESAKE, RESAMPLED, SIMILAR, search
from nnunet_genesis.leaks.signature import (
    DIGEST,
    GRID,
    LENGTH,
    ORIENTATIONS,
    SHIFTS,
    digest,
    oriented,
    pooled,
    shifted,
    signature,
    unit,
)
from tests.leaks.images import resampled, scan


def record(**scans: np.ndarray) -> CaseRecord:
    digests = np.array([np.frombuffer(digest(one), np.uint8) for one in scans.values()]).reshape(-1, DIGEST)
    signatures = np.array([signature(pooled(one)) for one in scans.values()], np.int8).reshape(-1, LENGTH)
    return CaseRecord(tuple(scans), digests, signatures)


PRETRAINED = record(**{f"scan{seed}": scan(seed) for seed in range(12)})


def kinds(**scans: np.ndarray) -> dict[str, tuple[str, str]]:
    return {hit.case: (hit.kind, hit.other) for hit in search(PRETRAINED, ((n, [v]) for n, v in scans.items()))}


def test_the_same_voxels_under_another_name():
    assert kinds(other=scan(3).astype(np.float64)) == {"other": (IDENTICAL, "scan3")}
    (hit,) = search(PRETRAINED, [("a\x1b[1m", [scan(3)])])
    assert "\x1b" not in str(hit)


def test_other_images_are_no_hits_but_by_their_name():
    assert kinds(**{f"new{seed}": scan(seed) for seed in range(100, 120)}) == {}
    assert kinds(scan5=scan(99)) == {"scan5": (NAMESAKE, "scan5")}


def test_the_same_image_is_the_stronger_hit_than_the_same_name():
    assert kinds(scan5=scan(6) * 2) == {"scan5": (RESAMPLED, "scan6")}
    assert kinds(scan5=scan(6)) == {"scan5": (IDENTICAL, "scan6")}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 11), factor=st.floats(0.5, 1.7), orientation=st.sampled_from(ORIENTATIONS))
def test_other_spacings_and_orientations(seed, factor, orientation):
    array = sitk.GetArrayFromImage(resampled(scan(seed), factor))
    order, steps = orientation
    turned = array.transpose(order)[tuple(slice(None, None, step) for step in steps)]
    assert kinds(other=turned) == {"other": (RESAMPLED, f"scan{seed}")}


@pytest.mark.parametrize("saved", [
    lambda image: image.astype(np.float16),
    lambda image: np.round(255 * (image - image.min()) / np.ptp(image)).astype(np.uint8),
    lambda image: 1.5 * image - 900,
    lambda image: np.clip(image, *np.percentile(image, (0.5, 99.5))),
    lambda image: image + np.random.default_rng(0).normal(0, 0.1 * image.std(), image.shape),
    lambda image: image + 200 * np.linspace(0, 1, image.shape[1])[:, None],
])  # fmt: skip
def test_other_types_units_and_slow_changes(saved):
    assert kinds(other=saved(scan(4))) == {"other": (RESAMPLED, "scan4")}


def test_where_the_threshold_lies():
    """Another scan shines through the more, the less it is the same image: correlations of 0.89 and 0.81."""
    assert kinds(mixed=scan(3) + 0.5 * scan(100)) == {"mixed": (RESAMPLED, "scan3")}
    assert kinds(mixed=scan(3) + 0.7 * scan(100)) == {}


def test_any_channel_makes_a_hit():
    (hit,) = search(PRETRAINED, [("other", [scan(50), scan(1) + 1])])
    assert (hit.case, hit.kind, hit.other) == ("other", RESAMPLED, "scan1")
    assert hit.similarity > 0.99


def test_channels_without_variation_are_not_the_same_image():
    empty = record(empty=np.zeros((8, 9, 10)), scan=scan(0))
    assert search(empty, [("other", [np.zeros((8, 9, 10)), scan(1)])]) == []
    assert search(empty, [("other", [np.full((5, 6, 7), 0.1)])]) == []
    assert search(record(), [("other", [scan(0)])]) == []


@given(st.tuples(*[st.integers(1, 40)] * 3), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_any_size_has_a_signature(shape, seed):
    volume = np.random.default_rng(seed).normal(size=shape)
    points = pooled(volume)
    vector, variants = signature(points), shifted(points)
    assert vector.shape == (LENGTH,)
    assert variants.shape == (SHIFTS**3, LENGTH)
    assert np.isfinite(variants).all()
    norms = np.linalg.norm(variants, axis=1)
    assert ((abs(norms - 1) < 1e-4) | (norms == 0)).all()
    if volume.size > 1:
        assert variants[SHIFTS**3 // 2] @ unit(vector[None])[0] > 0.999


def test_pooling_is_a_weighted_mean_around_each_point():
    """Against a direct sum, and a plain loop over the cells of a plane."""
    volume = np.random.default_rng(0).normal(size=(20, 33, 16))
    points = pooled(volume)
    place = (7, 41, 78)
    weights = []
    for number, length in zip(place, volume.shape, strict=True):
        at = (number // SHIFTS + 0.5 + (number % SHIFTS - 2) / 4) / GRID * length
        width = max(0.5 * length / GRID, 0.5)
        along = np.exp(-0.5 * ((np.arange(length) + 0.5 - at) / width) ** 2)
        weights.append(along / along.sum())
    assert points[place] == pytest.approx(np.einsum("abc,a,b,c", volume, *weights), abs=1e-5)
    np.testing.assert_allclose(pooled(np.full((5, 6, 7), 3.0)), 3.0, rtol=1e-5)


def test_contrast_is_taken_against_the_surroundings():
    points = pooled(scan(0))
    cells = points[2::5, 2::5, 2::5]
    detail = cells - gaussian_filter(cells, 1)
    contrast = detail / (np.sqrt(gaussian_filter(detail**2, 1)) + 0.1 * detail.std())
    assert np.corrcoef(contrast.ravel(), signature(points))[0, 1] > 0.999


def test_orientations_are_those_of_the_volume():
    vector = unit(signature(pooled(scan(2)))[None])
    assert len(set(ORIENTATIONS)) == 48
    for number, (order, steps) in enumerate(ORIENTATIONS):
        turned = scan(2).transpose(order)[tuple(slice(None, None, step) for step in steps)]
        np.testing.assert_array_less(0.99, oriented(vector, number)[0] @ unit(signature(pooled(turned))[None])[0])
    np.testing.assert_array_equal(oriented(vector, 0), vector)


def test_digests_tell_shapes_and_voxels():
    volume = scan(0)
    others = [volume.reshape(-1), volume + 1, -volume, volume[:-1]]
    assert len({digest(one) for one in (volume, *others)}) == 5
    assert digest(np.array([0.0])) == digest(np.array([-0.0]))
    assert len(digest(volume)) == DIGEST


def test_a_large_record_is_searched_in_parts(monkeypatch):
    monkeypatch.setattr("nnunet_genesis.leaks.search.ROWS", 5)
    monkeypatch.setattr("nnunet_genesis.leaks.search.QUERIES", 2)
    found = kinds(**{f"case{seed}": scan(seed) * 3 for seed in (0, 4, 5, 11)}, new=scan(70))
    assert found == {f"case{seed}": (RESAMPLED, f"scan{seed}") for seed in (0, 4, 5, 11)}


def test_joined_records_hold_each_row_once():
    first, second = record(a=scan(0), b=scan(1)), record(b=scan(1), c=scan(2), a=scan(3))
    joined = first.joined(second)
    assert joined.names == ("a", "b", "c", "a")
    assert {bytes(row) for row in joined.digests} == {digest(scan(seed)) for seed in range(4)}
    assert joined.signatures.shape == (4, LENGTH)


def test_no_two_of_many_are_alike():
    vectors = unit(record(**{f"s{seed}": scan(seed) for seed in range(40)}).signatures)
    for first, second in itertools.combinations(vectors, 2):
        assert first @ second < SIMILAR - 0.2
