import copy
import pickle

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

from nnunet_genesis.corruption import (
    RECIPES,
    CorruptionTransform,
    RestorationPairTransform,
    corrupt,
    draw,
    make_pair,
)
from tests.corruption.reference import bits, noise

PAPER = RECIPES["paper"]
IMAGE = noise((2, 20, 22, 9), 3)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", RECIPES["released"].alone())
def test_a_corruption_changes_the_image_only(name):
    segmentation = torch.ones((1, 20, 22, 9), dtype=torch.int16)
    recipe = RECIPES["released"].alone()[name]
    out = CorruptionTransform(recipe, rng())(image=IMAGE, segmentation=segmentation)
    assert bits(out["image"]) == bits(corrupt(IMAGE, draw(IMAGE.shape, recipe, rng())))
    assert bits(out["image"]) != bits(IMAGE)
    assert out["segmentation"] is segmentation


def test_a_pair_is_delivered_as_image_and_target():
    before = bits(IMAGE)
    labels = torch.zeros((1, 20, 22, 9), dtype=torch.int16)
    out = RestorationPairTransform(PAPER, rng(1))(image=IMAGE, segmentation=labels, regression_target=IMAGE)
    corrupted, clean = make_pair(IMAGE, PAPER, rng(1))
    assert bits(IMAGE) == before
    assert bits(out["image"]) == bits(corrupted)
    assert bits(out["segmentation"]) == bits(out["regression_target"]) == bits(clean)
    assert out["segmentation"].dtype == torch.float32
    assert out["segmentation"].data_ptr() != out["regression_target"].data_ptr()


def test_no_key_is_invented_but_the_target():
    assert set(RestorationPairTransform(PAPER, rng())(image=IMAGE)) == {"image", "segmentation"}


@pytest.mark.parametrize("kind", [CorruptionTransform, RestorationPairTransform])
def test_transforms_are_picklable_and_draw_anew_each_time(kind):
    transform = kind(PAPER, rng(2))
    twin, third = pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)
    first = transform(image=IMAGE)
    assert bits(first["image"]) == bits(twin(image=IMAGE)["image"]) == bits(third(image=IMAGE)["image"])
    assert bits(first["image"]) != bits(transform(image=IMAGE)["image"])


def test_they_compose_with_other_transforms():
    chain = ComposeTransforms([RestorationPairTransform(PAPER.alone()["intensity"], rng(4))])
    out = chain(image=IMAGE.half())
    assert out["image"].dtype == out["segmentation"].dtype == torch.float16
    assert bits(out["segmentation"]) == bits(IMAGE.half())
