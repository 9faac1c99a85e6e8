"""Euclidean distances between many vectors, exact over all of them in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import BadInput

# Distances held at a time: 32 MB of float64.
CHUNK_NUMBERS = 1 << 22


def pairwise_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) float64 distances between the rows of a (N, D) and b (M, D).

    One matrix product instead of N x M x D differences; both are centred first, so that what cancels is small. A
    distance below 1e-7 of the vectors' own length is noise.
    """
    centre = b.double().mean(0)
    a, b = a.double() - centre, b.double() - centre
    squares = torch.addmm(b.square().sum(1)[None], a, b.T, alpha=-2).add_(a.square().sum(1)[:, None])
    return squares.clamp_(min=0).sqrt_()


def distance_rows(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows of [`pairwise_distances`], and which rows they are."""
    size = max(1, CHUNK_NUMBERS // max(1, len(b)))
    for begin in range(0, len(a), size):
        rows = slice(begin, min(begin + size, len(a)))
        yield rows, pairwise_distances(a[rows], b)


def nearest(queries: Tensor, points: Tensor, k: int = 1, *, same: bool = False) -> tuple[Tensor, Tensor]:
    """The k nearest points of each query, nearest first.

    Args:
        queries: (N, D).
        points: (M, D).
        k: how many, at most M (M - 1 with `same`).
        same: the queries are the points; none counts as its own neighbour (a copy of it does).

    Returns:
        distances float64 (N, k) and indices int64 (N, k).

    Raises:
        BadInput: there are too few points.
    """
    available = len(points) - same
    if k > available:
        raise BadInput(f"{k} nearest neighbours were asked for among {len(points)} vectors: use more of them")
    found = []
    for rows, block in distance_rows(queries, points):
        if same:
            block[torch.arange(len(block)), torch.arange(rows.start, rows.stop)] = torch.inf
        found.append(block.topk(k, largest=False))
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def knn_radii(points: Tensor, k: int) -> Tensor:
    """Distance of each of (N, D) points to its k-th nearest other one: float64 (N,).

    Raises:
        BadInput: fewer than k + 1 points.
    """
    return nearest(points, points, k, same=True)[0][:, -1]
