"""Trains the small convnet on a dataset: on its labels, or, where there are none, to recognise its images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.augment import affine
from .convnet import FEATURES, ConvFeatures, as_float

BATCH_SIZE = 128
# Optimizer steps: two passes over the data, and no fewer or more than these. MNIST's 843 take 17 s on one core.
CLASSIFIER_STEPS = (400, 1000)
CONTRASTIVE_STEPS = (300, 500)
LEARNING_RATE, WEIGHT_DECAY = 5e-3, 0.05
TEMPERATURE = 0.2


def train_classifier(network: ConvFeatures, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
    """Fits network and head to the labels by cross-entropy.

    Args:
        network: in place, on the device to train on.
        images: uint8 (N, C, H, W), on the CPU.
        labels: int64 (N,).
        generator: of the order, on the CPU.
    """
    device = next(network.parameters()).device
    steps = _steps(len(images), BATCH_SIZE, CLASSIFIER_STEPS)
    for rows, step in _fitting(network, len(images), BATCH_SIZE, steps, generator):
        logits = network.classify(as_float(images[rows].to(device)))
        step(F.cross_entropy(logits, labels[rows].to(device)))


def train_contrastive(network: ConvFeatures, images: Tensor, generator: torch.Generator) -> None:
    """Fits features so that two views of one image are closer than those of different images (SimCLR: Chen et al.
    2020, https://arxiv.org/abs/2002.05709, equation 1). The views differ by what a person overlooks: a small turn,
    shift and zoom, brightness and contrast, and a patch that is missing.

    Args:
        as for [`train_classifier`].
    """
    device = next(network.parameters()).device
    projector = nn.Sequential(nn.ReLU(), nn.Linear(FEATURES, FEATURES)).to(device)
    both = nn.ModuleList([network, projector])
    steps = _steps(len(images), BATCH_SIZE, CONTRASTIVE_STEPS)
    for rows, step in _fitting(both, len(images), BATCH_SIZE, steps, generator):
        batch = as_float(images[rows])
        views = torch.cat([_view(batch, generator), _view(batch, generator)]).to(device)
        points = F.normalize(projector(network(views)), dim=1)
        similar = points @ points.T / TEMPERATURE
        similar.fill_diagonal_(-torch.inf)
        partner = torch.arange(len(points), device=device).roll(len(batch))
        step(F.cross_entropy(similar, partner))


def _steps(count: int, batch_size: int, bounds: tuple[int, int]) -> int:
    return max(bounds[0], min(bounds[1], 2 * count // batch_size))


def _fitting(network: nn.Module, count: int, batch_size: int, steps: int, generator: torch.Generator) -> Iterator:
    """Yields, a step, the rows of a batch and a function that takes its loss and updates the weights."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.2)
    batch_size = min(batch_size, count)
    order, begin = torch.empty(0), 0

    def update(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    network.train()
    for _ in range(steps):
        if begin + batch_size > len(order):
            order, begin = torch.randperm(count, generator=generator), 0
        yield order[begin : begin + batch_size], update
        begin += batch_size
    network.eval()


def _view(images: Tensor, generator: torch.Generator) -> Tensor:
    count, (height, width) = len(images), images.shape[2:]

    def draw(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    side = draw(-0.1, 0.1) * height, draw(-0.1, 0.1) * width
    images = affine(images, draw(-15, 15), *side, draw(0.8, 1.25))
    contrast, brightness = draw(0.6, 1.4)[:, None, None, None], draw(-0.2, 0.2)[:, None, None, None]
    images = images * contrast + brightness
    inside = []
    for size in (height, width):
        begin, at = draw(-0.2, 1.0) * size, torch.arange(size)
        inside.append((at >= begin[:, None]) & (at < begin[:, None] + size * 0.3))
    return images * (~(inside[0][:, :, None] & inside[1][:, None, :]))[:, None]
