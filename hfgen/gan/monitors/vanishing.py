"""A discriminator so sure that the generator learns nothing from it."""

from __future__ import annotations

import math
import statistics

from .base import GANMonitor

SURE_ACCURACY = 0.98
VANISHED_SLOPE = 0.02
VANISHED_SHARE_OF_PEAK = 0.02
# Steps of history without which nothing is judged.
FEWEST_STEPS = 10


class VanishingGradients(GANMonitor):
    """Speaks when D is almost always right and G gets almost no gradient (Arjovsky and Bottou 2017,
    https://arxiv.org/abs/1701.04862).

    From the steps since the last check: `d_accuracy` and `g_logit_grad` (|dL_G / dlogit| of a sample; it is below 1
    where the loss saturates) as means, and `g_grad_norm` as a median, also as `share_of_peak`, over the largest median
    of the run so far.

    Args:
        trainer: the [`GANTrainer`] that it watches.
        patience: hits in a row before it speaks.
    """

    name = "vanishing gradients"

    def __init__(self, trainer=None, patience: int = 3):
        super().__init__(trainer, patience)
        self.peak = 0.0

    def measure(self, trainer) -> dict[str, float] | None:
        history = trainer.history
        if len(history) < FEWEST_STEPS:
            return None
        norm = statistics.median(step["g_grad_norm"] for step in history)
        if math.isfinite(norm):
            self.peak = max(self.peak, norm)
        return {
            "d_accuracy": statistics.fmean(step["d_accuracy"] for step in history),
            "g_logit_grad": statistics.fmean(step["g_logit_grad"] for step in history),
            "g_grad_norm": norm,
            "share_of_peak": norm / self.peak if self.peak else 0.0,
        }

    def complaint(self, trainer, values: dict[str, float]) -> str | None:
        flat = values["g_logit_grad"] < VANISHED_SLOPE
        if not (values["d_accuracy"] > SURE_ACCURACY and (flat or values["share_of_peak"] < VANISHED_SHARE_OF_PEAK)):
            return None
        found = (
            f"its loss changes by {values['g_logit_grad']:.2g} for each unit of a logit"
            if flat
            else f"its gradient's norm is {values['g_grad_norm']:.2g}, {values['share_of_peak']:.1%} of the peak"
        )
        return (
            f"the discriminator is right in {values['d_accuracy']:.1%} of cases and the generator learns no more "
            f"({found}): {remedy(trainer.gan_args, flat)}"
        )

    def state(self) -> dict:
        kept = super().state()
        return kept | {"attributes": kept["attributes"] | {"peak": self.peak}}


def remedy(args, flat: bool) -> str:
    """What helps against a discriminator that is too good and has not been tried."""
    if args.loss == "minimax":
        return "use --loss non_saturating, or relativistic with its penalties"
    if not args.penalised:
        return "keep the discriminator smooth with --r1_weight 1 --r2_weight 1"
    if not args.instance_noise:
        return "blur what the discriminator sees with --instance_noise 0.1, or lower --discriminator_learning_rate"
    return "lower --discriminator_learning_rate"
