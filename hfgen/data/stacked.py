"""Stacked MNIST: three grey digits in the channels of one image, a data set of 1000 known modes."""

from __future__ import annotations

from functools import reduce

import numpy as np

from ..errors import BadInput
from .images import ImageDataset

CHANNELS = 3


def joint_labels(labels: list, num_classes: int):
    """One mode number from several labels of each sample, the first counting most: stacked MNIST's 1,000 modes from
    the digits of its three channels (Metz et al. 2017, section 3.3.1, https://arxiv.org/abs/1611.02163).

    Args:
        labels: int64 (N,) each, in 0..num_classes - 1; all arrays or all tensors.

    Returns:
        int64 (N,), in 0..num_classes^len(labels) - 1, of the same kind.
    """
    return reduce(lambda modes, each: modes * num_classes + each, labels)


class StackedImages(ImageDataset):
    """What [`stacked`] makes.

    Args:
        grey: the images that were stacked.
        others: as for [`ImageDataset`].
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray | None, *, grey: ImageDataset, **options):
        super().__init__(images, labels, **options)
        self.grey = grey

    @property
    def num_labels(self) -> int | None:
        return None if self.labels is None else self.grey.num_labels**self.num_channels


def stacked(dataset: ImageDataset) -> StackedImages:
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
        labels = joint_labels([dataset.labels[chosen] for chosen in rows], dataset.num_labels)
    return StackedImages(images, labels, grey=dataset, name=f"{dataset.name}, stacked", skipped=dataset.skipped)
