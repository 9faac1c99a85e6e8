"""Which samples a rank sees at which step: a pure function of (seed, epoch, step), so a resume skips nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .errors import BadInput


class StepSampler:
    """Yields the micro-batches of indices of one epoch for one rank.

    An optimizer step takes `accumulation * world_size * batch_size` consecutive entries of the epoch's permutation;
    micro-batch `a` of rank `r` is entries `[(a * world_size + r) * batch_size, ... + batch_size)` of these. So
    accumulating over 4 micro-batches sees what one batch of 4 times the size sees, and two ranks see together what
    one process with twice the batch sees.

    Args:
        length: number of samples.
        batch_size: samples a rank takes in one micro-batch.
        accumulation: micro-batches an optimizer step.
        seed, rank, world_size: as usual.
        drop_last: leave out the samples that do not fill a step; otherwise the last step of an epoch is filled up
            with the first samples of its permutation.

    Raises:
        BadInput: fewer samples than one step takes, with `drop_last`.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        accumulation: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
    ):
        self.length, self.batch_size, self.accumulation = length, batch_size, accumulation
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.step_size = batch_size * accumulation * world_size
        if drop_last and length < self.step_size:
            raise BadInput(
                f"the training split has {length} samples, but one optimizer step takes {self.step_size} "
                f"({batch_size} a device x {world_size} processes x {accumulation} accumulated): lower "
                "--per_device_train_batch_size, or pass --dataloader_drop_last false"
            )
        self.steps_per_epoch = length // self.step_size if drop_last else -(-length // self.step_size)
        self.epoch, self.start_step = 0, 0

    def set_position(self, epoch: int, step: int = 0) -> None:
        """The next iteration yields `epoch` from its optimizer step `step` on."""
        self.epoch, self.start_step = epoch, step

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[np.ndarray]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        short = self.steps_per_epoch * self.step_size - self.length
        if short > 0:
            order = np.resize(order, self.length + short)
        for step in range(self.start_step, self.steps_per_epoch):
            for micro in range(self.accumulation):
                begin = step * self.step_size + (micro * self.world_size + self.rank) * self.batch_size
                yield order[begin : begin + self.batch_size]
