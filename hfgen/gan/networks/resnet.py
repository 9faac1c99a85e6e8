"""Residual networks: pre-activation blocks (SNGAN: Miyato et al. 2018), by default without normalisation and with the
initialisation that this takes (R3GAN: Huang et al. 2024, section 3.4; Fixup: Zhang et al. 2019)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from .layers import BatchNorm, LatentInput, LogitHead, MinibatchStd, activation, base_size, packed, upsample


def _initialise(module: nn.Module, blocks: int) -> None:
    """He's initialisation; the residual branches start at 0, their first layers divided by sqrt(blocks)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, a=0.2)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for block in module.modules():
        if isinstance(block, ResidualBlock):
            with torch.no_grad():
                block.first.weight.div_(math.sqrt(max(blocks, 1)))
            nn.init.zeros_(block.second.weight)


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), all (B, C, H, W)."""

    def __init__(self, channels: int, act_fn: str, batch_norm: bool, num_classes: int | None, dropout: float = 0.0):
        super().__init__()
        self.norms = nn.ModuleList(BatchNorm(channels, num_classes, 2) for _ in range(2 if batch_norm else 0))
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = activation(act_fn)
        self.dropout = nn.Dropout2d(dropout) if dropout > 0 else nn.Identity()

    def forward(self, x: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        hidden = self.norms[0](x, class_labels) if self.norms else x
        hidden = self.first(self.act(hidden))
        hidden = self.norms[1](hidden, class_labels) if self.norms else hidden
        return x + self.second(self.dropout(self.act(hidden)))


class GeneratorResNet(ModelMixin, ConfigMixin):
    """Latents -> images: stages of residual blocks, the sides doubled between them.

    Args:
        sample_size: side of a square image, or [height, width]; 2^(stages - 1) must divide it.
        out_channels: colour channels.
        latent_dim: latent dimensions; latents are standard normal.
        block_out_channels: channels of each stage, from the smallest image to the largest.
        layers_per_block: residual blocks of a stage.
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
        block_out_channels: list[int] | tuple[int, ...] = (256, 128, 64, 32),
        layers_per_block: int = 1,
        act_fn: str = "leaky_relu",
        batch_norm: bool = False,
        num_classes: int | None = None,
    ):
        super().__init__()
        channels = list(block_out_channels)
        self.base = (channels[0], *base_size(sample_size, len(channels) - 1))
        self.input = LatentInput(latent_dim, num_classes)
        self.stem = nn.Linear(self.input.dim, math.prod(self.base))
        self.transitions = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(channels[:-1], channels[1:], strict=True))
        self.stages = nn.ModuleList(
            nn.ModuleList(ResidualBlock(c, act_fn, batch_norm, num_classes) for _ in range(layers_per_block))
            for c in channels
        )
        self.norm = BatchNorm(channels[-1], num_classes, 2) if batch_norm else None
        self.act = activation(act_fn)
        self.out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)
        _initialise(self, len(channels) * layers_per_block)
        nn.init.kaiming_normal_(self.stem.weight, nonlinearity="linear")
        nn.init.xavier_normal_(self.out.weight)

    def forward(self, latents: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """(B, latent_dim), (B,) long -> images (B, C, H, W) in [-1, 1]."""
        hidden = self.stem(self.input(latents, class_labels)).unflatten(1, self.base)
        for index, stage in enumerate(self.stages):
            if index > 0:
                hidden = upsample(self.transitions[index - 1](hidden))
            for block in stage:
                hidden = block(hidden, class_labels)
        if self.norm is not None:
            hidden = self.norm(hidden, class_labels)
        return self.out(self.act(hidden)).tanh()


class DiscriminatorResNet(ModelMixin, ConfigMixin):
    """Images -> logits: stages of residual blocks, the sides halved between them by averages.

    Args:
        sample_size: side of a square image, or [height, width]; 2^(stages - 1) must divide it.
        in_channels: colour channels.
        block_out_channels: channels of each stage in reverse: from the smallest image to the largest.
        layers_per_block: residual blocks of a stage.
        act_fn: `relu`, `leaky_relu` or `silu`.
        dropout: probability, in each block.
        batch_norm: batch normalisation before each activation.
        minibatch_std: see [`MinibatchStd`], before the last layer.
        packing: samples that are judged together.
        num_classes: None for an unconditional discriminator; otherwise a projection discriminator.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | list[int] = 32,
        in_channels: int = 3,
        block_out_channels: list[int] | tuple[int, ...] = (256, 128, 64, 32),
        layers_per_block: int = 1,
        act_fn: str = "leaky_relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        minibatch_std: bool = False,
        packing: int = 1,
        num_classes: int | None = None,
    ):
        super().__init__()
        channels = list(reversed(block_out_channels))
        self.stem = nn.Conv2d(packing * in_channels, channels[0], 3, padding=1)
        self.transitions = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(channels[:-1], channels[1:], strict=True))
        self.stages = nn.ModuleList(
            nn.ModuleList(ResidualBlock(c, act_fn, batch_norm, None, dropout) for _ in range(layers_per_block))
            for c in channels
        )
        self.act = activation(act_fn)
        self.deviation = MinibatchStd() if minibatch_std else None
        side = math.prod(base_size(sample_size, len(channels) - 1))
        self.head = LogitHead((channels[-1] + minibatch_std) * side, num_classes)
        _initialise(self, len(channels) * layers_per_block)

    def forward(self, samples: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C, H, W) in [-1, 1], (B,) long -> logits (B / packing,)."""
        hidden = self.stem(packed(samples, self.config.packing))
        for index, stage in enumerate(self.stages):
            if index > 0:
                hidden = self.transitions[index - 1](F.avg_pool2d(hidden, 2))
            for block in stage:
                hidden = block(hidden, None)
        hidden = self.act(hidden)
        if self.deviation is not None:
            hidden = self.deviation(hidden)
        return self.head(hidden.flatten(1), class_labels)
