"""Strided convolutions without residual connections (DCGAN: Radford et al. 2016)."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from .layers import BatchNorm, LatentInput, LogitHead, MinibatchStd, activation, base_size, packed


def _small_weights(module: nn.Module) -> None:
    """N(0, 0.02^2), as the paper has it."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class GeneratorDCGAN(ModelMixin, ConfigMixin):
    """Latents -> images: each block doubles the sides with a transposed convolution.

    Args:
        sample_size: side of a square image, or [height, width]; 2^blocks must divide it.
        out_channels: colour channels.
        latent_dim: latent dimensions; latents are standard normal.
        block_out_channels: channels before each doubling, from the smallest image to the largest.
        act_fn: `relu`, `leaky_relu` or `silu`.
        batch_norm: batch normalisation before each activation (conditional where there are classes).
        num_classes: None for an unconditional generator.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | list[int] = 32,
        out_channels: int = 3,
        latent_dim: int = 64,
        block_out_channels: list[int] | tuple[int, ...] = (256, 128, 64),
        act_fn: str = "relu",
        batch_norm: bool = True,
        num_classes: int | None = None,
    ):
        super().__init__()
        channels = list(block_out_channels)
        self.base = (channels[0], *base_size(sample_size, len(channels)))
        self.input = LatentInput(latent_dim, num_classes)
        self.stem = nn.Linear(self.input.dim, math.prod(self.base))
        self.norms = nn.ModuleList(BatchNorm(c, num_classes, 2) for c in channels if batch_norm)
        outs = [*channels[1:], out_channels]
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, 2, 1, bias=not batch_norm or index + 1 == len(channels))
            for index, (a, b) in enumerate(zip(channels, outs, strict=True))
        )
        self.act = activation(act_fn)
        _small_weights(self)

    def forward(self, latents: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """(B, latent_dim), (B,) long -> images (B, C, H, W) in [-1, 1]."""
        hidden = self.stem(self.input(latents, class_labels)).unflatten(1, self.base)
        for index, layer in enumerate(self.layers):
            if self.norms:
                hidden = self.norms[index](hidden, class_labels)
            hidden = layer(self.act(hidden))
        return hidden.tanh()


class DiscriminatorDCGAN(ModelMixin, ConfigMixin):
    """Images -> logits: each block halves the sides with a strided convolution.

    Args:
        sample_size: side of a square image, or [height, width]; 2^blocks must divide it.
        in_channels: colour channels.
        block_out_channels: channels after each halving in reverse: from the smallest image to the largest.
        act_fn: `relu`, `leaky_relu` or `silu`.
        dropout: probability, after each block.
        batch_norm: batch normalisation in every block but the first.
        minibatch_std: see [`MinibatchStd`], before the last layer.
        packing: samples that are judged together.
        num_classes: None for an unconditional discriminator; otherwise a projection discriminator.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | list[int] = 32,
        in_channels: int = 3,
        block_out_channels: list[int] | tuple[int, ...] = (256, 128, 64),
        act_fn: str = "leaky_relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        minibatch_std: bool = False,
        packing: int = 1,
        num_classes: int | None = None,
    ):
        super().__init__()
        channels = [packing * in_channels, *reversed(block_out_channels)]
        layers: list[nn.Module] = []
        for index, (a, b) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
            normed = batch_norm and index > 0
            layers.append(nn.Conv2d(a, b, 4, 2, 1, bias=not normed))
            if normed:
                layers.append(nn.BatchNorm2d(b))
            layers.append(activation(act_fn))
            if dropout > 0:
                layers.append(nn.Dropout2d(dropout))
        if minibatch_std:
            layers.append(MinibatchStd())
        self.features = nn.Sequential(*layers)
        side = math.prod(base_size(sample_size, len(block_out_channels)))
        self.head = LogitHead((channels[-1] + minibatch_std) * side, num_classes)
        _small_weights(self)

    def forward(self, samples: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C, H, W) in [-1, 1], (B,) long -> logits (B / packing,)."""
        return self.head(self.features(packed(samples, self.config.packing)).flatten(1), class_labels)
