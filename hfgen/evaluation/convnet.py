"""A small convnet for small images: what embeds them where no pretrained network can be had."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Larger images are averaged down to this many pixels a side first.
LARGEST_SIDE = 64
FEATURES = 64


class ConvFeatures(nn.Module):
    """Strided 3x3 convolutions down to 4 pixels a side, and one linear layer to the `FEATURES` features.

    Args:
        channels, height, width: of the images.
        num_classes: of a linear head on the rectified features; 0 makes no head.
    """

    def __init__(self, channels: int, height: int, width: int, num_classes: int = 0):
        super().__init__()
        self.config = {"channels": channels, "height": height, "width": width, "num_classes": num_classes}
        self.side = (min(height, LARGEST_SIDE), min(width, LARGEST_SIDE))
        sides, layers, inputs = self.side, [], channels
        for outputs in (32, 64) if max(sides) <= 16 else (16, 32, 64, 64):
            if len(layers) > 0 and max(sides) <= 4 and outputs == inputs:
                break
            stride = 2 if max(sides) > 4 else 1
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            sides, inputs = tuple(-(-side // stride) for side in sides), outputs
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * sides[0] * sides[1], FEATURES))
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(FEATURES, num_classes)) if num_classes else None
        self.register_buffer("centre", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, features). Images of another size are resized."""
        return (self._raw(images) - self.centre) / self.scale

    def classify(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> logits (B, num_classes)."""
        return self.head(self._raw(images))

    def _raw(self, images: Tensor) -> Tensor:
        if images.shape[2:] != self.side:
            images = F.interpolate(images, self.side, mode="bilinear", antialias=True)
        return self.body(images * 2 - 1)

    def standardise(self, images: Tensor) -> None:
        """From here on features have mean 0 and, over all of them, variance 1 on these images: one factor, so that
        what is near stays near, and figures of different datasets have one scale."""
        raw = torch.cat([self._raw(batch) for batch in images.split(256)])
        self.centre.copy_(raw.mean(0))
        self.scale.copy_(raw.var(0).mean().sqrt())


def as_float(images: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images
