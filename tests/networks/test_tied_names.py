"""Names that share a tensor, read off the network."""

from __future__ import annotations

from nnunet_genesis.networks.tied_names import name_groups
from tests.transfer.networks import unet


def test_names_that_share_a_tensor_form_a_group():
    network = unet()
    groups = name_groups(network)
    assert len(groups) == len(list(network.parameters()))
    assert list(groups) == [name for name, _ in network.named_parameters()]
    first = groups["encoder.stages.0.0.convs.0.conv.weight"]
    assert len(first) == 4
    assert first[-1] == "decoder.encoder.stages.0.0.convs.0.all_modules.0.weight"
