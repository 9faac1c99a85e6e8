"""Stacked MNIST: three grey digits in the channels of one image, a data set of 1000 known modes."""

from __future__ import annotations

import numpy as np

from ..errors import BadInput
from .images import ImageDataset

CHANNELS = 3


def stacked(dataset: ImageDataset) -> ImageDataset:
    """As many images as the data set has, each of three of them drawn at random (Metz et al. 2017, section 3.3.1).

    The draw is the same on every machine. Labels, where there are some, are the three digits of a number: with 10
    classes, `100 * first + 10 * second + third`.

    Args:
        dataset: grey images.

    Raises:
        BadInput: they have colours.
    """
    if dataset.num_channels != 1:
        raise BadInput(f"--stack_channels: the images of {dataset.name} have {dataset.num_channels} channels, not 1")
    dice = np.random.RandomState(0)
    rows = [dice.permutation(len(dataset)) for _ in range(CHANNELS)]
    images = np.concatenate([np.asarray(dataset.images)[chosen] for chosen in rows], axis=1)
    labels = None
    if dataset.labels is not None:
        labels = np.zeros(len(dataset), np.int64)
        for chosen in rows:
            labels = labels * dataset.num_labels + dataset.labels[chosen]
    return ImageDataset(images, labels, name=f"{dataset.name}, stacked", skipped=dataset.skipped)
