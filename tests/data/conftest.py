"""A cache of its own for every test, and small datasets of real files."""

from pathlib import Path

import PIL.Image
import pytest
from data.samples import pixels


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> Path:
    """The cache of the datasets library, and so of the decoded pixels, moved into the test's folder."""
    import datasets

    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return folder


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """20 colour PNGs of 6x8 pixels (height x width), the even ones in `cat`, the odd ones in `dog`."""
    folder = tmp_path / "animals"
    for i in range(20):
        path = folder / ("cat", "dog")[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels(i)).save(path)
    return folder


@pytest.fixture
def parquet_folder(tmp_path) -> Path:
    """train (30 rows) and test (5 rows) of grey 4x4 PNG bytes, with a class that is the image's number modulo 3."""
    import datasets

    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b", "c"])})
    folder = tmp_path / "parquet"
    folder.mkdir()
    for split, numbers in {"train": range(30), "test": range(30, 35)}.items():
        rows = {
            "picture": [PIL.Image.fromarray(pixels(i, 4, 4, 1)) for i in numbers],
            "kind": [i % 3 for i in numbers],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder
