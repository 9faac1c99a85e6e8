"""The kernel distance: KID, where the vectors are Inception's."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import BadInput
from .distances import CHUNK_NUMBERS


def kernel_distance(reals: Tensor, fakes: Tensor) -> tuple[float, float]:
    """The unbiased squared maximum mean discrepancy with k(x, y) = (x.y / D + 1)^3 (Bińkowski et al. 2018,
    https://arxiv.org/abs/1801.01401), over all pairs.

    Published figures are means over random subsets of 1,000, which estimate the same number with more noise: this one
    draws nothing, and doesn't depend on a subset's size. Its deviation is the jackknife's, from leaving out each
    vector once; where both sets come from one distribution that is an overestimate, at most about twofold in variance.

    Args:
        reals, fakes: (N, D) and (M, D), at least 3 of each.

    Returns:
        the estimate, below 0 at times (it is unbiased), and its standard deviation; computed in float64.

    Raises:
        BadInput: fewer than 3 vectors.
    """
    n, m = len(reals), len(fakes)
    if min(n, m) < 3:
        raise BadInput(f"the kernel distance needs at least 3 samples of each kind, there are {n} and {m}")
    reals, fakes = reals.double(), fakes.double()
    # Sums over the other set and, without the vector itself, over the own.
    real_own, fake_own = (_both_sums(x, x)[0] - _kernel_diagonal(x) for x in (reals, fakes))
    real_other, fake_other = _both_sums(reals, fakes)
    within_real, within_fake, between = real_own.sum(), fake_own.sum(), real_other.sum()
    estimate = within_real / (n * (n - 1)) + within_fake / (m * (m - 1)) - 2 * between / (n * m)
    without_real = (
        (within_real - 2 * real_own) / ((n - 1) * (n - 2))
        + within_fake / (m * (m - 1))
        - 2 * (between - real_other) / ((n - 1) * m)
    )
    without_fake = (
        within_real / (n * (n - 1))
        + (within_fake - 2 * fake_own) / ((m - 1) * (m - 2))
        - 2 * (between - fake_other) / (n * (m - 1))
    )
    variance = sum((len(w) - 1) * w.var(correction=0) for w in (without_real, without_fake))
    return estimate.item(), variance.sqrt().item()


def _kernel(products: Tensor, dimensions: int) -> Tensor:
    return products.div_(dimensions).add_(1).pow_(3)


def _both_sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Of the kernel between a (N, D) and b (M, D): sums over b, (N,), and over a, (M,)."""
    over_b, over_a = [], torch.zeros(len(b), dtype=a.dtype, device=a.device)
    for part in a.split(max(1, CHUNK_NUMBERS // len(b))):
        values = _kernel(part @ b.T, a.shape[1])
        over_b.append(values.sum(1))
        over_a += values.sum(0)
    return torch.cat(over_b), over_a


def _kernel_diagonal(a: Tensor) -> Tensor:
    return _kernel(a.square().sum(1), a.shape[1])
