"""Objectives of the two networks: pure functions of the discriminator's logits, (B,) float, before any sigmoid."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def bce_discriminator(real_logits: Tensor, fake_logits: Tensor, smoothing: float = 0.0) -> Tensor:
    """-[(1 - s) log D(x) + s log(1 - D(x))] - log(1 - D(G(z))), D = sigmoid(logits) (Goodfellow et al. 2014, eq. 1).

    Args:
        real_logits, fake_logits: (B,).
        smoothing: s, one-sided: real samples have the target 1 - s, fakes stay at 0 (Salimans et al. 2016, 3.4).

    Returns:
        0-d, the mean over the samples.
    """
    real = F.softplus(-real_logits).mean()
    if smoothing:
        real = (1 - smoothing) * real + smoothing * F.softplus(real_logits).mean()
    return real + F.softplus(fake_logits).mean()


def minimax_generator(real_logits: Tensor | None, fake_logits: Tensor) -> Tensor:
    """log(1 - D(G(z))), which saturates where D is sure of a fake (Goodfellow et al. 2014, equation 1)."""
    return -F.softplus(fake_logits).mean()


def non_saturating_generator(real_logits: Tensor | None, fake_logits: Tensor) -> Tensor:
    """-log D(G(z)) (Goodfellow et al. 2014, section 3)."""
    return F.softplus(-fake_logits).mean()


def wasserstein_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """D(G(z)) - D(x) for a critic D that is Lipschitz by other means (Arjovsky et al. 2017, equation 2)."""
    return fake_logits.mean() - real_logits.mean()


def mean_generator(real_logits: Tensor | None, fake_logits: Tensor) -> Tensor:
    """-D(G(z)) (Arjovsky et al. 2017, algorithm 1; Lim & Ye 2017, equation 11)."""
    return -fake_logits.mean()


def hinge_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z))) (Lim & Ye 2017, equation 10)."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def least_squares_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """(D(x) - 1)^2 / 2 + D(G(z))^2 / 2 (Mao et al. 2017, equation 2, with a = 0 and b = c = 1)."""
    return 0.5 * ((real_logits - 1).square().mean() + fake_logits.square().mean())


def least_squares_generator(real_logits: Tensor | None, fake_logits: Tensor) -> Tensor:
    """(D(G(z)) - 1)^2 / 2 (Mao et al. 2017, equation 2, with c = 1)."""
    return 0.5 * (fake_logits - 1).square().mean()


def relativistic_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """softplus(D(G(z)) - D(x)) over pairs (Jolicoeur-Martineau 2019, eq. 3; Huang et al. 2024, eq. 2, R3GAN)."""
    return F.softplus(fake_logits - real_logits).mean()


def relativistic_generator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """softplus(D(x) - D(G(z))) over pairs: a fake must look more real than its real sample (Huang et al. 2024)."""
    return F.softplus(real_logits - fake_logits).mean()


class GANLoss(NamedTuple):
    """What one `--loss` means for both networks."""

    discriminator: Callable[..., Tensor]
    """(real_logits, fake_logits) -> 0-d; also `smoothing`, where `smooths_labels`."""
    generator: Callable[[Tensor | None, Tensor], Tensor]
    """(real_logits or None, fake_logits) -> 0-d."""
    boundary: float | None = 0.0
    """The logit above which D calls a sample real; None where only the difference of two logits says something."""
    paired: bool = False
    """The generator's loss needs the real logits too."""
    smooths_labels: bool = False


LOSSES: dict[str, GANLoss] = {
    "relativistic": GANLoss(relativistic_discriminator, relativistic_generator, boundary=None, paired=True),
    "non_saturating": GANLoss(bce_discriminator, non_saturating_generator, smooths_labels=True),
    "minimax": GANLoss(bce_discriminator, minimax_generator, smooths_labels=True),
    "hinge": GANLoss(hinge_discriminator, mean_generator),
    "least_squares": GANLoss(least_squares_discriminator, least_squares_generator, boundary=0.5),
    "wasserstein": GANLoss(wasserstein_discriminator, mean_generator, boundary=None),
}


@torch.no_grad()
def discriminator_accuracy(loss: GANLoss, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """0-d share in [0, 1] of real and fake samples on their side of the boundary, or of pairs in the right order."""
    if loss.boundary is None:
        return (real_logits > fake_logits).float().mean()
    return 0.5 * ((real_logits > loss.boundary).float().mean() + (fake_logits < loss.boundary).float().mean())
