"""What the monitors look back at: the last steps' values, the same on every rank, part of the checkpoint."""

from __future__ import annotations

from collections import deque

import torch


class History:
    """The last `length` steps' values, as floats when they are asked for.

    On an accelerator they stay there until then: reading each step's would make it wait.

    Args:
        length: steps.
    """

    def __init__(self, length: int):
        self.steps: deque[dict[str, float]] = deque(maxlen=length)
        self._names: list[str] = []
        self._waiting: deque[torch.Tensor] = deque(maxlen=length)

    def append(self, values: dict[str, torch.Tensor], accelerator) -> None:
        """Adds one step's 0-d values: means over the ranks, of names that end in `_max` the largest."""
        self._names = list(values)
        row = torch.stack([value.float() for value in values.values()])
        if accelerator.num_processes > 1:
            rows = accelerator.gather(row.unsqueeze(0))
            largest = torch.tensor([name.endswith("_max") for name in self._names], device=row.device)
            row = torch.where(largest, rows.amax(0), rows.mean(0))
        if row.device.type == "cpu":
            self.steps.append(dict(zip(self._names, row.tolist(), strict=True)))
        else:
            self._waiting.append(row)

    def read(self) -> deque[dict[str, float]]:
        """The steps, the oldest first."""
        if self._waiting:
            for row in torch.stack(list(self._waiting)).tolist():
                self.steps.append(dict(zip(self._names, row, strict=True)))
            self._waiting.clear()
        return self.steps

    def state_dict(self) -> dict:
        return {"steps": list(self.read())}

    def load_state_dict(self, state: dict) -> None:
        self.steps.clear()
        self._waiting.clear()
        self.steps.extend(state["steps"])


class SignMean:
    """The discriminator's signs since the last adjustment of an adaptive augmentation."""

    def __init__(self):
        self.total: torch.Tensor | float = 0.0
        self.count = 0

    def add(self, total: torch.Tensor, count: int) -> None:
        """Adds the sum, 0-d, of `count` signs."""
        self.total, self.count = self.total + total, self.count + count

    def take(self, accelerator) -> tuple[float, int]:
        """(mean, how many) over all ranks, and starts anew."""
        both = torch.stack(
            [torch.as_tensor(self.total).float(), torch.tensor(float(self.count), device=accelerator.device)]
        )
        if accelerator.num_processes > 1:
            both = accelerator.reduce(both, "sum")
        total, count = both.tolist()
        self.total, self.count = 0.0, 0
        return total / count, int(count)

    def state_dict(self) -> dict:
        return {"total": float(self.total), "count": self.count}

    def load_state_dict(self, state: dict) -> None:
        self.total, self.count = state["total"], state["count"]
