"""Fully connected networks, for vectors and small images."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from .layers import BatchNorm, LatentInput, LogitHead, MinibatchStd, activation, packed, sample_shape


class GeneratorMLP(ModelMixin, ConfigMixin):
    """Latents -> samples through fully connected layers.

    Args:
        sample_size: side of a square image, or [height, width]; None for vectors.
        out_channels: colour channels, or the vectors' length.
        latent_dim: latent dimensions; latents are standard normal.
        hidden_sizes: widths of the hidden layers.
        act_fn: `relu`, `leaky_relu` or `silu`.
        batch_norm: batch normalisation before each activation (conditional where there are classes).
        num_classes: None for an unconditional generator.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | list[int] | None = None,
        out_channels: int = 2,
        latent_dim: int = 64,
        hidden_sizes: list[int] | tuple[int, ...] = (256, 256),
        act_fn: str = "leaky_relu",
        batch_norm: bool = False,
        num_classes: int | None = None,
    ):
        super().__init__()
        self.shape = sample_shape(sample_size, out_channels)
        self.input = LatentInput(latent_dim, num_classes)
        sizes = [self.input.dim, *hidden_sizes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.norms = nn.ModuleList(BatchNorm(size, num_classes, 1) for size in hidden_sizes if batch_norm)
        self.act = activation(act_fn)
        self.out = nn.Linear(sizes[-1], math.prod(self.shape))

    def forward(self, latents: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """(B, latent_dim), (B,) long -> images (B, C, H, W) in [-1, 1], or vectors (B, C)."""
        hidden = self.input(latents, class_labels)
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden)
            if self.norms:
                hidden = self.norms[index](hidden, class_labels)
            hidden = self.act(hidden)
        samples = self.out(hidden)
        return samples if len(self.shape) == 1 else samples.tanh().unflatten(1, self.shape)


class DiscriminatorMLP(ModelMixin, ConfigMixin):
    """Samples -> logits through fully connected layers.

    Args:
        sample_size, in_channels: as the generator's `sample_size` and `out_channels`.
        hidden_sizes: widths of the hidden layers.
        act_fn: `relu`, `leaky_relu` or `silu`.
        dropout: probability, after each hidden layer.
        batch_norm: batch normalisation before each activation but the first.
        minibatch_std: see [`MinibatchStd`], before the last layer.
        packing: samples that are judged together.
        num_classes: None for an unconditional discriminator; otherwise a projection discriminator.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | list[int] | None = None,
        in_channels: int = 2,
        hidden_sizes: list[int] | tuple[int, ...] = (256, 256),
        act_fn: str = "leaky_relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        minibatch_std: bool = False,
        packing: int = 1,
        num_classes: int | None = None,
    ):
        super().__init__()
        sizes = [packing * math.prod(sample_shape(sample_size, in_channels)), *hidden_sizes]
        layers: list[nn.Module] = []
        for index, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            layers.append(nn.Linear(fan_in, fan_out))
            if batch_norm and index > 0:
                layers.append(nn.BatchNorm1d(fan_out))
            layers.append(activation(act_fn))
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        if minibatch_std:
            layers.append(MinibatchStd())
        self.features = nn.Sequential(*layers)
        self.head = LogitHead(sizes[-1] + minibatch_std, num_classes)

    def forward(self, samples: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """Images (B, C, H, W) in [-1, 1] or vectors (B, C), (B,) long -> logits (B / packing,)."""
        return self.head(self.features(packed(samples.flatten(1), self.config.packing)), class_labels)
