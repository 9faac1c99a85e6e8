"""The pictures of a trained VAE: samples beside real images, reconstructions, interpolations, the latent space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..figures import image_grid, interleave_rows, latent_scatter, save_figure, to_bytes
from .evaluation import pixel_batches
from .pipeline import VAEPipeline

COLUMNS = 8
SCATTERED_IMAGES = 1000


def save_figures(pipeline: VAEPipeline, dataset, run_dir: Path, *, seed: int = 0) -> list[Path]:
    """Draws them into figures/ of a run folder.

    Args:
        pipeline: the trained model.
        dataset: held-out images, an [`hfgen.data.ImageDataset`]; its labels colour the latent space.
        run_dir: the run folder.
        seed: of the samples.

    Returns:
        list[Path]: the PNG files.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = min(4, max(1, len(dataset) // COLUMNS))
    columns = min(COLUMNS, len(dataset))
    shown = rows * columns
    indices = np.linspace(0, len(dataset) - 1, shown).round().astype(int)
    real = dataset.__getitems__(indices.tolist())["pixel_values"]
    seen = pipeline.preprocess(real)
    rebuilt = pipeline.reconstruct(real, output_type="pt")
    pairs = columns // 2 * 2
    middle = pipeline.interpolate(real[:pairs:2], real[1:pairs:2], COLUMNS, output_type="pt") if pairs else None
    samples = pipeline(shown, generator=generator, output_type="pt").images

    paths = [
        save_figure(
            run_dir,
            "samples",
            image_grid(to_bytes(samples).numpy(), columns),
            "Generated",
            "Expected images of latents drawn from the prior.",
        ),
        save_figure(run_dir, "real", image_grid(real.numpy(), columns), "Real", "Held-out images."),
        save_figure(
            run_dir,
            "reconstructions",
            image_grid(interleave_rows(to_bytes(seen).numpy(), to_bytes(rebuilt).numpy(), columns=columns), columns),
            "Reconstructed",
            "Rows of held-out images, as the model sees them; below each, decoded from its posterior's mean.",
        ),
    ]
    if middle is not None:
        paths.append(
            save_figure(
                run_dir,
                "interpolations",
                image_grid(to_bytes(middle).numpy(), COLUMNS),
                "Interpolated",
                "Each row decodes a straight line between the posterior means of two held-out images.",
            )
        )
    points, share = latent_plane(pipeline, dataset)
    labels = getattr(dataset, "labels", None)
    figure = latent_scatter(
        points, None if labels is None else labels[: len(points)], getattr(dataset, "label_names", None)
    )
    caption = f"Posterior means of {len(points)} held-out images, in the plane in which they vary most"
    paths.append(
        save_figure(run_dir, "latents", figure, "Latent space", f"{caption} ({share:.0%} of their variance).")
    )
    return paths


@torch.no_grad()
def latent_plane(pipeline: VAEPipeline, dataset, count: int = SCATTERED_IMAGES) -> tuple[np.ndarray, float]:
    """Posterior means of the first `count` images on their first two principal components.

    Returns:
        points (N, 2), and the share of the variance in that plane.
    """
    some = dataset.select(range(min(count, len(dataset))))
    means = [pipeline.encode(images).mode().float().flatten(1).cpu() for images in pixel_batches(some, 128)]
    mean = torch.cat(means).double()
    centred = mean - mean.mean(0)
    left, singular, _ = torch.linalg.svd(centred, full_matrices=False)
    points = torch.zeros(len(mean), 2, dtype=torch.float64)
    kept = min(2, len(singular))
    points[:, :kept] = left[:, :kept] * singular[:kept]
    total = singular.square().sum()
    return points.numpy(), (singular[:2].square().sum() / total).item() if total > 0 else 1.0
