"""One forward of the discriminator over all groups of samples that a loss compares."""

from __future__ import annotations

import torch
from torch import nn

from .networks.layers import MinibatchStd


class GroupDiscriminator(nn.Module):
    """Calls a discriminator on several groups of samples: real, generated, in between, shifted.

    Distributed wrappers want everything that has a gradient in one forward. The groups go through the network as one
    batch, unless it has statistics of the batch, which are each group's own (Ioffe & Szegedy's normalisation would
    otherwise tell real from generated samples by their company).

    Args:
        discriminator: samples (B, ...), labels (B,) or None -> logits (B / packing,).
    """

    def __init__(self, discriminator: nn.Module):
        super().__init__()
        self.discriminator = discriminator
        kinds = (nn.modules.batchnorm._BatchNorm, MinibatchStd)
        self.group_by_group = any(isinstance(layer, kinds) for layer in discriminator.modules())

    def forward(self, groups: list[torch.Tensor], labels: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The logits of each group.

        Args:
            groups: each (B, ...), all of one shape.
            labels: (B,) long, the same for every group; or None.

        Returns:
            a list of (B / packing,) float32.
        """
        if self.group_by_group or len(groups) == 1:
            return [self.discriminator(group, labels).float() for group in groups]
        labels = None if labels is None else labels.repeat(len(groups))
        return list(self.discriminator(torch.cat(groups), labels).float().chunk(len(groups)))
