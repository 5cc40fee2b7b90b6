"""Checkpoints of pre-training whose networks do something known, and scans to restore."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from nnunet_genesis.networks.build import build_network
from nnunet_genesis.nnunet_dataset import configuration_of, read_dataset_json, read_plans
from tests.conftest import run_genesis, write_dataset

TRAINER = "nnUNetTrainerGenesisPretrain"


@pytest.fixture
def make_checkpoint(nnunet: Path) -> Callable[..., Path]:
    """Write a checkpoint with plans of the template `tiny` and a network that adds `shift` to its input, or a random one."""

    def make(
        configuration: str = "3d_fullres",
        channels: tuple[str, ...] = ("T1",),
        *,
        shift: Sequence[float] | None = (0.0,),
        **plan: object,
    ) -> Path:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        write_dataset(nnunet, 501, "Scans", 1, channels, labeled=False)
        assert run_genesis("plan", "-d", 501, "--template", "tiny") == 0
        plans, description = read_plans("Dataset501_Scans", "nnUNetGenesisPlans"), read_dataset_json("Dataset501_Scans")
        block = plans["configurations"][configuration]
        block["patch_size"] = [16] * len(block["patch_size"])
        block["architecture"]["arch_kwargs"] |= {"norm_op": None, "norm_op_kwargs": None}  # as copying needs it
        block["normalization_schemes"] = block["normalization_schemes"][:1] * len(channels)
        block["use_mask_for_norm"] = block["use_mask_for_norm"][:1] * len(channels)
        for key, value in plan.items():
            (plans if key in plans or key == "genesis" else block)[key] = value
        with torch.random.fork_rng():
            torch.manual_seed(0)
            manager = configuration_of(plans, configuration)
            network = build_network(PlansManager(plans), manager, len(channels), len(channels), False)
        if shift is not None:
            copy_and_shift(network, shift)
        given = {"plans": plans, "configuration": configuration, "fold": "all", "dataset_json": description}
        content = {"network_weights": network.state_dict(), "init_args": given, "trainer_name": TRAINER}
        torch.save(content, nnunet / "checkpoint_final.pth")
        return nnunet / "checkpoint_final.pth"

    return make


def copy_and_shift(network: nn.Module, shift: Sequence[float]) -> None:
    """Make a PlainConvUNet without norms add a number to each channel.

    A channel x passes its leaky ReLUs as the pair (x, -x): their difference is 1.01 x.
    """
    for parameter in network.parameters():
        parameter.data.zero_()
    pairs = range(len(shift))

    def carry(convolution: nn.Module, first: int) -> None:
        """Take pairs from `first` on, and give pairs."""
        centre = [edge // 2 for edge in convolution.kernel_size]
        for pair in pairs:
            for sign, output in ((1, 2 * pair), (-1, 2 * pair + 1)):
                convolution.weight.data[(output, first + 2 * pair, *centre)] = sign / 1.01
                convolution.weight.data[(output, first + 2 * pair + 1, *centre)] = -sign / 1.01

    stem, second = (block.conv for block in network.encoder.stages[0][0].convs)
    centre = [edge // 2 for edge in stem.kernel_size]
    for pair in pairs:
        stem.weight.data[(2 * pair, pair, *centre)], stem.weight.data[(2 * pair + 1, pair, *centre)] = 1.0, -1.0
    carry(second, 0)
    joined, last = (block.conv for block in network.decoder.stages[-1].convs)
    carry(joined, joined.in_channels // 2)  # the skip comes after what comes from below
    carry(last, 0)
    head = network.decoder.seg_layers[-1]
    for pair in pairs:
        head.weight.data[pair, 2 * pair], head.weight.data[pair, 2 * pair + 1] = 1 / 1.01, -1 / 1.01
        head.bias.data[pair] = shift[pair]
