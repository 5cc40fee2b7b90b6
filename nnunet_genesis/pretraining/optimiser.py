"""Settings and a network → AdamW that clips, and its learning rate, epoch by epoch or step by step."""

from __future__ import annotations

import math

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn

from nnunet_genesis.settings import PretrainingSettings

POWER = 0.9
"""Exponent of nnU-Net's poly schedule."""


def optimiser_of(network: nn.Module, settings: PretrainingSettings) -> tuple[torch.optim.AdamW, PolyLRScheduler]:
    """AdamW for a network, and its schedule: nnU-Net's SGD hardly learns this task.

    nnU-Net's step clips gradients at 12 and knows schedules by the epoch only. What is narrower or finer hooks into the
    optimiser, before and after its steps.

    Args:
        network: What requires a gradient is trained.
        settings: Resolved for the kind of network.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    rate, norm = _number(settings.learning_rate), _number(settings.gradient_clipping)
    decays = (0.9, _number(settings.beta2))
    optimizer = torch.optim.AdamW(trained, rate, betas=decays, weight_decay=_number(settings.weight_decay))
    if norm < 12:
        optimizer.register_step_pre_hook(lambda *_: _clip(trained, norm))
    if settings.schedule == "poly" and not settings.warmup:
        return optimizer, PolyLRScheduler(optimizer, rate, settings.epochs)
    return optimizer, StepSchedule(optimizer, settings)


class StepSchedule(PolyLRScheduler):
    """A rate for every step: linear warm-up, then poly or half a cosine; which step it is follows from the epoch."""

    def __init__(self, optimizer: torch.optim.Optimizer, settings: PretrainingSettings) -> None:
        """Begin with the first step; advance with every step of the optimiser."""
        self.settings = settings
        self.position = 0
        super().__init__(optimizer, _number(settings.learning_rate), settings.epochs)
        optimizer.register_step_post_hook(lambda *_: self.advance())

    def step(self, current_step: int | None = None) -> None:
        """Set the rate of the first step of epoch `current_step`: a resumed training goes on where it was."""
        self._set((current_step or 0) * self.settings.iterations)

    def advance(self, steps: int = 1) -> None:
        """Set the rate of a later step."""
        self._set(self.position + steps)

    def _set(self, position: int) -> None:
        self.position = position
        rate = rate_of_step(position, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr = [rate]


def rate_of_step(step: int, settings: PretrainingSettings) -> float:
    """Learning rate of a step, counted from 0 over all epochs."""
    rate, steps = _number(settings.learning_rate), settings.epochs * settings.iterations
    warmup = _number(settings.warmup) * settings.iterations
    if step < warmup:
        return rate * (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / (steps - warmup))
    return rate * ((1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else (1 - done) ** POWER)


def _number(resolved: float | None) -> float:
    if resolved is None:
        raise TypeError("settings are resolved for a kind of network first")
    return resolved


def _clip(parameters: list[nn.Parameter], norm: float) -> None:
    torch.nn.utils.clip_grad_norm_(parameters, norm)
