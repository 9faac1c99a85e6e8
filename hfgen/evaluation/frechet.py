"""The Fréchet distance: FID, where the vectors are Inception's."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import BadInput


def frechet_distance(reals: Tensor, fakes: Tensor) -> float:
    """||m1 - m2||^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) between the Gaussians of two sets of vectors (Heusel et al. 2017,
    https://arxiv.org/abs/1706.08500; Dowson and Landau 1982).

    With centred data X1 = Q1 R1, C1 = R1^T R1 (both scaled by the root of N - 1), and the trace of the root is the sum
    of the singular values of R1 R2^T: no covariance is squared and no root of a rounded zero is taken, so nothing
    fails, and nothing is added to a diagonal, where a covariance is singular. It always is with fewer vectors than
    dimensions: the value is then still that of the two empirical Gaussians, but it measures the small count as much as
    the samples. It is biased upwards by about 1/N at any count, so compare only figures of the same count.

    Args:
        reals, fakes: (N, D) and (M, D), at least 2 of each.

    Returns:
        float: at least 0; computed in float64.

    Raises:
        BadInput: fewer than 2 vectors, or values that are not finite.
    """
    (mean1, factor1), (mean2, factor2) = _gaussian(reals, "real"), _gaussian(fakes, "generated")
    spread = factor1.square().sum() + factor2.square().sum()
    common = torch.linalg.svdvals(factor1 @ factor2.T).sum()
    return max(0.0, ((mean1 - mean2).square().sum() + spread - 2 * common).item())


def _gaussian(vectors: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The mean (D,) and a factor F (min(N, D), D) of the covariance F^T F, float64."""
    if len(vectors) < 2:
        raise BadInput(f"the Fréchet distance needs at least 2 {kind} samples, there are {len(vectors)}")
    vectors = vectors.double()
    if not torch.isfinite(vectors).all():
        raise BadInput(f"the Fréchet distance: features of {kind} samples are not finite")
    mean = vectors.mean(0)
    centred = (vectors - mean) / (len(vectors) - 1) ** 0.5
    return mean, torch.linalg.qr(centred, mode="r").R if len(vectors) > vectors.shape[1] else centred
