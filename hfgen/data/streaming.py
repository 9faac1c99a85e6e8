"""Images that are read anew in every epoch, for data too large to cache; the order is still exactly repeatable."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import torch
from datasets import ClassLabel, Dataset, Image, IterableDataset

from ..errors import BadInput
from .arguments import ImageDataArguments
from .cached_splits import choose_splits, subset
from .decode import (
    PixelFormat,
    UnreadableImage,
    decode,
    decoding_workers,
    image_name,
    natural_shape,
    open_image,
    unreadable_input,
)
from .images import ImageDataset
from .sources import Source, image_column, label_column

DEFAULT_EVAL_SAMPLES = 2000
# Rows of an Arrow table that are read at a time.
READ_ROWS = 256


@dataclass
class Sample:
    """An encoded image, not yet copied out of its Arrow table, and its label (-1 where there are none)."""

    content: pa.BinaryScalar
    path: pa.StringScalar
    label: int

    def stored(self) -> dict[str, Any]:
        return {"bytes": self.content.as_py(), "path": self.path.as_py()}


class StreamingImages:
    """A train split that is decoded as it is consumed.

    Args:
        dataset: shuffled through a buffer, shards too, if it is an `IterableDataset`; fully if it is a `Dataset`.
        pixels: what every image becomes; what is open in it is taken from the first readable image.
        held_out: share of the images that belong to the validation split and are left out here.
        skip_unreadable: an unreadable image is counted in `skipped` and replaced by the next readable one of its
            micro-batch, so that the images after it stay where they were.

    Raises:
        BadInput: the stream is empty, or has an unreadable image and `skip_unreadable` is off.
    """

    def __init__(
        self,
        dataset: Dataset | IterableDataset,
        *,
        image_column: str,
        label_column: str | None = None,
        label_names: list[str] | None = None,
        pixels: PixelFormat,
        shuffle_buffer_size: int = 1000,
        held_out: float = 0.0,
        skip_unreadable: bool = False,
        name: str = "stream",
        split: str = "train",
        fingerprint: str = "",
    ):
        columns = [image_column] if label_column is None else [image_column, label_column]
        self.dataset = dataset.select_columns(columns).cast_column(image_column, Image(decode=False))
        self.image_column = image_column
        self.label_column = label_column
        self.label_names = label_names
        self.shuffle_buffer_size = shuffle_buffer_size
        self.held_out = held_out
        self.skip_unreadable = skip_unreadable
        self.name = name
        self.split = split
        self.fingerprint = fingerprint
        self.skipped = 0
        first = self._first_image(pixels)
        self.pixels = pixels.completed_by(*natural_shape(first))
        # Small images keep Python's lock busy, so that more threads only wait for each other.
        self._threads = 1 if first.width * first.height < 96 * 96 else decoding_workers()

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.size

    @property
    def num_channels(self) -> int:
        return self.pixels.channels

    @property
    def num_labels(self) -> int | None:
        """How many classes there are; None where there are no labels or the dataset doesn't name its classes."""
        return len(self.label_names) if self.label_names else None

    def micro_batches(
        self, *, seed: int, epoch: int, skip: int = 0, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[dict[str, torch.Tensor]]:
        """One rank's micro-batches of one epoch: a pure function of the arguments.

        Args:
            skip: samples of this epoch that all ranks together have consumed already; they are read but not decoded.

        Yields:
            dict: `pixel_values` uint8 (batch_size, C, H, W) and, if there are labels, `labels` int64 (batch_size,).
            Of each `world_size * batch_size` samples in a row, rank r gets `[r * batch_size : (r + 1) * batch_size]`;
            an incomplete tail is dropped.

        Raises:
            BadInput: the whole epoch has too few images for one micro-batch a rank; an unreadable image.
        """
        epoch_seed = int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:8], "little")
        samples = (sample for sample in self._shuffled(epoch_seed) if not self._is_held_out(sample))
        numbered = islice(enumerate(samples), skip, None)
        first, group_size = rank * batch_size, world_size * batch_size
        decoding, groups = None, 0
        with ThreadPoolExecutor(self._threads) as pool:
            while len(group := list(islice(numbered, group_size))) == group_size:
                groups += 1
                ready, decoding = decoding, self._start_decoding(pool, group[first : first + batch_size], epoch)
                if ready is not None:  # while a micro-batch is trained on, the next one is decoded
                    yield self._batch(*ready)
            if decoding is not None:
                yield self._batch(*decoding)
        if groups == 0 and skip == 0:
            raise BadInput(
                f"split '{self.split}' of dataset {self.name} has {len(group)} images to train on, too few for "
                f"{world_size} x {batch_size} in a step; lower --per_device_train_batch_size"
            )

    def evaluation_images(self, limit: int) -> ImageDataset:
        """The first `limit` readable images that are *held out* of this stream, or of all its images if none are.

        Raises:
            BadInput: there is none.
        """
        samples = enumerate(s for s in self._shuffled(seed=0) if not self.held_out or self._is_held_out(s))
        images, labels, skipped = [], [], 0
        with ThreadPoolExecutor(self._threads) as pool:
            while len(images) < limit and (block := list(islice(samples, min(limit, READ_ROWS)))):
                futures, numbers = self._start_decoding(pool, block, epoch=0)
                for future, label in zip(futures, numbers, strict=True):
                    image = future.result()
                    if image is None:
                        skipped += 1
                    elif len(images) < limit:
                        images.append(image)
                        labels.append(label)
        if not images:
            raise BadInput(f"split '{self.split}' of dataset {self.name} has no image to evaluate on")
        unknown = self.label_names is not None and max(labels) < 0  # some test splits keep their classes secret: -1
        values = np.array(labels, np.int64) if self.label_column and not unknown else None
        return ImageDataset(np.stack(images), values, self.label_names, name=self.name, skipped=skipped)

    def _first_image(self, pixels: PixelFormat) -> PIL.Image.Image:
        for row, sample in enumerate(self._samples(self.dataset)):
            value = sample.stored()
            try:
                return open_image(value, pixels)
            except UnreadableImage as error:
                if not self.skip_unreadable:
                    place = f"split '{self.split}', row {row}"
                    raise unreadable_input(image_name(value, place), str(error)) from error
        raise BadInput(f"split '{self.split}' of dataset {self.name} is empty or has no readable image")

    def _shuffled(self, seed: int) -> Iterator[Sample]:
        if isinstance(self.dataset, Dataset):
            return self._samples(self.dataset.shuffle(seed=seed, keep_in_memory=True))
        # Left to itself the datasets library sleeps for 5 s after a parquet file, even if there is but one to read.
        shards = min(10, self.dataset.num_shards)
        buffer = {"buffer_size": self.shuffle_buffer_size, "max_buffer_input_shards": shards}
        return self._samples(self.dataset.shuffle(seed=seed, **buffer))

    def _samples(self, dataset: Dataset | IterableDataset) -> Iterator[Sample]:
        for table in dataset.with_format("arrow").iter(batch_size=READ_ROWS):
            encoded = table.column(self.image_column).combine_chunks()
            labels = table.column(self.label_column).to_pylist() if self.label_column else repeat(-1, len(table))
            for content, path, label in zip(encoded.field("bytes"), encoded.field("path"), labels, strict=True):
                if label is None:
                    raise BadInput(f"label column {self.label_column} of dataset {self.name}: a row has none")
                yield Sample(content, path, int(label))

    def _is_held_out(self, sample: Sample) -> bool:
        """By the image itself, so that it holds in every order, and an image and its copy are on the same side."""
        if not self.held_out:
            return False
        content = sample.content.as_buffer()
        if content is None:  # a file: its name and its folder's, so that the dataset may be moved
            content = "/".join((sample.path.as_py() or "").split("/")[-2:]).encode()
        return zlib.crc32(content) / 2**32 < self.held_out

    def _start_decoding(
        self, pool: ThreadPoolExecutor, samples: list[tuple[int, Sample]], epoch: int
    ) -> tuple[list[Future], list[int]]:
        """Futures of uint8 (C, H, W), or of None for an unreadable image, and the labels."""
        places = [f"split '{self.split}', sample {position} of epoch {epoch}" for position, _ in samples]
        futures = [
            pool.submit(self._decode, sample, place) for (_, sample), place in zip(samples, places, strict=True)
        ]
        return futures, [sample.label for _, sample in samples]

    def _decode(self, sample: Sample, place: str) -> np.ndarray | None:
        value = sample.stored()
        try:
            return decode(value, self.pixels, place)
        except UnreadableImage as error:
            if self.skip_unreadable:
                return None
            raise unreadable_input(image_name(value, place), str(error)) from error

    def _batch(self, futures: list[Future], labels: list[int]) -> dict[str, torch.Tensor]:
        images = [future.result() for future in futures]
        readable = [i for i, image in enumerate(images) if image is not None]
        self.skipped += len(images) - len(readable)
        if not readable:
            raise BadInput(f"dataset {self.name}: none of the {len(images)} images of a micro-batch can be read")
        chosen = [next((j for j in readable if j >= i), readable[0]) for i in range(len(images))]
        batch = {"pixel_values": torch.from_numpy(np.stack([images[i] for i in chosen]))}
        if self.label_column:
            batch["labels"] = torch.tensor(labels)[chosen]
        return batch


def with_features(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Tells the columns of a stream that doesn't know them, from its first rows."""
    return dataset if dataset.features is not None else dataset._resolve_features()


def load_streaming(args: ImageDataArguments, source: Source) -> dict[str, ImageDataset | StreamingImages]:
    """The streaming half of [`load_images`]: train is a stream, validation and test are read into memory once."""
    names = choose_splits(args, source)
    carve = "validation" not in names and args.validation_fraction > 0
    splits = {purpose: with_features(source.splits[name]) for purpose, name in names.items()}
    features = splits["train"].features
    if features is None:
        raise BadInput(f"split '{names['train']}' of dataset {source.name} is empty")
    images = image_column(features, args.image_column, source.name)
    labels = label_column(features, args.label_column, source.name)
    classes = features[labels] if labels else None
    if labels and not isinstance(classes, ClassLabel) and "string" in classes.dtype:
        raise BadInput(f"--label_column {labels}: a stream can't number labels that are strings")

    def stream(purpose: str, pixels: PixelFormat) -> StreamingImages:
        dataset = splits[purpose]
        limit = args.max_train_samples if purpose == "train" else None
        if isinstance(dataset, Dataset):
            dataset = dataset.select(subset(np.arange(len(dataset)), limit))
        else:
            dataset = dataset.reshard()  # so that a parquet file's row groups are shuffled too
            dataset = dataset if limit is None else dataset.take(limit)
        identity = (source.fingerprints[names[purpose]], images, labels, args.max_train_samples, carve)
        return StreamingImages(
            dataset,
            image_column=images,
            label_column=labels,
            label_names=classes.names if isinstance(classes, ClassLabel) else None,
            pixels=pixels,
            shuffle_buffer_size=args.shuffle_buffer_size,
            held_out=args.validation_fraction if carve and purpose == "train" else 0.0,
            skip_unreadable=args.skip_unreadable,
            name=source.name,
            split=names[purpose],
            fingerprint=hashlib.sha256(repr(identity).encode()).hexdigest()[:32],
        )

    limit = args.max_eval_samples or DEFAULT_EVAL_SAMPLES
    train_stream = stream("train", PixelFormat(args.image_size, args.channels, args.resize_mode))
    loaded: dict[str, ImageDataset | StreamingImages] = {"train": train_stream}
    if carve:
        loaded["validation"] = train_stream.evaluation_images(limit)
    for purpose in ("validation", "test"):
        if purpose in names:
            loaded[purpose] = stream(purpose, train_stream.pixels).evaluation_images(limit)
    return loaded
