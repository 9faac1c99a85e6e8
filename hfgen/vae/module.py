"""The module that is trained: one forward pass of a VAE with its posterior, and the likelihood's scale."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from .likelihoods import LIKELIHOODS
from .losses import optimal_log_sigma, to_symmetric

# Adam moves a parameter by about the learning rate a step: the gain lets the scale keep up with the falling error.
SCALE_GAIN = 10.0


class VAEOutput(NamedTuple):
    """One forward pass: K samples of the posterior for each of B images."""

    mean: torch.Tensor
    """(B, ...) of the posterior."""
    logvar: torch.Tensor
    """(B, ...) of the posterior."""
    latents: torch.Tensor
    """(K, B, ...) z = mean + exp(logvar / 2) * noise."""
    output: torch.Tensor
    """(K, B, C, H, W) of the decoder: in [-1, 1], or logits under Bernoulli."""
    log_scale: torch.Tensor | None
    """0-d log of sigma or of the logistic's scale, in units of y = 2 * image - 1; `None` where the likelihood has
    none."""


class VAEModule(nn.Module):
    """Wraps an `AutoencoderMLP` or `AutoencoderKL` for training.

    Distributed wrappers need everything that has a gradient inside one forward, and `AutoencoderKL.forward` hides
    the posterior.

    Args:
        vae: the model.
        likelihood: a key of `LIKELIHOODS`.
        scale: how its scale is had: `learned`, a parameter (it starts at 1, or at `initial_scale`); `optimal`, from
            the squared error (Rybkin et al. 2021), kept as a running average for evaluation; a number, fixed.
        initial_scale: where a learned scale starts, in units of y = 2 * image - 1.
    """

    def __init__(self, vae: ModelMixin, likelihood: str, scale: str | float | None = None, initial_scale: float = 1.0):
        super().__init__()
        self.vae = vae
        self.likelihood = LIKELIHOODS[likelihood]
        self.scale_mode = None if self.likelihood.scale is None else scale if isinstance(scale, str) else "fixed"
        if self.scale_mode == "learned":
            start = math.log(initial_scale) - self.likelihood.minimum_log_scale
            # One element, not 0-d: FSDP shards no scalars.
            self.raw_log_scale = nn.Parameter(torch.tensor([math.log(math.expm1(start)) / SCALE_GAIN]))
        elif self.scale_mode == "optimal":
            self.register_buffer("running_mse", torch.ones(()))
            self.register_buffer("mse_updates", torch.zeros((), dtype=torch.long))
        elif self.scale_mode == "fixed":
            self.fixed_log_scale = math.log(scale)

    @property
    def log_scale(self) -> torch.Tensor | None:
        """0-d: the log scale to evaluate with."""
        if self.scale_mode == "learned":
            # A soft lower bound: the gradient never dies (Rybkin et al. 2021, section 3.3).
            return self.likelihood.minimum_log_scale + F.softplus(SCALE_GAIN * self.raw_log_scale[0])
        if self.scale_mode == "optimal":
            return optimal_log_sigma(self.running_mse, self.likelihood.minimum_log_scale)
        return torch.tensor(self.fixed_log_scale) if self.scale_mode == "fixed" else None

    @torch.no_grad()
    def update_mse(self, mse: torch.Tensor) -> None:
        """Moves the running squared error (`optimal` scale): the mean of the first 20 batches, then exponential."""
        self.mse_updates += 1
        self.running_mse.lerp_(mse.to(self.running_mse.dtype), 1.0 / self.mse_updates.clamp_max(20).float())

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> VAEOutput:
        """Encodes images, draws latents with the given noise, decodes them.

        Args:
            pixel_values: (B, C, H, W) in [0, 1].
            noise: (K, B, ...) standard normal, `...` the shape of one image's latents.
        """
        # Plain tuples, and no broadcast over a single sample: 40 us of a 4 ms step.
        (posterior,) = self.vae.encode(to_symmetric(pixel_values), return_dict=False)
        mean, logvar, std = posterior.mean.float(), posterior.logvar.float(), posterior.std.float()
        latents = (mean + std * noise[0]).unsqueeze(0) if len(noise) == 1 else mean + std * noise
        (output,) = self.vae.decode(latents.flatten(0, 1), return_dict=False)
        return VAEOutput(mean, logvar, latents, output.float().unflatten(0, noise.shape[:2]), self.log_scale)
