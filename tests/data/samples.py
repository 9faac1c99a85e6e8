"""Random images, and what the tests know of the folders made of them."""

import json
from pathlib import Path

import numpy as np


def pixels(seed: int, height: int = 6, width: int = 8, channels: int = 3) -> np.ndarray:
    """A random image, uint8 (H, W, C), or (H, W) for one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def folder_rows() -> list[int]:
    """The seeds of `image_folder` in the order in which the datasets library lists the files."""
    return [*range(0, 20, 2), *range(1, 20, 2)]


def write_metadata(folder: Path, rows: list[dict]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
