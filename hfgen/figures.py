"""Pictures that a run leaves in its folder: grids of small images, the latent space, and their list for the page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .errors import BadInput
from .runs import read_json, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

# A picture smaller than this many pixels is enlarged, so that 8x8 digits can be seen.
_LEGIBLE_SIDE = 48
_BACKGROUND = 255


def to_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1], cut off at both ends, as a PNG holds them: uint8, on the CPU."""
    return (images.clamp(0, 1) * 255).round().byte().cpu()


def _as_nhwc(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"a grid takes uint8 images of 4 dimensions, got {images.dtype} {images.shape}")
    if images.shape[1] in (1, 3):
        return images.transpose(0, 2, 3, 1)
    if images.shape[3] in (1, 3):
        return images
    raise ValueError(f"images must have 1 or 3 channels, first (N, C, H, W) or last (N, H, W, C); got {images.shape}")


def image_grid(
    images: np.ndarray, columns: int | None = None, scale: int | None = None, padding: int = 2
) -> Image.Image:
    """Lays images out row by row.

    Args:
        images: uint8, (N, C, H, W) or (N, H, W, C), C in {1, 3}; where both fit, (N, C, H, W).
        columns: pictures a row; by default about as many as rows.
        scale: whole factor by which each is enlarged (nearest neighbour, so pixels stay what they are); by default
            the least that makes the larger side 48 pixels.
        padding: white pixels between pictures and around them.

    Returns:
        PIL.Image.Image: mode `L` for one channel, `RGB` for three.

    Raises:
        ValueError: not such an array, or an empty one.
    """
    images = _as_nhwc(images)
    count, height, width, channels = images.shape
    if count == 0:
        raise ValueError("a grid takes at least one image")
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    scale = scale or max(1, math.ceil(_LEGIBLE_SIDE / max(height, width)))
    rows = math.ceil(count / columns)
    cell_height, cell_width = height * scale + padding, width * scale + padding
    canvas = np.full((rows * cell_height + padding, columns * cell_width + padding, channels), _BACKGROUND, np.uint8)
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    for index, image in enumerate(large):
        top = padding + index // columns * cell_height
        left = padding + index % columns * cell_width
        canvas[top : top + height * scale, left : left + width * scale] = image
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def interleave_rows(*groups: np.ndarray, columns: int) -> np.ndarray:
    """Orders images so that [`image_grid`] with `columns` shows row 1 of each group, then row 2 of each, and so on.

    Args:
        groups: arrays (N, ...) of one shape, e.g. originals and reconstructions; N a multiple of `columns`.
        columns: pictures a row.

    Returns:
        np.ndarray: (len(groups) * N, ...).

    Raises:
        ValueError: N is no multiple of `columns`, or the shapes differ.
    """
    stacked = np.stack(groups)
    if stacked.shape[1] % columns:
        raise ValueError(f"{stacked.shape[1]} images don't fill rows of {columns}")
    by_row = stacked.reshape(len(groups), -1, columns, *stacked.shape[2:])
    return by_row.swapaxes(0, 1).reshape(-1, *stacked.shape[2:])


def latent_scatter(
    points: np.ndarray, labels: np.ndarray | None = None, label_names: list[str] | None = None
) -> Figure:
    """A scatter plot of a latent space.

    Args:
        points: (N, 2) coordinates, e.g. posterior means projected on two axes.
        labels: (N,) integers that colour the points; up to 20 kinds get a legend, more a colour bar.
        label_names: the labels' names, indexed by label.

    Raises:
        ValueError: other shapes.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must be (N, 2), got {points.shape}")
    figure = Figure(figsize=(6, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    style = {"s": 9, "alpha": 0.75, "linewidths": 0}
    if labels is None:
        axes.scatter(*points.T, **style)
    else:
        labels = np.asarray(labels)
        if labels.shape != points.shape[:1]:
            raise ValueError(f"labels must be ({len(points)},), got {labels.shape}")
        kinds = np.unique(labels)
        if len(kinds) <= 20:
            palette = colormaps["tab10" if len(kinds) <= 10 else "tab20"]
            for index, kind in enumerate(kinds):
                name = label_names[kind] if label_names else str(kind)
                axes.scatter(*points[labels == kind].T, color=palette(index), label=name, **style)
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=2.5)
        else:
            figure.colorbar(axes.scatter(*points.T, c=labels, cmap="viridis", **style))
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def write_images(images: list[Image.Image], output: Path) -> list[Path]:
    """Writes generated images: a grid and one PNG each, in pixels as generated.

    Args:
        images: PIL images of one size, mode `L` or `RGB`.
        output: folder; made where it is missing. Files of an earlier call are replaced.

    Returns:
        list[Path]: `grid.png`, then `00000.png` and so on.

    Raises:
        BadInput: the folder can't be written to.
    """
    arrays = np.stack([np.asarray(image) for image in images])
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        paths = [output / "grid.png"]
        image_grid(arrays if arrays.ndim == 4 else arrays[..., None]).save(paths[0])
        for index, image in enumerate(images):
            paths.append(output / f"{index:05d}.png")
            image.save(paths[-1])
    except OSError as error:
        raise BadInput(f"{output} can't be written to ({error.strerror or error}); name another --output") from error
    return paths


def save_figure(run_dir: Path, name: str, figure: Image.Image | Figure, title: str, caption: str = "") -> Path:
    """Writes a PNG to figures/ of a run folder and enters it in figures.json, which is the order of display.

    An entry of the same name is replaced where it stands. Each file appears whole or not at all.

    Args:
        run_dir: the run folder.
        name: file name, with or without `.png`.
        figure: a PIL image or a matplotlib figure.
        title, caption: plain text.

    Returns:
        Path: the PNG.
    """
    folder = Path(run_dir) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.removesuffix('.png')}.png"
    aside = path.with_name(f".{path.stem}.tmp.png")
    if isinstance(figure, Image.Image):
        figure.save(aside)
    else:
        figure.savefig(aside)
    aside.replace(path)
    entry = {"file": path.name, "title": title, "caption": caption}
    entries = read_json(folder / "figures.json", [])
    files = [e["file"] for e in entries]
    if path.name in files:
        entries[files.index(path.name)] = entry
    else:
        entries.append(entry)
    write_json(folder / "figures.json", entries)
    return path
