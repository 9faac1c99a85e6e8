"""Few different samples, that cover little of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from ...evaluation.distances import knn_radii
from ...evaluation.manifold import coverage
from .base import GANMonitor, Probe

NEIGHBOURS = 5
# A coverage that beats the best so far by a tenth, and by 0.01, is that of a generator that still learns.
GROWTH, LEAST_GROWTH = 1.1, 0.01


class ModeCollapse(GANMonitor):
    """Speaks when generated samples are alike more often than real ones, and leave much of the data uncovered.

    By the birthday paradox the share of pairs that collide tells the size of a support (Arora and Zhang 2017,
    https://arxiv.org/abs/1706.08224): `sample_ratio` is that share among real samples over that among generated ones,
    so 1 for a generator as varied as the data and 0.1 for one with a tenth of its support; the lower of the ratios at
    the 1 % and, for vectors, the 10 % quantile of real distances. `coverage` is that of Naeem et al. (2020), with
    k = 5; 0.97 at best. Distances are those of the trainer's embedding. While the coverage still grows nothing is
    said: what a generator makes of images at first is all alike.

    Args:
        trainer: the [`GANTrainer`] that it watches.
        patience: hits in a row before it speaks.
        probe: the samples to look at, if they are shared.
    """

    name = "mode collapse"

    def __init__(self, trainer=None, patience: int = 3, probe: Probe | None = None):
        super().__init__(trainer, patience)
        self.probe = probe or Probe(trainer)
        self.best: float | None = None
        self._real: tuple[dict[float, float], Tensor] | None = None

    def measure(self, trainer) -> dict[str, float] | None:
        reals = self.probe.reals
        if self.probe.is_young or len(reals) <= NEIGHBOURS:
            return None
        if self._real is None:
            self._real = collision_shares(reals, self.probe.limits.collision_quantiles), knn_radii(reals, NEIGHBOURS)
        shares, radii = self._real
        fakes = self.probe.fakes()
        values = {"sample_ratio": sample_ratio(shares, fakes), "coverage": coverage(reals, fakes, radii)}
        before = values["coverage"] if self.best is None else self.best
        self.best = max(before, values["coverage"])
        return values | {"best_coverage": before}

    def complaint(self, trainer, values: dict[str, float]) -> str | None:
        limits, before = self.probe.limits, values["best_coverage"]
        if values["coverage"] > max(GROWTH * before, before + LEAST_GROWTH):
            return None
        if not (values["sample_ratio"] < limits.sample_ratio and values["coverage"] < limits.coverage):
            return None
        return (
            f"generated pairs are alike {1 / values['sample_ratio']:.3g} times as often as real ones, and only "
            f"{values['coverage']:.0%} of the real samples have a generated one near: {remedy(trainer.gan_args)}"
        )

    def state(self) -> dict:
        kept = super().state()
        return kept | {"attributes": kept["attributes"] | {"best": self.best}}


def collision_shares(reals: Tensor, quantiles: tuple[float, ...]) -> dict[float, float]:
    """Distances that are quantiles of those between pairs of (N, d) points, each with the share of pairs that are no
    farther apart (about the quantile, and more where many distances are equal)."""
    between = torch.pdist(reals)
    distances = torch.quantile(between, between.new_tensor(quantiles), interpolation="nearest")
    return {distance.item(): (between <= distance).double().mean().item() for distance in distances}


def sample_ratio(shares: dict[float, float], fakes: Tensor) -> float:
    """The share of real pairs that collide over that of pairs of fakes (M, d), the least over the distances."""
    between = torch.pdist(fakes)
    # No collision at all is told from one by nothing: the share is at least that of one pair.
    ratios = [
        share / max((between <= distance).double().mean().item(), 1 / len(between))
        for distance, share in shares.items()
    ]
    return min(ratios)


def remedy(args) -> str:
    """What helps against collapse and has not been tried."""
    if args.loss != "relativistic":
        return "use --loss relativistic, which compares each sample with a real one"
    if not args.penalised:
        return "penalise gradients with --r1_weight 1 --r2_weight 1"
    if not args.minibatch_std and args.packing == 1:
        return "let the discriminator see how samples differ with --minibatch_std true, or --packing 2"
    return "lower --learning_rate, or use a larger --per_device_train_batch_size"
