"""The variational autoencoder's losses: pure tensor functions.

Everything is in nats and summed over dimensions, never averaged over them, so that the two terms of the ELBO keep the
weights that Bayes' rule gives them. Images come as values in [0, 1]. Except under Bernoulli, a decoder's output, and
with it every scale (the Gaussian's sigma, the logistic's s), is in units of y = 2 * image - 1, whose whole range is 2:
the units of diffusers' `AutoencoderKL`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

IMAGE_DIMS = (-3, -2, -1)
LEVELS = 256


def to_symmetric(images: torch.Tensor) -> torch.Tensor:
    """y = 2 * images - 1, in one pass over the memory: [0, 1] -> [-1, 1]."""
    return torch.rsub(images, -1.0, alpha=-2.0)


def gaussian_kl_per_dimension(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of each latent dimension (Kingma & Welling 2014, appendix B).

    Args:
        mean, logvar: (B, ...).

    Returns:
        (B, D) in nats, D the product of the other dimensions.
    """
    return (0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)).flatten(1)


def gaussian_kl(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(q(z|x) || N(0, I)) of each sample: (B, ...) -> (B,) nats (Kingma & Welling 2014, appendix B)."""
    return gaussian_kl_per_dimension(mean, logvar).sum(1)


def bernoulli_nll(logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """-log Bernoulli(x; sigmoid(logits)) (Kingma & Welling 2014, equation 11).

    A probability only for binary images; for grey ones it is a cross-entropy, not a likelihood.

    Args:
        logits: (..., C, H, W).
        images: (..., C, H, W) in [0, 1], broadcast against the logits.

    Returns:
        (...) in nats.
    """
    target = images.expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(IMAGE_DIMS)


def gaussian_nll(mean: torch.Tensor, images: torch.Tensor, log_sigma: torch.Tensor) -> torch.Tensor:
    """-log N(y; mean, sigma^2) with y = 2 * images - 1 (Rybkin et al. 2021, equation 4).

    Args:
        mean: (..., C, H, W) in the units of y.
        images: (..., C, H, W) in [0, 1].
        log_sigma: log of sigma in the units of y; broadcast (one value for all pixels, or one each).

    Returns:
        (...) in nats: the negative log density of y, which can be below zero.
    """
    y = 2.0 * images - 1.0
    per_pixel = 0.5 * (y - mean).square() * (-2.0 * log_sigma).exp() + log_sigma
    return per_pixel.sum(IMAGE_DIMS) + 0.5 * math.log(2.0 * math.pi) * math.prod(mean.shape[-3:])


def squared_error(mean: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """The mean over every pixel of (y - mean)^2 with y = 2 * images - 1: a 0-d tensor in the squared units of y."""
    return (2.0 * images - 1.0 - mean).square().mean()


def optimal_log_sigma(mse: torch.Tensor, minimum: float) -> torch.Tensor:
    """The log sigma that maximises the Gaussian likelihood: sigma^2 = MSE (Rybkin et al. 2021, equation 6).

    Its gradient with respect to the decoder is zero in the loss (sigma is at its optimum), so it may be detached.

    Args:
        mse: the squared error over the batch, in the squared units of y.
        minimum: log sigma is not let below this: a density has no upper bound where the error is zero.
    """
    return (0.5 * mse.log()).clamp_min(minimum)


def discretized_logistic_nll(mean: torch.Tensor, images: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """-log of a logistic's mass on the pixel's bin (Kingma et al. 2016, C.2; Salimans et al. 2017, equation 2).

    The 256 levels lie at y = 2 k / 255 - 1; the two end bins are open, so that the levels' masses sum to 1.

    Args:
        mean: (..., C, H, W) in the units of y.
        images: (..., C, H, W) in [0, 1]; rounded to the nearest of the 256 levels.
        log_scale: log of the logistic's scale s in the units of y; broadcast.

    Returns:
        (...) in nats.
    """
    level = (images * (LEVELS - 1)).round()
    y = level * (2.0 / (LEVELS - 1)) - 1.0
    inverse_scale = (-log_scale).exp()
    half_bin = inverse_scale / (LEVELS - 1)
    centre = (y - mean) * inverse_scale
    # sigmoid(a) - sigmoid(b) = sigmoid(a) * sigmoid(-b) * (1 - exp(b - a)): exact in the far tails too.
    below_upper_edge = torch.where(level == LEVELS - 1, 0.0, F.logsigmoid(centre + half_bin))
    above_lower_edge = torch.where(level == 0, 0.0, F.logsigmoid(half_bin - centre))
    inner = (level > 0) & (level < LEVELS - 1)
    log_mass = below_upper_edge + above_lower_edge + inner * (-torch.expm1(-2.0 * half_bin)).log()
    return -log_mass.sum(IMAGE_DIMS)


def free_bits_kl(
    kl_per_dimension: torch.Tensor, free_bits: float, batch_mean: torch.Tensor | None = None
) -> torch.Tensor:
    """sum over dimensions of max(free_bits, KL averaged over the batch) (Kingma et al. 2016, equation 15).

    Args:
        kl_per_dimension: (B, D) nats.
        free_bits: nats a dimension that cost nothing.
        batch_mean: (D,) the average that decides which dimensions are free, where the batch is shared among
            processes; by default the mean over this batch.

    Returns:
        0-d tensor in nats; a dimension below `free_bits` has no gradient.
    """
    mean = kl_per_dimension.mean(0)
    decides = mean if batch_mean is None else batch_mean
    return torch.where(decides > free_bits, mean, free_bits).sum()


def log_importance_weights(
    nll: torch.Tensor, noise: torch.Tensor, latents: torch.Tensor, logvar: torch.Tensor
) -> torch.Tensor:
    """log p(x|z) + log p(z) - log q(z|x) of each sample z = mean + exp(logvar / 2) * noise (Burda et al. 2016, eq. 8).

    Args:
        nll: (K, B) -log p(x|z).
        noise, latents: (K, B, ...).
        logvar: (B, ...).

    Returns:
        (K, B) in nats.
    """
    # Both densities are normal: their constants cancel.
    prior_over_posterior = 0.5 * (noise.square() - latents.square() + logvar)
    return prior_over_posterior.flatten(2).sum(2) - nll


def iwae_bound(log_weights: torch.Tensor) -> torch.Tensor:
    """log of the mean importance weight, a lower bound of log p(x): (K, B) -> (B,) (Burda et al. 2016, equation 8)."""
    return torch.logsumexp(log_weights, 0) - math.log(log_weights.shape[0])


def kl_weight(step: int, beta: float, warmup_steps: int) -> float:
    """beta, reached linearly from 0 over the first `warmup_steps` optimizer steps (Sonderby et al. 2016; beta: Higgins
    et al. 2017, equation 4)."""
    return beta * min(1.0, step / warmup_steps) if warmup_steps > 0 else beta


def bits_per_dim(elbo: torch.Tensor | float, dimensions: int) -> torch.Tensor | float:
    """-elbo in bits a dimension; meaningful only where the likelihood is a probability mass, not a density."""
    return -elbo / (dimensions * math.log(2.0))
