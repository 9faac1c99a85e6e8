"""A small denoising model on hfgen.Trainer, for tests of the loop itself; also a script, for tests of processes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from processes import own_flags
from safetensors.torch import load_file, save_file
from torch import nn

from hfgen.config import parse_arguments
from hfgen.errors import guarded, leave
from hfgen.trainer import Trainer, TrainingArguments


class ToyData:
    """Points on a noisy line, handed over as ready batches, as the image cache does."""

    fingerprint = "toy"

    def __init__(self, length: int = 96):
        x = np.random.default_rng(0).normal(size=(length, 8)).astype(np.float32)
        self.x = x.cumsum(axis=1)

    def __len__(self):
        return len(self.x)

    def __getitems__(self, indices):
        return {"x": torch.from_numpy(self.x[np.asarray(indices)]), "index": torch.as_tensor(np.asarray(indices))}


class ToyStream:
    """The same points as a stream of unknown length."""

    fingerprint = "toy-stream"

    def __init__(self, length: int = 40):
        self.data = ToyData(length)

    def micro_batches(self, *, seed, epoch, skip, batch_size, rank, world_size):
        order = np.random.default_rng([seed, epoch]).permutation(len(self.data))[skip:]
        group = batch_size * world_size
        for begin in range(0, len(order) - group + 1, group):
            yield self.data.__getitems__(order[begin + rank * batch_size : begin + (rank + 1) * batch_size])


class ToyModel(nn.Module):
    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 8))

    def forward(self, x):
        return self.net(x)

    def save_pretrained(self, folder):
        Path(folder, "model").mkdir()
        save_file(self.state_dict(), Path(folder, "model", "model.safetensors"))


class ToyTrainer(Trainer):
    """MSE of the denoised points; `delay` seconds a step, NaN at step `nan_at`."""

    delay, nan_at = 0.0, -1

    def noise(self, x):
        return torch.randn(x.shape, generator=self.generator)

    def compute_loss(self, batch):
        time.sleep(self.delay)
        x = batch["x"]
        loss = (self.model(x + self.noise(x)) - x).square().mean()
        if self.state.global_step + 1 == self.nan_at:
            loss = loss * float("nan")
        return {"loss": loss, "error": loss.detach().sqrt()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What a run published."""
    return load_file(folder / "model" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal to the bit."""
    assert a and a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def build(
    args: TrainingArguments, dropout: float = 0.1, stream: bool = False, trainer=ToyTrainer, **kwargs
) -> Trainer:
    torch.manual_seed(args.seed)
    data = ToyStream() if stream else ToyData()
    return trainer(ToyModel(dropout), args, data, ToyData(20), **kwargs)


def main() -> None:
    """Trains by flags; `--delay`, `--nan_at`, `--stream`, and `--global_noise` (a function of the sample)."""
    defaults = {"--delay": 0.0, "--nan_at": -1.0, "--stream": 0.0, "--global_noise": 0.0}
    extra, argv = own_flags(sys.argv[1:], defaults)
    (args, _) = parse_arguments((TrainingArguments,), argv, "toy")
    ToyTrainer.delay, ToyTrainer.nan_at = extra["--delay"], int(extra["--nan_at"])
    trainer = build(args, dropout=0.0 if extra["--global_noise"] else 0.1, stream=bool(extra["--stream"]))
    if extra["--global_noise"]:
        # Each micro-batch's noise is a function of the samples, so that every split of a step draws the same.
        table = torch.randn(len(trainer.train_dataset), 8, generator=torch.Generator().manual_seed(5))
        plain = trainer.compute_loss

        def compute_loss(batch):
            trainer.noise = lambda x: table[batch["index"]]
            return plain(batch)

        trainer.compute_loss = compute_loss
    trainer.train()
    if trainer.rank == 0:
        (Path(args.output_dir) / "world.json").write_text(json.dumps(trainer.world_size))


if __name__ == "__main__":
    leave(guarded(main))
