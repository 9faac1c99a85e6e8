"""The pipeline as a published folder carries it: only torch and diffusers, so that diffusers alone can run it."""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class GANPipeline(DiffusionPipeline):
    """A generator of images: latents from a normal distribution in, images out.

    Args:
        generator: (latents (B, latent_dim), class_labels (B,) or None) -> images (B, C, H, W) in [-1, 1].
        label_names: names of the classes, where they have some.
    """

    model_cpu_offload_seq = "generator"

    def __init__(self, generator, label_names: list[str] | None = None):
        super().__init__()
        self.register_modules(generator=generator)
        self.register_to_config(label_names=label_names)

    @property
    def num_classes(self) -> int | None:
        """How many classes the generator knows, or None."""
        return self.generator.config.get("num_classes")

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: int | str | list[int | str] | torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        truncation: float = 1.0,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draws latents z ~ truncation * N(0, I) and returns the generator's images.

        Args:
            batch_size: number of images.
            class_labels: for a conditional generator: the classes' numbers or names, one for all images or one each;
                by default all classes in turn.
            generator: a CPU generator gives the same images on every device.
            truncation: below 1, less varied and more typical images (Brock et al. 2019 call it the truncation trick).
            latents: (batch_size, latent_dim) instead of drawn ones; `truncation` scales them too.
            output_type: `pil`, `np` (B, H, W, C) or `pt` (B, C, H, W), the arrays in [0, 1].
            return_dict: an `ImagePipelineOutput`, or a tuple with the images.

        Raises:
            ValueError: another output type, classes for an unconditional generator, or classes that there are not.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type {output_type!r} is none of pil, np, pt")
        network, device = self.generator, self._execution_device
        labels = self.labels(class_labels, batch_size)
        if latents is None:
            shape = (batch_size, network.config.latent_dim)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=network.dtype)
        images = network((truncation * latents).to(device), None if labels is None else labels.to(device))
        images = (images.float() / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def labels(self, class_labels, batch_size: int) -> torch.Tensor | None:
        """`class_labels` of `__call__` as (batch_size,) long; None for an unconditional generator."""
        classes, names = self.num_classes, self.config.label_names or []
        if classes is None:
            if class_labels is not None:
                raise ValueError("class_labels: this generator knows no classes; leave them out")
            return None
        if class_labels is None:
            return torch.arange(batch_size) % classes
        if isinstance(class_labels, torch.Tensor):
            class_labels = class_labels.tolist()
        given = class_labels if isinstance(class_labels, list | tuple) else [class_labels] * batch_size
        numbers = [names.index(label) if label in names else _number(label) for label in given]
        for label in numbers:
            if not (isinstance(label, int) and 0 <= label < classes):
                known = ", ".join(map(str, names)) if names else f"0 to {classes - 1}"
                raise ValueError(f"class_labels: there is no class {label!r}; known are {known}")
        if len(numbers) != batch_size:
            raise ValueError(f"class_labels: {len(numbers)} of them for {batch_size} images")
        return torch.tensor(numbers, dtype=torch.long)


def _number(label: int | str) -> int | str:
    """A class's number that came as text."""
    return int(label) if isinstance(label, str) and label.isdigit() else label
