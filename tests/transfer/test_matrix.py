"""Every kind of plans as source and as target: what is carried, and that the shared encoder stages compute the same."""

from __future__ import annotations

import re
from functools import lru_cache

import pytest
import torch
from torch import nn

from nnunet_genesis.errors import TransferError
from nnunet_genesis.transfer import match
from tests.transfer.networks import architecture, build, periodic, source

FEATURES = (3, 4, 5, 6, 6, 6)
THIN = [[1, 3, 3]], [[1, 1, 1], [1, 2, 2]]
# stages, dimensions, channels, first kernels, first strides, last stride
TASKS = {
    "2d": (6, 2, 1, [], [], []),
    "isotropic": (5, 3, 1, [], [], []),
    "anisotropic": (5, 3, 1, *THIN, []),
    "brats": (6, 3, 4, [], [], []),
    "hippocampus": (4, 3, 1, [], [], []),
    "luna": (6, 3, 1, [], [], [[1, 2, 2]]),
}
CASES = [(kind, task) for kind in ("plain", "residual") for task in TASKS]


def plans(kind: str, task: str) -> dict:
    stages, dim, _, kernels, strides, last = TASKS[task]
    strides = strides or [[1] * dim]
    return architecture(
        kind,
        dim,
        FEATURES[:stages],
        kernels + [[3] * dim] * (stages - len(kernels)),
        strides + [[2] * dim] * (stages - len(strides) - len(last)) + last,
        decoder=[2 if kind == "plain" else 1] * (stages - 1),
    )


def channels_of(task: str) -> list[str]:
    return [f"{task} {i}" for i in range(TASKS[task][2])]


@lru_cache
def trained(kind: str, task: str) -> nn.Module:
    return periodic(build(plans(kind, task), TASKS[task][2])).double()


def features(network: nn.Module, task: str) -> list[torch.Tensor]:
    """Encoder features (C, y, x) of one image: the same in every channel and slice; in 3D they are the same, too."""
    slice_ = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stages, dim, channels = TASKS[task][:3]
    image = slice_.expand(1, channels, *[32] * (dim - 2), 64, 64)
    with torch.no_grad():
        found = network.encoder(image)
    assert len(found) == stages
    if dim == 3:
        torch.testing.assert_close(found[0], found[0][:, :, :1].expand_as(found[0]), rtol=0, atol=1e-8)
    return [maps[0, :, 0] if dim == 3 else maps[0] for maps in found]


@lru_cache
def trained_features(kind: str, task: str) -> list[torch.Tensor]:
    return features(trained(kind, task), task)


def expected_coverage(network: nn.Module, known: int, prefix: str) -> float:
    """Share of the parameters in stages that a source with `known` stages has, by their names alone."""
    stages, total, taken = len(network.encoder.stages), 0, 0
    for name, parameter in network.named_parameters():
        if not name.startswith(prefix) or ".seg_layers." in name:
            continue
        total += parameter.numel()
        number = re.search(r"\.(?:stages|transpconvs)\.(\d+)\.", name)
        index = int(number.group(1)) if number else 0
        level = index if name.startswith("encoder") else stages - 1 - index  # up-samplings come from this encoder stage
        taken += parameter.numel() if level < known else 0
    return taken / total


@pytest.mark.parametrize(("other_kind", "other_task"), CASES)
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_every_pair(kind, task, other_kind, other_task):
    given = source(plans(kind, task), trained(kind, task), channels_of(task))
    network = periodic(build(plans(other_kind, other_task), TASKS[other_task][2], seed=1)).double()
    channels = channels_of(other_task)
    if kind != other_kind:
        with pytest.raises(TransferError, match="holds a .*, the target's plans ask for a .*: convolutions of the one"):
            match(given, network, channels)
        return
    ledger = match(given, network, channels)
    known = TASKS[task][0]
    assert ledger.encoder_coverage == pytest.approx(expected_coverage(network, known, "encoder"))
    assert ledger.coverage == pytest.approx(expected_coverage(network, known, ""))
    assert bool(ledger.limits) == (task != other_task)
    assert sum(line.parameters for line in ledger.lines) == sum(p.numel() for p in network.parameters())
    ledger.apply(network)
    for before, after in zip(trained_features(kind, task), features(network, other_task), strict=False):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    if task == other_task:
        network.decoder.seg_layers = trained(kind, task).decoder.seg_layers
        image = torch.randn(1, len(channels), *[32] * (TASKS[task][1] - 2), 64, 64, dtype=torch.float64)
        with torch.no_grad():
            assert torch.equal(network(image), trained(kind, task)(image))
