"""What keeps a discriminator smooth: penalties on the gradient of its logits by its inputs, and on inconsistency."""

from __future__ import annotations

import torch
from torch import Tensor


def input_gradients(logits: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The gradient of each logit by what the discriminator saw for it, ready for a second backward.

    Args:
        logits: for each group (P,), computed from the same group of `inputs` alone; P = B, or B / packing.
        inputs: for each group (B, ...) with `requires_grad`.

    Returns:
        for each group (P, D): flat, the inputs of one pack side by side.
    """
    gradients = torch.autograd.grad([group.sum() for group in logits], inputs, create_graph=True)
    return [gradient.reshape(len(group), -1) for gradient, group in zip(gradients, logits, strict=True)]


def zero_centered(gradients: Tensor) -> Tensor:
    """E ||grad||^2 / 2: R1 at real samples, R2 at generated ones (Mescheder et al. 2018, equations 9 and 10).

    At points between the two it is the zero-centred penalty of Thanh-Tung et al. (2019), halved.

    Args:
        gradients: (P, D).
    """
    return 0.5 * gradients.square().sum(1).mean()


def one_centered(gradients: Tensor) -> Tensor:
    """E (||grad|| - 1)^2 (Gulrajani et al. 2017, equation 3), at points between real and generated samples.

    Args:
        gradients: (P, D).
    """
    # The norm's own gradient is infinite at 0; where it is that small, the sum below adds nothing to 1.
    return ((gradients.square().sum(1) + 1e-12).sqrt() - 1).square().mean()


def interpolate(real: Tensor, fake: Tensor, position: Tensor) -> Tensor:
    """Points on the lines between pairs: real + position * (fake - real) (Gulrajani et al. 2017, algorithm 1).

    Args:
        real, fake: (B, ...).
        position: (B,) in [0, 1].
    """
    return torch.lerp(real, fake, position.view(-1, *[1] * (real.ndim - 1)))


def consistency(logits: Tensor, transformed_logits: Tensor) -> Tensor:
    """E (D(x) - D(T(x)))^2 (Zhang et al. 2020, equation 1; on generated samples too: Zhao et al. 2021, bCR).

    Args:
        logits, transformed_logits: (P,) of the same samples, before and after the transformation T.
    """
    return (logits - transformed_logits).square().mean()
