"""Three grey images in the channels of one."""

import numpy as np
import pytest

from hfgen.data import ImageDataArguments, ImageDataset, load_images
from hfgen.data.stacked import stacked
from hfgen.errors import BadInput


def test_channels_are_images_and_labels_their_digits():
    grey = load_images(ImageDataArguments(dataset_name="digits"))["train"]
    three = load_images(ImageDataArguments(dataset_name="digits", stack_channels=True))["train"]
    assert three.images.shape == (len(grey), 3, 8, 8)
    by_pixels = {image.tobytes(): label for image, label in zip(grey.images[:, 0], grey.labels, strict=True)}
    digits = [[by_pixels[channel.tobytes()] for channel in image] for image in three.images]
    assert (np.array(digits) @ [100, 10, 1] == three.labels).all()
    assert len(set(three.labels.tolist())) > 600, "a thousand modes, most of them seen in 1,297 images"
    assert three.fingerprint == stacked(grey).fingerprint != grey.fingerprint
    assert all(not np.array_equal(three.images[:, 0], three.images[:, c]) for c in (1, 2))


def test_without_labels():
    images = np.random.default_rng(0).integers(0, 256, (10, 1, 4, 4), dtype=np.uint8)
    assert stacked(ImageDataset(images)).labels is None


def test_colour_is_refused():
    with pytest.raises(BadInput, match="have 3 channels, not 1"):
        stacked(ImageDataset(np.zeros((4, 3, 2, 2), np.uint8), name="folder"))
    for options in ({"streaming": True}, {"channels": 3}):
        with pytest.raises(BadInput, match="--stack_channels puts grey images together"):
            ImageDataArguments(stack_channels=True, **options)
