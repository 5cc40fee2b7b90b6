"""Networks read off tensors, whatever shapes a file gives them."""

from __future__ import annotations

import pytest
import torch

from nnunet_genesis.checkpoints.detect import detect
from nnunet_genesis.errors import CheckpointError
from nnunet_genesis.networks.tied_names import name_groups
from tests.transfer.networks import unet


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (1, 1, 1), (4, 1, 3, 3), (6, 6, 3, 3, 3, 3)])
def test_a_tensor_of_another_rank_is_an_error_that_says_so(kind, shape):
    network = unet(kind)
    weights = {name: network.state_dict()[name] for name in name_groups(network)}
    assert detect(weights).weights.keys() == weights.keys()
    for name in weights:
        if weights[name].ndim != len(shape):
            with pytest.raises(CheckpointError):
                detect({**weights, name: torch.zeros(shape)})
