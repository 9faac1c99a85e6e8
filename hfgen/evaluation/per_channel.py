"""The embedding of stacked images: each channel is a grey image of its own."""

from __future__ import annotations

from torch import Tensor, nn


class PerChannel(nn.Module):
    """Features of the channels side by side, and their classes as one number (Metz et al. 2017, section 3.3.1,
    https://arxiv.org/abs/1611.02163: stacked MNIST's modes are what a classifier sees in the three channels).

    Args:
        network: grey images (B, 1, H, W) in [0, 1] -> features (B, dim); with a method `classify`, -> logits.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, C * dim)."""
        return self.network(images.flatten(0, 1)[:, None]).reshape(len(images), -1)

    def classify(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> log-probabilities (B, num_classes^C), numbered as [`joint_labels`] does."""
        logits = self.network.classify(images.flatten(0, 1)[:, None]).log_softmax(1)
        joint, *others = logits.reshape(*images.shape[:2], -1).unbind(1)
        for each in others:
            joint = (joint[:, :, None] + each[:, None]).flatten(1)
        return joint
