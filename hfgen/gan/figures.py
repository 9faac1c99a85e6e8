"""The pictures of a GAN: samples beside real images, how they came about, and the training images nearest to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from transformers.trainer_callback import TrainerCallback

from ..evaluation import FeatureModel, nearest_training, neighbour_figure
from ..figures import image_grid, save_figure, to_bytes
from ..seeding import evaluation_generator
from .evaluation import to_unit
from .pipeline import GANPipeline

if TYPE_CHECKING:
    from .trainer import GANTrainer

COLUMNS = 8
# More classes than this, and a picture shows some of them, evenly spread.
CLASS_ROWS = 10
# How often in a run the same latents are pictured.
PROGRESS_ROWS = 8


class ProgressPictures(TrainerCallback):
    """Keeps what the published generator makes of the same latents, eight times in a run: figures/progress/<step>.png.

    Args:
        trainer: the [`GANTrainer`], of images.
    """

    def __init__(self, trainer: GANTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        every = max(1, state.max_steps // PROGRESS_ROWS)
        if state.global_step % every == 0 and state.is_world_process_zero:
            trainer = self.trainer
            with trainer.published_weights():
                generator = evaluation_generator(args.seed)
                noise = torch.randn((COLUMNS, trainer.latent_dim), generator=generator)
                images = trainer.sample(COLUMNS, noise=noise)
            folder = Path(args.output_dir) / "figures" / "progress"
            folder.mkdir(parents=True, exist_ok=True)
            image_grid(to_bytes(to_unit(images)).numpy(), COLUMNS).save(folder / f"{state.global_step:08d}.png")


def progress_figure(run_dir: Path) -> tuple[Image.Image, list[int]] | None:
    """The rows that [`ProgressPictures`] kept, the first on top, and their steps; None where there are none."""
    files = sorted((Path(run_dir) / "figures" / "progress").glob("*.png"))
    if not files:
        return None
    rows = [Image.open(path) for path in files]
    picture = Image.new(rows[0].mode, (rows[0].width, sum(row.height for row in rows)))
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height
    return picture, [int(path.stem) for path in files]


def save_figures(
    pipeline: GANPipeline, training, run_dir: Path, feature_model: FeatureModel, *, seed: int = 0
) -> list[Path]:
    """Draws them into figures/ of a run folder.

    Args:
        pipeline: the trained model.
        training: its training images, an [`hfgen.data.ImageDataset`] or a stream (of which no neighbours are found).
        run_dir: the run folder.
        feature_model: the embedding in which neighbours are near.
        seed: of the samples.

    Returns:
        list[Path]: the PNG files.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = row_labels(pipeline)
    classes = labels if pipeline.num_classes else None
    images = pipeline(len(labels), class_labels=classes, generator=generator, output_type="pt").images
    rows = "Each row one class." if pipeline.num_classes else "Samples of the moving average, not chosen."
    paths = [save_figure(run_dir, "samples", image_grid(to_bytes(images).numpy(), COLUMNS), "Generated", rows)]
    held = hasattr(training, "__getitems__")
    if held:
        real = training.__getitems__(_like(labels, training, pipeline))["pixel_values"].numpy()
        paths.append(save_figure(run_dir, "real", image_grid(real, COLUMNS), "Real", "Training images."))
    progress = progress_figure(run_dir)
    if progress is not None:
        steps = ", ".join(map(str, progress[1]))
        caption = f"Rows of the same latents at the steps {steps}."
        paths.append(save_figure(run_dir, "progress", progress[0], "As training went on", caption))
    if held:
        some = images[:: max(1, len(images) // 16)][:16]
        nearest = nearest_training(some, training, feature_model, k=min(5, len(training)))
        caption = (
            "A sample, and the training images nearest to it in the embedding "
            f"({feature_model.name}): copies would be seen here."
        )
        figure = neighbour_figure(some, training, nearest)
        paths.append(save_figure(run_dir, "neighbours", figure, "Nearest training images", caption))
    return paths


def row_labels(pipeline: GANPipeline) -> list[int]:
    """A class for each picture of a grid, a row each; zeros for an unconditional generator."""
    classes = pipeline.num_classes
    if not classes:
        return [0] * (COLUMNS * COLUMNS)
    shown = np.linspace(0, classes - 1, min(classes, CLASS_ROWS)).round().astype(int)
    return np.repeat(shown, COLUMNS).tolist()


def _like(labels: list[int], training, pipeline: GANPipeline) -> list[int]:
    """Training images of the same classes, spread evenly over the data."""
    if not pipeline.num_classes:
        return np.linspace(0, len(training) - 1, min(len(labels), len(training))).round().astype(int).tolist()
    chosen = []
    for label in dict.fromkeys(labels):
        rows = np.flatnonzero(training.labels == label)
        rows = rows if len(rows) else np.arange(len(training))
        chosen += rows[np.linspace(0, len(rows) - 1, COLUMNS).round().astype(int)].tolist()
    return chosen
