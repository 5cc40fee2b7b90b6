"""Networks built from plans, and taken out of their wrappers."""

from __future__ import annotations

import torch
from torch import nn

from nnunet_genesis.networks.build import unwrap


def test_wrappers_are_taken_off():
    network = nn.Linear(2, 2)
    assert unwrap(network) is network
    assert unwrap(torch.compile(nn.DataParallel(network))) is network
