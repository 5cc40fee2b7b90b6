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


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", RECIPES["released"].alone())
def test_a_corruption_changes_the_image_only(name):
    before = bits(IMAGE)
    out = CorruptionTransform(RECIPES["released"].alone()[name], rng())(image=IMAGE, segmentation=LABELS)
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
    out = RestorationPairTransform(recipe, rng())(image=IMAGE, segmentation=LABELS, regression_target=IMAGE)
    assert bits(IMAGE) == before
    assert bits(out["segmentation"]) == bits(out["regression_target"]) == bits(IMAGE.flip(1, 2, 3))
    assert bits(ordered(out["image"])) == bits(ordered(IMAGE))
    assert bits(out["image"]) != bits(out["segmentation"])
    assert out["segmentation"].data_ptr() != out["regression_target"].data_ptr()


def test_no_key_is_invented_but_the_target():
    assert set(RestorationPairTransform(PAPER)(image=IMAGE)) == {"image", "segmentation"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_given_generator_decides_and_every_call_samples_anew(kind):
    transform = kind(PAPER, rng())
    twins = pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)
    first, second = (bits(transform(image=IMAGE)["image"]) for _ in range(2))
    assert [bits(twin(image=IMAGE)["image"]) for twin in twins] == [first, first]
    assert first != second


@pytest.mark.parametrize("kind", KINDS)
def test_without_one_every_process_has_its_own(kind):
    transform, fork = kind(PAPER.alone()["intensity"]), multiprocessing.get_context("fork")
    images = [transform(image=IMAGE)["image"].numpy()]  # makes this process' generator, which the others then inherit
    for _ in range(2):
        with fork.Pool(1) as process:
            images.append(process.apply(transform, kwds={"image": IMAGE})["image"].numpy())
    images.append(transform(image=IMAGE)["image"].numpy())
    assert len({image.tobytes() for image in images}) == 4


def test_they_compose_with_other_transforms():
    chain = ComposeTransforms([RestorationPairTransform(PAPER.alone()["intensity"])])
    out = chain(image=IMAGE.half())
    assert out["image"].dtype == out["segmentation"].dtype == torch.float16
    assert bits(out["segmentation"]) == bits(IMAGE.half())
