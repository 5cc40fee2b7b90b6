"""What is looked up in plans."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nnunet_genesis.errors import DatasetError
from nnunet_genesis.nnunet_dataset import encoder_stride
from nnunet_genesis.resources import plans_folder


def plans(**arguments: Any) -> dict[str, Any]:
    """A template whose network has other arguments."""
    content: dict[str, Any] = json.loads((plans_folder() / "tiny.json").read_text())
    content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] = arguments
    return content


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"strides": [[1, 1, 1], [1, 2, 2], [3, 2, 1]]}, (3, 4, 2)),
        ({"strides": [1, 2, 2]}, (4, 4, 4)),
        ({"patch_embed_size": [8, 4, 2]}, (8, 4, 2)),
        ({"strides": [[2, 1, 1]], "patch_embed_size": [8, 8, 8]}, (2, 1, 1)),
    ],
)
def test_strides_of_all_stages_make_one(arguments, expected):
    assert encoder_stride(plans(**arguments), "3d_fullres") == expected


@pytest.mark.parametrize("arguments", [{}, {"strides": []}, {"strides": 2}, {"strides": [[2, 2]]}, {"strides": ["2"]},
                                       {"strides": [[2, 2, 2], None]}, {"patch_embed_size": [8, 8]}])  # fmt: skip
def test_plans_without_strides_are_refused(arguments):
    with pytest.raises(DatasetError, match="nnUNetPlans name no strides of the network of 3d_fullres"):
        encoder_stride(plans(**arguments), "3d_fullres")
