"""Images as one array a split, so that a batch is one index into it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import BadInput
from .arguments import ImageDataArguments
from .digits import digits_arrays

if TYPE_CHECKING:
    from .streaming import StreamingImages


class ImageDataset(torch.utils.data.Dataset):
    """Images and their labels.

    Args:
        images: uint8 (N, C, H, W), in memory or memory-mapped.
        labels: int64 (N,), or None.
        label_names: name of label i at position i, if they have names.
        name: for messages, cards and run.json.
        fingerprint: of pixels and labels, the same on every machine; made from them if not given.
        skipped: unreadable images that were left out.
        rows: int64 (N,), where each image stands in the split that it comes from, for what else is known of it.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        label_names: list[str] | None = None,
        *,
        name: str = "images",
        fingerprint: str | None = None,
        skipped: int = 0,
        rows: np.ndarray | None = None,
    ):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise BadInput(f"images must be uint8 (N, 1 or 3, height, width), not {images.dtype} {images.shape}")
        if labels is not None and len(labels) != len(images):
            raise BadInput(f"{len(images)} images have {len(labels)} labels")
        self.images = images
        self.labels = None if labels is None else np.asarray(labels, np.int64)
        self.label_names = label_names
        self.name = name
        self.skipped = skipped
        self.rows = rows
        self.fingerprint = fingerprint or combined(np.ascontiguousarray(images).tobytes(), self.labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        """A batch: `pixel_values` uint8 (B, C, H, W) and, if there are labels, `labels` int64 (B,)."""
        chosen = np.asarray(indices, np.int64)
        # NumPy gathers 128 x 3 x 64 x 64 in 0.1 ms (`take` in two thirds of an index's time). torch's index_select
        # takes 0.06 ms with two cores to itself, and milliseconds when another process has one of them.
        batch = {"pixel_values": torch.from_numpy(np.asarray(self.images).take(chosen, axis=0))}
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[chosen])
        return batch

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One image: `pixel_values` uint8 (C, H, W) and, if there are labels, `labels` int64 ()."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return {key: value[0] for key, value in self.__getitems__([index % len(self)]).items()}

    def select(self, indices: Sequence[int] | np.ndarray) -> ImageDataset:
        """Some of the images, in that order; a view where `indices` is a `range` of step 1, else a copy in memory."""
        contiguous = isinstance(indices, range) and indices.step == 1
        chosen = slice(indices.start, indices.stop) if contiguous else np.asarray(indices, np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        rows = None if self.rows is None else self.rows[chosen]
        selection = np.arange(len(self))[chosen]
        fingerprint = combined(self.fingerprint.encode(), selection)
        return ImageDataset(
            self.images[chosen], labels, self.label_names, name=self.name, fingerprint=fingerprint, rows=rows
        )

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return tuple(self.images.shape[2:])

    @property
    def num_channels(self) -> int:
        return self.images.shape[1]

    @property
    def num_labels(self) -> int | None:
        """How many classes there are, or None without labels."""
        if self.labels is None:
            return None
        return len(self.label_names) if self.label_names else int(self.labels.max()) + 1


def combined(content: bytes, numbers: np.ndarray | None) -> str:
    """A digest of both."""
    digest = hashlib.blake2b(content, digest_size=16)
    if numbers is not None:
        digest.update(np.ascontiguousarray(numbers, np.int64).tobytes())
    return digest.hexdigest()


def load_images(args: ImageDataArguments) -> dict[str, ImageDataset | StreamingImages]:
    """Loads the splits that `args` names.

    Returns:
        `train`; `validation`, held out of train where the dataset has none; `test` where the dataset has one. With
        `args.streaming`, `train` is a [`StreamingImages`]. All have the size and the channels of `train`.

    Raises:
        BadInput: whatever is wrong with the dataset or with what was asked of it, in one line.
    """
    if args.stack_channels:
        from .stacked import stacked

        grey = dataclasses.replace(args, stack_channels=False)
        return {split: stacked(dataset) for split, dataset in load_images(grey).items()}
    if args.dataset_name == "digits":
        return load_digits(args)
    # The datasets library takes most of a second to import, and the embedded digits don't need it.
    from .sources import find_source

    if args.streaming:
        from .streaming import load_streaming

        return load_streaming(args, find_source(args, streaming=True))
    from .cached_splits import load_cached

    return load_cached(args, find_source(args, streaming=False))


def load_digits(args: ImageDataArguments) -> dict[str, ImageDataset]:
    arrays = digits_arrays(args)
    asked = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}
    splits = {}
    for split, name in asked.items():
        if (name or split) not in arrays:
            raise BadInput(f"--{split}_split {name}: dataset digits has the splits {', '.join(arrays)}")
        images, labels, digest = arrays[name or split]
        limit = args.max_train_samples if split == "train" else args.max_eval_samples
        dataset = ImageDataset(images, labels, [str(i) for i in range(10)], name="digits", fingerprint=digest)
        splits[split] = dataset if limit is None or limit >= len(dataset) else dataset.select(range(limit))
    return splits
