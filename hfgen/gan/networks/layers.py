"""Layers that the networks share. Only torch and diffusers: published folders carry a copy of this code."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "silu": nn.SiLU}


def activation(name: str) -> nn.Module:
    """A layer of `ACTIVATIONS`; leaky with the slope 0.2 that is customary here (Radford et al. 2016)."""
    return nn.LeakyReLU(0.2) if name == "leaky_relu" else ACTIVATIONS[name]()


def height_and_width(sample_size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a `sample_size`: one number for a square image, or both."""
    return (sample_size, sample_size) if isinstance(sample_size, int) else (sample_size[0], sample_size[1])


def base_size(sample_size: int | list[int], halvings: int) -> tuple[int, int]:
    """(height, width) after halving an image's sides so often.

    Raises:
        ValueError: a side can't be halved so often.
    """
    height, width = height_and_width(sample_size)
    factor = 2**halvings
    if height % factor or width % factor:
        raise ValueError(f"{halvings} blocks need sides that {factor} divides, not {height}x{width}")
    return height // factor, width // factor


def sample_shape(sample_size: int | list[int] | None, channels: int) -> tuple[int, ...]:
    """The shape of one sample: (C, H, W), or (C,) for vectors, which have no size."""
    return (channels,) if sample_size is None else (channels, *height_and_width(sample_size))


def check_labels(embedding: nn.Embedding | None, class_labels: torch.Tensor | None) -> None:
    """Raises ValueError for labels where there are no classes, and for none where there are."""
    if embedding is None and class_labels is not None:
        raise ValueError("this network knows no classes: leave class_labels out")
    if embedding is not None and class_labels is None:
        raise ValueError(f"this network is conditional: give class_labels, from 0 to {embedding.num_embeddings - 1}")


class BatchNorm(nn.Module):
    """Batch normalisation; with classes, each has its own gain and bias (conditional: Dumoulin et al. 2017).

    Args:
        channels: of the features (B, channels) or (B, channels, H, W).
        num_classes: None for the unconditional one.
        dimensions: 1 for vectors, 2 for images.
    """

    def __init__(self, channels: int, num_classes: int | None, dimensions: int):
        super().__init__()
        kind = nn.BatchNorm1d if dimensions == 1 else nn.BatchNorm2d
        self.norm = kind(channels, affine=num_classes is None)
        if num_classes is not None:
            self.gain, self.bias = nn.Embedding(num_classes, channels), nn.Embedding(num_classes, channels)
            nn.init.ones_(self.gain.weight)
            nn.init.zeros_(self.bias.weight)

    def forward(self, features: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        features = self.norm(features)
        if not hasattr(self, "gain"):
            return features
        shape = features.shape[:2] + (1,) * (features.ndim - 2)
        return self.gain(class_labels).view(shape) * features + self.bias(class_labels).view(shape)


class LatentInput(nn.Module):
    """Latents, with an embedding of the class beside them.

    Args:
        latent_dim: of the latents.
        num_classes: None for an unconditional generator.
    """

    def __init__(self, latent_dim: int, num_classes: int | None):
        super().__init__()
        self.embedding = None if num_classes is None else nn.Embedding(num_classes, latent_dim)
        self.dim = latent_dim * (1 if num_classes is None else 2)

    def forward(self, latents: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        """(B, latent_dim), (B,) long -> (B, dim).

        Raises:
            ValueError: labels for an unconditional generator, or none for a conditional one.
        """
        check_labels(self.embedding, class_labels)
        if self.embedding is None:
            return latents
        return torch.cat([latents, self.embedding(class_labels).to(latents.dtype)], 1)


class MinibatchStd(nn.Module):
    """Appends the standard deviation within groups of samples as one more feature (Karras et al. 2018, section 3).

    A generator whose samples are all alike gives itself away.

    Args:
        group_size: samples of a group; the largest divisor of the batch up to this is taken.
    """

    def __init__(self, group_size: int = 4):
        super().__init__()
        self.group_size = group_size

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, F, ...) -> (B, F + 1, ...)."""
        batch = len(features)
        group = max(size for size in range(1, min(self.group_size, batch) + 1) if batch % size == 0)
        groups = features.float().view(group, batch // group, *features.shape[1:])
        deviation = (groups.var(0, correction=0) + 1e-8).sqrt().flatten(1).mean(1)
        column = deviation.repeat(group).view(batch, 1, *[1] * (features.ndim - 2)).to(features.dtype)
        return torch.cat([features, column.expand(-1, -1, *features.shape[2:])], 1)


class LogitHead(nn.Module):
    """The logit of flat features: linear, plus their product with the class's embedding (Miyato & Koyama 2018, eq. 3).

    Args:
        features: how many.
        num_classes: None for an unconditional discriminator.
    """

    def __init__(self, features: int, num_classes: int | None):
        super().__init__()
        self.linear = nn.Linear(features, 1)
        self.embedding = None if num_classes is None else nn.Embedding(num_classes, features)
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(features))

    def forward(self, features: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        """(B, F), (B,) long -> (B,).

        Raises:
            ValueError: labels for an unconditional discriminator, or none for a conditional one.
        """
        check_labels(self.embedding, class_labels)
        logits = self.linear(features)[:, 0]
        if self.embedding is None:
            return logits
        return logits + (self.embedding(class_labels) * features).sum(1)


def packed(samples: torch.Tensor, packing: int) -> torch.Tensor:
    """Puts each `packing` neighbours of a batch side by side: (B, C, ...) -> (B / packing, packing * C, ...).

    The discriminator then judges packs, in which a collapsed generator repeats itself (PacGAN, Lin et al. 2018).
    """
    return samples if packing == 1 else samples.reshape(-1, packing * samples.shape[1], *samples.shape[2:])


def upsample(features: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, 2 H, 2 W), linearly: the [1, 3, 3, 1] filter of Huang et al. (2024, section 3.3).

    Nearest neighbours left the edges of a 4 x 4 grid in images of 64, for over a thousand steps.
    """
    return F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
