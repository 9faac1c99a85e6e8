"""Runs a text recipe in this process, small, on the embedded data; and cuts it short as a kill would."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from hfgen.recipes import load_recipe
from hfgen.text.resume import ExactResume


class Killed(BaseException):
    """Ends a run where it stands: no handler of ordinary errors sees it."""


def train(recipe: str, output_dir: Path, *flags: str, config: str | None = None) -> Path:
    """Trains to the end; returns the run folder."""
    chosen = ["--config", config] if config else []
    load_recipe(recipe).main([*chosen, *flags, f"--output_dir={output_dir}", "--disable_tqdm=true"])
    return output_dir


def killed_at(monkeypatch, step: int, recipe: str, output_dir: Path, *flags: str, **options) -> None:
    """Trains until the optimizer step `step` has been made, and stops there without a word."""
    on_step_end = ExactResume.on_step_end

    def end(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise Killed
        return on_step_end(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ExactResume, "on_step_end", end)
        try:
            train(recipe, output_dir, *flags, **options)
        except Killed:
            return
    raise AssertionError(f"the run ended before step {step}")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What a run published: the model's weights, or its adapters'."""
    (file,) = sorted(folder.glob("*model.safetensors"))
    return load_file(file)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal to the bit."""
    assert a and a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)
