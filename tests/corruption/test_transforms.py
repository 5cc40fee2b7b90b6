import copy
import dataclasses
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

from nnunet_genesis.corruption import RECIPES, CorruptionTransform, RestorationPairTransform
from tests.corruption.reference import bits, noise, ordered

PAPER = RECIPES["paper"]
IMAGE = noise((2, 20, 22, 9), 3)
LABELS = torch.ones((1, 20, 22, 9), dtype=torch.int16)
KINDS = [CorruptionTransform, RestorationPairTransform]


@pytest.fixture(autouse=True)
def seeded():
    """As nnU-Net does in its processes; the state from before comes back."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    yield
    np.random.set_state(before)  # noqa: NPY002


@pytest.mark.parametrize("name", RECIPES["released"].alone())
def test_a_corruption_changes_the_image_only(name):
    before = bits(IMAGE)
    out = CorruptionTransform(RECIPES["released"].alone()[name])(image=IMAGE, segmentation=LABELS)
    assert bits(IMAGE) == before != bits(out["image"])
    assert out["segmentation"] is LABELS
    assert set(out) == {"image", "segmentation"}


def test_an_augmentation_mirrors_nothing_that_its_labels_would_not_follow():
    flipping = dataclasses.replace(PAPER.without(), flip_probability=1.0)
    assert bits(CorruptionTransform(flipping)(image=IMAGE)["image"]) == bits(IMAGE)
    assert bits(RestorationPairTransform(flipping)(image=IMAGE)["image"]) == bits(IMAGE.flip(1, 2, 3))


def test_a_pair_is_delivered_as_image_and_target():
    before = bits(IMAGE)
    recipe = dataclasses.replace(PAPER.alone()["shuffling"], flip_probability=1.0)
    out = RestorationPairTransform(recipe)(image=IMAGE, segmentation=LABELS, regression_target=IMAGE)
    assert bits(IMAGE) == before
    assert bits(out["segmentation"]) == bits(out["regression_target"]) == bits(IMAGE.flip(1, 2, 3))
    assert bits(ordered(out["image"])) == bits(ordered(IMAGE))
    assert bits(out["image"]) != bits(out["segmentation"])
    assert out["segmentation"].data_ptr() != out["regression_target"].data_ptr()


def test_no_key_is_invented_but_the_target():
    assert set(RestorationPairTransform(PAPER)(image=IMAGE)) == {"image", "segmentation"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_of_the_process_decides_and_every_call_samples_anew(kind):
    transform = kind(PAPER)
    first, second = (bits(transform(image=IMAGE)["image"]) for _ in range(2))
    for twin in (pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)):
        np.random.seed(0)  # noqa: NPY002
        assert bits(twin(image=IMAGE)["image"]) == first != second


def test_forked_processes_that_are_seeded_apart_corrupt_apart():
    transform, fork, images = CorruptionTransform(PAPER), multiprocessing.get_context("fork"), []
    for _ in range(2):
        with fork.Pool(1, np.random.seed) as process:  # seeded by the system, as by batchgenerators
            images.append(process.apply(transform, kwds={"image": IMAGE})["image"].numpy())
    assert not np.array_equal(*images)


def test_they_compose_with_other_transforms():
    chain = ComposeTransforms([RestorationPairTransform(PAPER.alone()["intensity"])])
    out = chain(image=IMAGE.half())
    assert out["image"].dtype == out["segmentation"].dtype == torch.float16
    assert bits(out["segmentation"]) == bits(IMAGE.half())
