"""Measuring a published generator against real images."""

from __future__ import annotations

import numpy as np
import torch

from ..evaluation import FeatureModel, evaluate_samples
from ..figures import to_bytes
from ..precision import full_float32
from .pipeline import GANPipeline


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """[-1, 1] -> [0, 1], cut off at both ends."""
    return torch.add(0.5, images, alpha=0.5).clamp(0, 1)


@torch.no_grad()
@full_float32()
def draw_images(
    pipeline: GANPipeline,
    count: int,
    *,
    labels: np.ndarray | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> torch.Tensor:
    """Samples of a pipeline, a batch at a time.

    Args:
        pipeline: the model.
        count: how many.
        labels: int64 of some data set: a conditional generator makes its classes as often; by default all as often.
        batch_size: images at a time.
        seed: of the latents and classes.

    Returns:
        uint8 (count, C, H, W), on the CPU: what a PNG would hold.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = None
    if pipeline.num_classes:
        known = torch.arange(pipeline.num_classes) if labels is None else torch.from_numpy(np.asarray(labels))
        classes = known[torch.randint(len(known), (count,), generator=generator)]
    parts = []
    for begin in range(0, count, batch_size):
        size = min(batch_size, count - begin)
        chosen = None if classes is None else classes[begin : begin + size]
        images = pipeline(size, class_labels=chosen, generator=generator, output_type="pt").images
        parts.append(to_bytes(images))
    return torch.cat(parts)


def evaluate_gan(
    pipeline: GANPipeline,
    dataset,
    feature_model: FeatureModel,
    *,
    num_samples: int = 10_000,
    training=None,
    batch_size: int = 256,
    seed: int = 0,
) -> dict[str, float | int | str]:
    """Measures a generator against real images that it was not trained on.

    Args:
        pipeline: the model.
        dataset: real images, an [`hfgen.data.ImageDataset`].
        feature_model: the embedding in which they are compared.
        num_samples: how many samples, and real images at most; as many of each are taken as there are of both.
        training: the images that it was trained on, to count copies of them; a stream is not searched.
        batch_size: images made and embedded at a time.
        seed: of the samples.

    Returns:
        dict: see [`hfgen.evaluation.evaluate_samples`].
    """
    count = min(num_samples, len(dataset))
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int)
    reals = dataset if count == len(dataset) else dataset.select(chosen)
    samples = draw_images(pipeline, count, labels=dataset.labels, batch_size=batch_size, seed=seed)
    searched = training if hasattr(training, "__getitems__") else None
    return evaluate_samples(samples, reals, feature_model, training=searched, batch_size=batch_size)
