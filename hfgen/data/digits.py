"""The images that come with the install: scikit-learn's digits."""

from __future__ import annotations

import hashlib

import numpy as np
import PIL.Image

from ..errors import BadInput
from .arguments import ImageDataArguments
from .decode import PixelFormat, to_array

# Of 1,797 images; the order is that of a frozen NumPy generator, so the splits are the same everywhere and for ever.
SIZES = {"train": 1297, "validation": 250, "test": 250}


def digits_arrays(args: ImageDataArguments) -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    """The optical recognition test set of handwritten digits (Alpaydin and Kaynak 1998), 1,797 real grey 8x8 images.

    Returns:
        for each of train, validation and test: images uint8 (N, C, H, W), 8x8 and grey unless `args` asks for another
        shape, levels 0..16 scaled to 0..255; labels int64 (N,) 0..9; a digest of both.
    """
    from sklearn.datasets import load_digits

    for option, wanted, own in (("image", args.image_column, "image"), ("label", args.label_column, "label")):
        if wanted not in (None, own):
            raise BadInput(f"--{option}_column {wanted}: dataset digits has the columns image, label")
    if args.streaming:
        raise BadInput("--streaming true: dataset digits comes with the install and fits in memory; leave it out")
    levels, labels = load_digits(return_X_y=True)
    grey = np.round(levels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    pixels = PixelFormat(args.image_size, args.channels, args.resize_mode).completed_by(1, 8, 8)
    images = np.stack([to_array(PIL.Image.fromarray(image), pixels) for image in grey])
    order = np.random.RandomState(0).permutation(len(images))
    splits, start = {}, 0
    for split, size in SIZES.items():
        chosen = order[start : start + size]
        digest = hashlib.blake2b(images[chosen].tobytes() + labels[chosen].tobytes(), digest_size=16).hexdigest()
        splits[split] = (images[chosen], labels[chosen].astype(np.int64), digest)
        start += size
    return splits
