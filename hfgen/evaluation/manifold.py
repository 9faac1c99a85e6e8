"""Fidelity and variety apart: balls around each vector stand for the manifold that a set of them lies on."""

from __future__ import annotations

import torch
from torch import Tensor

from .distances import distance_rows, nearest


def manifold_metrics(reals: Tensor, fakes: Tensor, *, k: int = 3, coverage_k: int = 5) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019, https://arxiv.org/abs/1904.06991), and density and coverage,
    which are robust against outliers (Naeem et al. 2020, https://arxiv.org/abs/2002.09797).

    A ball reaches from a vector to its k-th nearest neighbour in its own set.

    Args:
        reals, fakes: (N, D) and (M, D), more than both k of each.
        k: of precision and recall; the paper's is 3.
        coverage_k: of density and coverage; the paper's is 5.

    Returns:
        dict: `precision`, the share of generated vectors in a real ball; `recall`, the share of real ones in a
        generated ball; `density`, in how many real balls a generated vector lies, over `coverage_k`: 1 for samples of
        the real distribution, and above it for samples crowded where reals are dense; `coverage`, the share of real
        balls that hold a generated vector: 1 - 2^-coverage_k where both distributions and counts are the same.

    Raises:
        BadInput: too few vectors.
    """
    near = nearest(reals, reals, max(k, coverage_k), same=True)[0]
    radii, wide_radii = near[:, k - 1], near[:, coverage_k - 1]
    fake_radii = nearest(fakes, fakes, k, same=True)[0][:, -1]
    precise = torch.zeros(len(fakes), dtype=torch.bool, device=fakes.device)
    recalled, covered, held = [], [], 0
    for rows, block in distance_rows(reals, fakes):
        precise |= (block <= radii[rows, None]).any(0)
        recalled.append((block <= fake_radii).any(1))
        inside = block <= wide_radii[rows, None]
        held += int(inside.sum())
        covered.append(inside.any(1))
    return {
        "precision": _share(precise),
        "recall": _share(torch.cat(recalled)),
        "density": held / (coverage_k * len(fakes)),
        "coverage": _share(torch.cat(covered)),
    }


def coverage(reals: Tensor, fakes: Tensor, radii: Tensor) -> float:
    """The share of balls of `radii` (N,) around reals (N, D) that hold one of fakes (M, D), 0 to 1."""
    return _share(torch.cat([(block <= radii[rows, None]).any(1) for rows, block in distance_rows(reals, fakes)]))


def _share(chosen: Tensor) -> float:
    return chosen.double().mean().item()
