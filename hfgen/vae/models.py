"""A fully connected variational autoencoder with the interface of diffusers' `AutoencoderKL`."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def height_and_width(sample_size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a diffusers `sample_size`: one number for a square image, or both."""
    return (sample_size, sample_size) if isinstance(sample_size, int) else (sample_size[0], sample_size[1])


def latent_shape(vae: ModelMixin) -> tuple[int, int, int]:
    """The shape (channels, height, width) of one image's latents, of an `AutoencoderMLP` or an `AutoencoderKL`."""
    if isinstance(vae, AutoencoderMLP):
        return (vae.config.latent_channels, 1, 1)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    height, width = height_and_width(vae.config.sample_size)
    return (vae.config.latent_channels, height // factor, width // factor)


def _perceptron(sizes: list[int], act_fn: str, dropout: float, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(sizes[:-2], sizes[1:-1], strict=True):
        layers.append(nn.Linear(fan_in, fan_out))
        if batch_norm:
            layers.append(nn.BatchNorm1d(fan_out))
        layers.append(ACTIVATIONS[act_fn]())
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


class AutoencoderMLP(ModelMixin, ConfigMixin):
    """A fully connected variational autoencoder with a diagonal Gaussian posterior (Kingma & Welling 2014, C.2).

    It has the interface of diffusers' `AutoencoderKL`: `encode(x).latent_dist`, `decode(z).sample`,
    `config.scaling_factor`, `from_pretrained`.

    Args:
        sample_size: side of a square image, or [height, width].
        in_channels: colour channels of the image.
        latent_channels: latent dimensions; latents have the shape (B, latent_channels, 1, 1).
        hidden_sizes: widths of the encoder's hidden layers; the decoder has them in reverse. Empty: both are linear.
        act_fn: a key of `ACTIVATIONS`.
        dropout: probability, after each hidden layer.
        batch_norm: batch normalisation before each activation.
        unit_inputs: the encoder sees [0, 1], where a background of zeros stays zero, instead of [-1, 1].
        scaling_factor: 1 / standard deviation of the latents over the training data.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | list[int] = 28,
        in_channels: int = 1,
        latent_channels: int = 32,
        hidden_sizes: list[int] | tuple[int, ...] = (512, 512),
        act_fn: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        unit_inputs: bool = False,
        scaling_factor: float = 1.0,
    ):
        super().__init__()
        self.image_shape = (in_channels, *height_and_width(sample_size))
        pixels, hidden = math.prod(self.image_shape), list(hidden_sizes)
        self.encoder = _perceptron([pixels, *hidden, 2 * latent_channels], act_fn, dropout, batch_norm)
        self.decoder = _perceptron([latent_channels, *reversed(hidden), pixels], act_fn, dropout, batch_norm)

    @apply_forward_hook
    def encode(
        self, x: torch.Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """The posterior of images (B, C, H, W) in [-1, 1]; its samples have the shape (B, latent_channels, 1, 1)."""
        pixels = x.flatten(1)
        hidden = self.encoder(torch.add(0.5, pixels, alpha=0.5) if self.config.unit_inputs else pixels)
        posterior = DiagonalGaussianDistribution(hidden[:, :, None, None])
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """The decoder's output (B, C, H, W) for latents (B, latent_channels, 1, 1).

        In [-1, 1], or logits if the model was trained under a Bernoulli likelihood. `generator` is not used: it is
        there because pipelines pass it to `AutoencoderKL`.
        """
        sample = self.decoder(z.flatten(1)).unflatten(1, self.image_shape)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """The reconstruction of images (B, C, H, W) in [-1, 1] from the posterior's mode, or from a sample of it."""
        posterior = self.encode(sample).latent_dist
        return self.decode(posterior.sample(generator) if sample_posterior else posterior.mode(), return_dict)
