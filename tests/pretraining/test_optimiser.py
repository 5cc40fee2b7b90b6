"""AdamW and its rate: by kind of network, by step, and the same after an interruption."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn

from nnunet_genesis.corruption import RECIPES
from nnunet_genesis.errors import SettingsError
from nnunet_genesis.pretraining.optimiser import optimiser_of, rate_of_step
from nnunet_genesis.settings import CONVOLUTIONAL, TRANSFORMER, PretrainingSettings


def settings(kind: str = TRANSFORMER, **given) -> PretrainingSettings:
    return PretrainingSettings(**{"epochs": 10, "iterations": 5} | given).resolved(kind)


def rates(resolved: PretrainingSettings, epochs: range) -> list[float]:
    """The rate of every step of some epochs, as nnU-Net's loop makes them."""
    weight = nn.Parameter(torch.zeros(3))
    optimizer, schedule = optimiser_of(nn.ParameterList([weight]), resolved)
    used = []
    for epoch in epochs:
        schedule.step(epoch)
        for _ in range(resolved.iterations):
            used.append(optimizer.param_groups[0]["lr"])
            weight.grad = torch.ones(3)
            optimizer.step()
    return used


def test_convolutional_networks_are_trained_as_before_there_were_others():
    optimizer, schedule = optimiser_of(nn.Linear(1, 1), settings(CONVOLUTIONAL))
    expected = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], 1e-3, weight_decay=1e-2)
    assert {**optimizer.param_groups[0], "params": 0} == {**expected.param_groups[0], "params": 0, "initial_lr": 1e-3}
    assert type(schedule) is PolyLRScheduler
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_transformers_are_trained_as_in_the_papers():
    optimizer, _ = optimiser_of(nn.Linear(1, 1), settings())
    group = optimizer.param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.9, 0.95), 0.05)
    assert settings(epochs=1000).block() | {"recipe": 0} == PretrainingSettings(
        learning_rate=1.5e-4, weight_decay=0.05, beta2=0.95, schedule="cosine", warmup=50, gradient_clipping=1
    ).block() | {"recipe": 0, "iterations": 5}  # fmt: skip


@pytest.mark.parametrize("kind", [CONVOLUTIONAL, TRANSFORMER])
def test_what_is_given_holds_for_every_kind(kind):
    given = {"learning_rate": 0.5, "weight_decay": 0.0, "beta2": 0.0, "schedule": "poly", "warmup": 0.0,
             "gradient_clipping": 7.0}  # fmt: skip
    resolved = settings(kind, **given)
    assert {name: getattr(resolved, name) for name in given} == given
    assert resolved.resolved(TRANSFORMER) == resolved


@given(st.sampled_from(["poly", "cosine"]), st.sampled_from([0, 0.5, 2, 3.7]), st.integers(1, 9))
def test_a_resumed_training_has_the_rates_of_an_uninterrupted_one(schedule, warmup, interrupted):
    resolved = settings(schedule=schedule, warmup=warmup)
    whole = rates(resolved, range(10))
    assert rates(resolved, range(interrupted)) + rates(resolved, range(interrupted, 10)) == whole


def test_the_rate_rises_and_falls_step_by_step():
    resolved = settings(learning_rate=0.5, warmup=2, schedule="cosine")
    used = rates(resolved, range(10))
    assert used[:10] == pytest.approx([0.5 * (step + 1) / 11 for step in range(10)])
    assert used[10:] == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 40)) for step in range(40)])
    poly = settings(learning_rate=0.5, warmup=2, schedule="poly")
    assert rates(poly, range(10))[10:] == pytest.approx([0.5 * (1 - step / 40) ** 0.9 for step in range(40)])
    assert rate_of_step(50, resolved) == pytest.approx(0)
    assert rate_of_step(999, resolved) == pytest.approx(0)


def test_poly_without_warmup_is_nnunets():
    used = rates(settings(CONVOLUTIONAL, learning_rate=0.5), range(10))
    assert used == [0.5 * (1 - epoch / 10) ** 0.9 for epoch in range(10) for _ in range(5)]


def test_gradients_are_clipped_before_the_step():
    weight = nn.Parameter(torch.zeros(4))
    optimizer, _ = optimiser_of(nn.ParameterList([weight]), settings(gradient_clipping=0.5))
    weight.grad = torch.full((4,), 3.0)
    optimizer.step()
    assert weight.grad.norm().item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"warmup": 10}, r'"warmup" \(10\) must be below "epochs" \(10\)'),
        ({"gradient_clipping": 13}, '"gradient_clipping" must be at most 12'),
        ({"schedule": "linear"}, '"schedule" must be auto or poly or cosine'),
        ({"normalised_targets": "yes"}, '"normalised_targets" is "yes".*recipe mae'),
        ({"recipe": RECIPES["mae"], "loss": "ssim"}, 'The loss "ssim".*"normalised_targets" to "no"'),
        ({"recipe": RECIPES["paper"].updated({"masking": {"masked_as": "absent"}}, "")}, "Set the probability to 1"),
        ({"drop_path": 0.1}, '"drop_path" is 0.1, but the network has no such paths'),
    ],
)
def test_refusals(given, message):
    with pytest.raises(SettingsError, match=message) as refusal:
        settings(CONVOLUTIONAL, **given)
    assert "\n" not in str(refusal.value)


def test_which_targets_are_normalised():
    mae = RECIPES["mae"]
    assert settings(recipe=mae).normalises
    assert not settings(recipe=mae, normalised_targets="no").normalises
    assert not settings(recipe=RECIPES["masking"]).normalises
