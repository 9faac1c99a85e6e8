"""What a decoder's output says about an image. Another likelihood is one loss and one entry in LIKELIHOODS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .losses import bernoulli_nll, discretized_logistic_nll, gaussian_nll


@dataclass(frozen=True)
class Likelihood:
    """p(x|z), given the decoder's output.

    Attributes:
        nll: (output (..., C, H, W), images (..., C, H, W) in [0, 1], log_scale or None) -> (...) nats.
        mean: output -> the expected image, clamped to [0, 1].
        scale: the name of its scale parameter in logs (`None`: it has none); in units of y = 2 * image - 1.
        minimum_log_scale: the log scale is kept above this, for a density that has no upper bound.
        mass: True if p(x|z) is a probability mass over 256 levels, so that bits a dimension are defined.
    """

    nll: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    mean: Callable[[torch.Tensor], torch.Tensor]
    scale: str | None = None
    minimum_log_scale: float = 0.0
    mass: bool = False

    def has_bits_per_dim(self, binarization: str) -> bool:
        """Whether -log2 p(x) is the length of a code for x: probability masses, or Bernoulli on binary images."""
        return self.mass or (self.scale is None and binarization != "none")


def _from_symmetric(output: torch.Tensor) -> torch.Tensor:
    return (0.5 * output + 0.5).clamp(0.0, 1.0)


LIKELIHOODS: dict[str, Likelihood] = {
    "bernoulli": Likelihood(nll=lambda output, images, _: bernoulli_nll(output, images), mean=torch.sigmoid),
    # Rybkin et al. 2021 bound log sigma at -6; below it sigma is a third of the step between two of 256 levels.
    "gaussian": Likelihood(nll=gaussian_nll, mean=_from_symmetric, scale="sigma", minimum_log_scale=-6.0),
    # Salimans et al. 2017 bound the log scale at -7.
    "discretized_logistic": Likelihood(
        nll=discretized_logistic_nll, mean=_from_symmetric, scale="scale", minimum_log_scale=-7.0, mass=True
    ),
}


def binarize(images: torch.Tensor, binarization: str, uniform: torch.Tensor | None = None) -> torch.Tensor:
    """Images in [0, 1] as the Bernoulli likelihood is to see them.

    Args:
        images: (B, C, H, W) in [0, 1].
        binarization: `none`; `threshold` (above 0.5); `dynamic` (each pixel is 1 with probability its grey value,
            drawn anew each time; Burda et al. 2016, section 5.1, after Salakhutdinov & Murray 2008).
        uniform: uniform noise in [0, 1), shaped as the images; for `dynamic`.

    Returns:
        (B, C, H, W), in {0, 1} unless `none`.
    """
    if binarization == "none":
        return images
    if binarization == "threshold":
        return (images > 0.5).to(images.dtype)
    if binarization == "dynamic":
        return (uniform < images).to(images.dtype)
    raise ValueError(f"unknown binarization {binarization!r}")
