"""Sampling, reconstructing and interpolating with a trained VAE."""

from __future__ import annotations

import math

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor

from ..errors import BadInput
from .likelihoods import LIKELIHOODS, binarize
from .models import AutoencoderMLP, latent_shape


class VAEPipeline(DiffusionPipeline):
    """A VAE and the likelihood it was trained with: `VAEPipeline.from_pretrained(folder_or_hub_id)`.

    Args:
        vae: an `AutoencoderMLP` or diffusers' `AutoencoderKL`.
        likelihood: a key of `LIKELIHOODS`: what the decoder's output means.
        scale: the Gaussian's sigma or the logistic's scale, in units of y = 2 * image - 1; `None` for Bernoulli.
        binarization: how images were made binary in training: `none`, `dynamic` or `threshold`.
    """

    model_cpu_offload_seq = "vae"

    def __init__(
        self,
        vae: AutoencoderMLP | AutoencoderKL,
        likelihood: str = "bernoulli",
        scale: float | None = None,
        binarization: str = "none",
    ):
        super().__init__()
        if likelihood not in LIKELIHOODS:
            raise BadInput(f"likelihood {likelihood!r} is none of {', '.join(LIKELIHOODS)}")
        if (scale is None) != (LIKELIHOODS[likelihood].scale is None):
            raise BadInput(f"likelihood {likelihood} goes {'with' if scale is None else 'without'} a scale")
        self.register_modules(vae=vae)
        self.register_to_config(likelihood=likelihood, scale=scale, binarization=binarization)

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str:
        """Fetches a Hub repository's configs and safetensors; diffusers' own refuses components that it does not
        define."""
        from huggingface_hub import snapshot_download

        known = ("cache_dir", "force_download", "local_files_only", "revision", "token")
        options = {name: kwargs[name] for name in known if kwargs.get(name)}
        patterns = [cls.config_name, "vae/*.json", "vae/*.safetensors"]
        return snapshot_download(pretrained_model_name, allow_patterns=patterns, **options)

    @property
    def log_scale(self) -> torch.Tensor | None:
        """0-d log of `scale`, or `None`."""
        scale = self.config.scale
        return None if scale is None else torch.tensor(math.log(scale), device=self._execution_device)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape of one image's latents."""
        return latent_shape(self.vae)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        temperature: float = 1.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draws z ~ N(0, temperature^2 I), unscaled, and returns the expected images E[x|z].

        Args:
            batch_size: number of images.
            generator: a CPU generator gives the same images on every device.
            temperature: below 1, less varied and more typical images.
            output_type: `pil`, `np` (B, H, W, C) or `pt` (B, C, H, W), the arrays in [0, 1].
            return_dict: an `ImagePipelineOutput`, or a tuple with the images.
        """
        vae = self.vae
        shape = (batch_size, *self.latent_shape)
        z = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=vae.dtype)
        return self._output(self.decode(temperature * z), output_type, return_dict)

    @torch.no_grad()
    def encode(self, images, generator: torch.Generator | None = None) -> DiagonalGaussianDistribution:
        """q(z|x) of images, made binary first if the model was trained so.

        Args:
            images: (B, C, H, W), uint8 or floats in [0, 1]; or a list of PIL images.
            generator: for dynamic binarisation; without it each pixel takes its likelier value.
        """
        images = self.preprocess(images, generator)
        return self.vae.encode((2.0 * images - 1.0).to(self.vae.dtype)).latent_dist

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """E[x|z] in [0, 1], (B, C, H, W), of latents (B, ...)."""
        return LIKELIHOODS[self.config.likelihood].mean(self.vae.decode(latents).sample.float())

    @torch.no_grad()
    def reconstruct(self, images, generator: torch.Generator | None = None, output_type: str = "pil"):
        """Images decoded from the means of their posteriors; arguments as in [`encode`] and `__call__`."""
        return self._output(self.decode(self.encode(images, generator).mode()), output_type, False)[0]

    @torch.no_grad()
    def interpolate(self, a, b, steps: int = 8, output_type: str = "pil"):
        """Decodes `steps` points on the straight line between the posterior means of each image of `a` and of `b`.

        Args:
            a, b: as many images each, as [`encode`] takes them.
            steps: points, both ends included.
            output_type: as in `__call__`.

        Returns:
            B * steps images; the first `steps` lead from `a[0]` to `b[0]`.
        """
        start, end = self.encode(a).mode(), self.encode(b).mode()
        weights = torch.linspace(0, 1, steps, device=start.device, dtype=start.dtype).view(1, -1, 1, 1, 1)
        points = torch.lerp(start[:, None], end[:, None], weights).flatten(0, 1)
        return self._output(self.decode(points), output_type, False)[0]

    def preprocess(self, images, generator: torch.Generator | None = None) -> torch.Tensor:
        """Images as the model was trained to see them: (B, C, H, W) float32 in [0, 1], on its device."""
        if not torch.is_tensor(images):
            images = torch.from_numpy(np.stack([self._to_array(image) for image in images])).contiguous()
        scale = 1.0 if images.is_floating_point() else 255.0
        images = images.to(self._execution_device).float() / scale
        binarization = self.config.binarization
        if binarization == "dynamic" and generator is None:
            binarization = "threshold"
        uniform = None
        if binarization == "dynamic":
            uniform = torch.rand(images.shape, generator=generator, device=generator.device).to(images.device)
        return binarize(images, binarization, uniform)

    def _to_array(self, image: PIL.Image.Image) -> np.ndarray:
        array = np.array(image.convert("L" if self.vae.config.in_channels == 1 else "RGB"))
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)

    def _output(self, images: torch.Tensor, output_type: str, return_dict: bool) -> ImagePipelineOutput | tuple:
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).numpy()
            if output_type == "pil":
                images = self.numpy_to_pil(images)
            elif output_type != "np":
                raise BadInput(f"output_type {output_type!r} is none of pil, np, pt")
        return ImagePipelineOutput(images=images) if return_dict else (images,)
