"""Notices what must stop a run, on all ranks at the same step: a loss that is not finite, SIGTERM, Ctrl-C."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

# Steps that may pass until it is noticed, where looking costs a synchronisation (a GPU, several processes).
LOOK_EVERY = 10


Scalar = float | torch.Tensor


class Found(NamedTuple):
    """`bad`: (step, its outputs) of the first loss that is not finite; `signal`: the number of one received, or 0."""

    bad: tuple[int, dict[str, Scalar]] | None = None
    signal: int = 0


class StepGuard:
    """Collects each step's outputs, and looks at them where that is cheap or due.

    Args:
        accelerator: whose device and ranks decide how often looking is cheap.
    """

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.every = 1 if accelerator.device.type == "cpu" and accelerator.num_processes == 1 else LOOK_EVERY
        self.unchecked: list[tuple[int, dict[str, Scalar]]] = []
        self.received = 0

    def record(self, step: int, outputs: dict[str, Scalar]) -> None:
        """Keeps a step's outputs, of which `"loss"` is looked at."""
        self.unchecked.append((step, outputs))

    def look(self, step: int, now: bool) -> Found:
        """What happened since the last look, on any rank; every rank must call it with the same arguments."""
        if not self.unchecked or not (now or step % self.every == 0):
            return Found()
        if self.every == 1 and len(self.unchecked) == 1 and not self.received:
            if math.isfinite(self.unchecked[0][1]["loss"]):  # the usual step, without a dozen small tensors
                self.unchecked.clear()
                return Found()
        device = self.accelerator.device
        losses = torch.stack([torch.as_tensor(o["loss"], device=device).float() for _, o in self.unchecked])
        # The position of a bad loss is counted from the end, so that a maximum over the ranks finds the earliest.
        positions = torch.arange(len(losses), 0, -1, device=losses.device)
        flags = torch.stack([((~torch.isfinite(losses)) * positions).max(), positions.new_tensor(self.received)])
        if self.accelerator.num_processes > 1:
            flags = self.accelerator.gather(flags.unsqueeze(0)).amax(0)
        position, number = flags.tolist()
        bad = self.unchecked[len(losses) - position] if position else None
        self.unchecked.clear()
        return Found(bad, number)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Inside, SIGTERM and the first Ctrl-C are only noted; a second Ctrl-C acts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number, _):
            self.received = number
            signal.signal(signal.SIGINT, previous[signal.SIGINT])

        previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in previous:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
