"""Networks that chase each other instead of settling, or blow up."""

from __future__ import annotations

import base64
import math
import statistics

import numpy as np
import torch
from torch import Tensor

from .base import GANMonitor, Probe

# Samples whose way is followed, and steps of that way; features are projected to at most so many dimensions.
FOLLOWED, SPAN, DIMENSIONS = 64, 100, 64
LARGEST_LOGIT = 100.0
# A spike is a gradient whose norm is so many times the median since the last check.
SPIKE, SHARE_OF_SPIKES = 10.0, 0.1
FEWEST_STEPS = 10


class Instability(GANMonitor):
    """Speaks when samples of the same noise become others within 100 steps, when logits or gradients blow up, or when
    a value is not finite (then at once).

    `drift` is the root mean square way of samples from fixed noise between two checks, at most 100 steps apart, over
    the real samples' standard deviation, in the trainer's embedding: 1.4 where nothing remains of what they were.
    `logit_max` is the largest |logit| since the last check, `spikes` the larger share, of both networks', of gradient
    norms above 10 times their median.

    Args:
        trainer: the [`GANTrainer`] that it watches.
        patience: hits in a row before it speaks.
        probe: the samples to look at, if they are shared.
    """

    name = "instability"

    def __init__(self, trainer=None, patience: int = 3, probe: Probe | None = None):
        super().__init__(trainer, patience)
        self.probe = probe or Probe(trainer)
        # Where the samples were: part of the checkpoint, in JSON, hence as text.
        self.before = ""

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step % args.monitor_steps == (-min(SPAN, args.monitor_steps)) % args.monitor_steps:
            self.before = packed(self._followed())

    def observe(self) -> None:
        super().observe()
        # There is no next check after a value that is not finite.
        if not self.spoke and self._found[1] is not None and not math.isfinite(sum(self._found[1][1].values())):
            message, values = self._found[1]
            self.speak(message, {k: v for k, v in values.items() if math.isfinite(v)})

    def measure(self, trainer) -> dict[str, float] | None:
        history = trainer.history
        if len(history) < FEWEST_STEPS:
            return None
        values = {
            "logit_max": max((step["logit_max"] for step in history), key=_size),
            "spikes": max(spikes([step[name] for step in history]) for name in ("g_grad_norm", "d_grad_norm")),
            "drift": 0.0,
        }
        if self.before and not self.probe.is_young:
            values["drift"] = drift(unpacked(self.before), self._followed(), projected(self.probe.reals))
        return values

    def complaint(self, trainer, values: dict[str, float]) -> str | None:
        found = []
        if not math.isfinite(sum(values.values())):
            found.append("a value is not finite")
        if values["drift"] > self.probe.limits.drift:
            found.append(
                f"within {min(SPAN, trainer.args.monitor_steps)} steps samples of the same noise moved "
                f"{values['drift']:.2g} times the real standard deviation"
            )
        # Where only differences of logits mean something, all may move together.
        if values["logit_max"] > LARGEST_LOGIT and trainer.loss.boundary is not None:
            found.append(f"a logit reached {values['logit_max']:.3g}")
        if values["spikes"] > SHARE_OF_SPIKES:
            found.append(f"{values['spikes']:.0%} of the gradients were spikes of {SPIKE:.0f} times the median")
        if not found:
            return None
        return f"{', and '.join(found)}: {remedy(trainer.args, trainer.gan_args)}"

    def state(self) -> dict:
        kept = super().state()
        return kept | {"attributes": kept["attributes"] | {"before": self.before}}

    def _followed(self) -> Tensor:
        return projected(self.probe.fakes()[:FOLLOWED]).float()


def drift(before: Tensor, after: Tensor, reals: Tensor) -> float:
    """Root mean square way from `before` to `after`, (M, d) each, over the deviation of `reals` (N, d)."""
    way = (after.double() - before.double()).square().sum(1).mean()
    deviation = reals.double().var(0, correction=0).sum()
    return (way / deviation.clamp_min(1e-24)).sqrt().item()


def spikes(norms: list[float]) -> float:
    """The share of norms above 10 times their median; nan if one is not finite."""
    if not all(math.isfinite(norm) for norm in norms):
        return math.nan
    limit = SPIKE * statistics.median(norms)
    return sum(norm > limit for norm in norms) / len(norms)


def projected(features: Tensor) -> Tensor:
    """(N, d) -> (N, at most 64): fixed random directions, which keep distances on average."""
    dimensions = features.shape[1]
    if dimensions <= DIMENSIONS:
        return features
    directions = torch.randn((dimensions, DIMENSIONS), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return features.double() @ directions


def packed(features: Tensor) -> str:
    """float32 (M, d) as text."""
    return f"{features.shape[1]} {base64.b64encode(features.float().numpy().tobytes()).decode()}"


def unpacked(text: str) -> Tensor:
    """The inverse of [`packed`]."""
    dimensions, content = text.split()
    numbers = np.frombuffer(base64.b64decode(content), np.float32).reshape(-1, int(dimensions))
    return torch.from_numpy(numbers.copy())


def _size(value: float) -> float:
    return math.inf if math.isnan(value) else abs(value)


def remedy(args, gan_args) -> str:
    """What helps against instability and has not been tried."""
    if not gan_args.penalised:
        return "penalise gradients with --r1_weight 1 --r2_weight 1, or lower --learning_rate"
    return f"lower --learning_rate (it is {args.learning_rate:g})"
