"""What every alarm shares: measured now and then, sure before it speaks, said once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers.trainer_callback import ExportableState, TrainerCallback

if TYPE_CHECKING:
    from .trainer import Trainer


class Monitor(TrainerCallback, ExportableState):
    """Base of the alarms: calls `check` every `monitor_steps` and speaks after `patience` hits in a row.

    After it has spoken it stays silent until a check finds the run healthy again. Its counters are part of the
    checkpoint (`trainer_state.json`), so a resumed run speaks when the uninterrupted one would.

    Args:
        trainer: the trainer that it watches.
        patience: hits in a row before it speaks.
    """

    name = "monitor"

    def __init__(self, trainer: Trainer | None = None, patience: int = 3):
        self.trainer, self.patience = trainer, patience
        self.hits, self.spoke = 0, False
        self._found: tuple[int, tuple[str, dict[str, float]] | None] = (-1, None)

    def check(self, trainer: Trainer) -> tuple[str, dict[str, float]] | None:
        """Measures; returns one sentence with values and remedy, and the values; or `None` if all is well."""
        raise NotImplementedError

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.monitor_steps == 0:
            self.observe()

    def on_train_end(self, args, state, control, **kwargs):
        if not self.spoke and self._found[0] != state.global_step:  # a step's check counts once
            self.observe()
        # A run that ends ill is told so, even if it was too short for as many hits in a row.
        if not self.spoke and self.hits >= 2:
            self.speak(*self._found[1])

    def observe(self) -> None:
        """One check, and its consequence."""
        found = self.check(self.trainer)
        self._found = self.trainer.state.global_step, found
        if found is None:
            self.hits, self.spoke = 0, False
            return
        self.hits += 1
        if not self.spoke and self.hits >= self.patience:
            self.speak(*found)

    def speak(self, message: str, values: dict[str, float]) -> None:
        """The alarm, once."""
        self.spoke = True
        self.trainer.alarm(self.name, message, **values)

    def state(self) -> dict:
        return {"args": {}, "attributes": {"hits": self.hits, "spoke": self.spoke}}
