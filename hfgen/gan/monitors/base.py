"""What the alarms share: the samples that they look at, and the limits of what is healthy."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ...monitor import Monitor
from ...seeding import EVALUATION, mix

if TYPE_CHECKING:
    from ..trainer import GANTrainer

SAMPLES = 512
# A young generator makes blobs, and moves them about: samples are judged after this share of the training or after so
# many steps, whichever is earlier.
SHARE_BEFORE_JUDGING, STEPS_BEFORE_JUDGING = 0.25, 1000


class Limits(NamedTuple):
    """From where on samples are called ill."""

    sample_ratio: float
    coverage: float
    drift: float
    collision_quantiles: tuple[float, ...]
    """Two samples collide if they are closer than this quantile of the distances between real ones."""


# The 1 % quantile finds copies; 10 %, among vectors, also modes that were lost where those that are left are wider
# than the real ones. In the features of a network generated images are nearer to each other than real ones until they
# are very good: at 10 % a run that had all of MNIST's digits was at 0.2 (at 1 %: 3, and a collapsed one 0.01). They
# also move more while they still become other digits (0.9 in 100 steps, in a run that went well).
VECTORS, FEATURES = Limits(0.5, 0.7, 0.7, (0.01, 0.1)), Limits(0.3, 0.7, 1.0, (0.01,))


class Probe:
    """Features of a fixed set of real samples, and of samples from fixed noise, made once a step however many ask.

    Args:
        trainer: the [`GANTrainer`]; its raw generator is looked at, not the average.
        count: samples of each kind, fewer reals where there are fewer.
    """

    def __init__(self, trainer: GANTrainer, count: int = SAMPLES):
        self.trainer, self.count = trainer, count
        self._step, self._fakes = -1, None
        self.limits = VECTORS

    @cached_property
    def reals(self) -> Tensor:
        """float64 (N, d), on the CPU; the same at every check and after a resume."""
        return self._embedded(self.trainer.real_samples(self.count, seed=self.trainer.args.seed))

    def fakes(self) -> Tensor:
        """float64 (count, d), on the CPU: what the generator makes of the same noise at this step."""
        step = self.trainer.state.global_step
        if self._step != step:
            noise = torch.Generator().manual_seed(mix(self.trainer.args.seed, EVALUATION, 1))
            self._step, self._fakes = step, self._embedded(self.trainer.sample(self.count, noise))
        return self._fakes

    def _embedded(self, samples: Tensor) -> Tensor:
        self.limits = VECTORS if samples.ndim == 2 else FEATURES
        return self.trainer.embed(samples).double().cpu()

    @property
    def is_young(self) -> bool:
        """Too early to judge samples."""
        state = self.trainer.state
        return state.global_step < min(SHARE_BEFORE_JUDGING * state.max_steps, STEPS_BEFORE_JUDGING)


class GANMonitor(Monitor):
    """A [`Monitor`] that measures and judges in two steps."""

    def measure(self, trainer: GANTrainer) -> dict[str, float] | None:
        """The measured values; None where it is too early to judge."""
        raise NotImplementedError

    def complaint(self, trainer: GANTrainer, values: dict[str, float]) -> str | None:
        """One sentence with values and remedy, or None if all is well."""
        raise NotImplementedError

    def check(self, trainer: GANTrainer) -> tuple[str, dict[str, float]] | None:
        values = self.measure(trainer)
        message = None if values is None else self.complaint(trainer, values)
        return None if message is None else (message, values)
