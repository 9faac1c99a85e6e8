"""From the splits of a dataset to arrays: which rows, their labels, their pixels from the cache."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Image, Value

from ..errors import BadInput
from .arguments import ImageDataArguments
from .cache import Split, cached_pixels
from .decode import PixelFormat
from .images import ImageDataset, combined
from .sources import VALIDATION_NAMES, Source, image_column, label_column


def choose_splits(args: ImageDataArguments, source: Source) -> dict[str, str]:
    """Names of the dataset's own splits by what they are for: train, and validation and test if they are there."""
    source.split(args.train_split, "train_split")
    chosen = {"train": args.train_split}
    for purpose, wanted, usual in (
        ("validation", args.validation_split, VALIDATION_NAMES),
        ("test", args.test_split, ("test",)),
    ):
        if wanted is not None:
            source.split(wanted, f"{purpose}_split")
        found = wanted or next((name for name in usual if name in source.splits and name not in chosen.values()), None)
        if found is not None:
            chosen[purpose] = found
    return chosen


def choose_rows(args: ImageDataArguments, source: Source) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """By what they are for (train, validation, test): names of the dataset's own splits, and rows of them, increasing.

    Raises:
        BadInput: there is no such split, or it is empty.
    """
    names = choose_splits(args, source)
    rows = {purpose: np.arange(len(source.splits[name])) for purpose, name in names.items()}
    for purpose, name in names.items():
        if len(rows[purpose]) == 0:
            raise BadInput(f"split '{name}' of dataset {source.name} is empty")
    if "validation" not in names and args.validation_fraction > 0:
        names["validation"] = names["train"]
        rows["train"], rows["validation"] = held_out(len(rows["train"]), args.validation_fraction, names["train"])
    for purpose in names:
        rows[purpose] = subset(rows[purpose], args.max_train_samples if purpose == "train" else args.max_eval_samples)
    return names, rows


def load_cached(args: ImageDataArguments, source: Source) -> dict[str, ImageDataset]:
    """The non-streaming half of [`load_images`]."""
    features = source.splits[choose_splits(args, source)["train"]].features
    images = image_column(features, args.image_column, source.name)
    labels = label_column(features, args.label_column, source.name)
    names, rows = choose_rows(args, source)
    label_values, label_names = read_labels(source, names, rows, labels)
    root = Path(args.cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser() / "hfgen"
    pixels = PixelFormat(args.image_size, args.channels, args.resize_mode)
    loaded = {}
    for purpose, name in names.items():
        dataset = encoded_images(source.splits[name], images, source.name)
        split = Split(dataset, images, rows[purpose], name, purpose, source.fingerprints[name])
        found = cached_pixels(split, pixels, root, args.skip_unreadable)
        pixels = pixels.completed_by(found.images.shape[1], *found.images.shape[2:])  # the others must be as train
        readable = ~np.isin(rows[purpose], [row for row, _, _ in found.skipped])
        values = label_values.get(purpose)
        if values is not None:
            values = values[readable]
        loaded[purpose] = ImageDataset(
            found.images,
            values,
            label_names if values is not None else None,
            name=source.name,
            fingerprint=combined(found.digest.encode(), values),
            skipped=len(found.skipped),
            rows=rows[purpose][readable],
        )
    return {purpose: loaded[purpose] for purpose in ("train", "validation", "test") if purpose in loaded}


def encoded_images(dataset: Dataset, column: str, name: str) -> Dataset:
    """The dataset with its images as they are stored, undecoded."""
    if column not in dataset.features:
        raise BadInput(f"--image_column {column}: a split of dataset {name} has only {', '.join(dataset.features)}")
    return dataset.cast_column(column, Image(decode=False))


def held_out(count: int, fraction: float, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(train rows, validation rows), both increasing; the draw depends on `count` and `fraction` alone."""
    validation = max(1, round(count * fraction))
    if validation >= count:
        raise BadInput(
            f"split '{name}' has {count} samples: none is left to train on after --validation_fraction {fraction}"
        )
    order = np.random.RandomState(0).permutation(count)
    return np.sort(order[validation:]), np.sort(order[:validation])


def subset(rows: np.ndarray, limit: int | None) -> np.ndarray:
    """A fixed random subset; the first rows would often all be of one class."""
    if limit is None or limit >= len(rows):
        return rows
    return np.sort(np.random.RandomState(0).permutation(rows)[:limit])


def read_labels(
    source: Source, names: dict[str, str], rows: dict[str, np.ndarray], column: str | None
) -> tuple[dict[str, np.ndarray], list[str] | None]:
    """int64 labels of each split's rows, and the names of the classes if they have any.

    A split whose labels are all missing has none. Strings are numbered in alphabetical order over all splits.

    Raises:
        BadInput: some labels of a split are missing.
    """
    if column is None:
        return {}, None
    tables = {}
    for purpose, name in names.items():
        dataset = source.splits[name]
        if column in dataset.features:
            values = dataset.data.column(column).combine_chunks()
            missing = int(pc.sum(absent(values, dataset.features[column])).as_py() or 0)
            if 0 < missing < len(values):
                raise BadInput(
                    f"label column {column} of dataset {source.name}, split '{name}': {missing} rows have none"
                )
            if missing == 0:
                tables[purpose] = values
    feature = source.splits[names["train"]].features[column]
    label_names = feature.names if isinstance(feature, ClassLabel) else None
    if label_names is None and "string" in feature.dtype:
        label_names = sorted({label for values in tables.values() for label in pc.unique(values).to_pylist()})
        known = pa.array(label_names)
        tables = {purpose: pc.index_in(values.cast(pa.string()), known) for purpose, values in tables.items()}
    numbers = {purpose: values.to_numpy(zero_copy_only=False).astype(np.int64) for purpose, values in tables.items()}
    return {purpose: values[rows[purpose]] for purpose, values in numbers.items()}, label_names


def absent(values: pa.Array, feature: ClassLabel | Value) -> pa.Array:
    """Booleans: nulls, and -1 for a class, which is how the datasets library writes an unknown one."""
    empty = pc.is_null(values)
    return pc.or_(empty, pc.fill_null(pc.equal(values, -1), False)) if isinstance(feature, ClassLabel) else empty
