"""Exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class EMA:
    """Keeps `shadow = decay * shadow + (1 - decay) * weight` for every parameter, in one fused call a step.

    Buffers (batch-norm statistics, spectral-norm vectors) are running quantities of the raw weights already: they stay
    the model's own and are not averaged. The decay warms up as `min(decay, (1 + step) / (10 + step))`, so that the
    average forgets the random initial weights (as in TensorFlow's ExponentialMovingAverage and diffusers' EMAModel).

    Args:
        model: the model, already on its device.
        decay: in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.step_count = decay, 0
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.shadow = [p.detach().clone() for p in self.weights]

    @torch.no_grad()
    def step(self) -> None:
        """Moves the average towards the weights; call after each optimizer step."""
        self.step_count += 1
        decay = min(self.decay, (1 + self.step_count) / (10 + self.step_count))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.weights], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights; the raw ones come back afterwards, whatever happens."""
        raw = [p.detach().clone() for p in self.weights]
        with torch.no_grad():
            torch._foreach_copy_([p.detach() for p in self.weights], self.shadow)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([p.detach() for p in self.weights], raw)

    def state_dict(self) -> dict:
        return {"step_count": self.step_count, "shadow": self.shadow}

    def load_state_dict(self, state: dict) -> None:
        self.step_count = state["step_count"]
        with torch.no_grad():
            for mine, saved in zip(self.shadow, state["shadow"], strict=True):
                mine.copy_(saved)
