"""What every recipe does before and after training: the record, the card, the Hub."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import random
import shlex
import sys
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from . import __version__
from .checkpoint import find_checkpoint
from .progress import say
from .runs import check_run_dir, read_json, write_json

_PACKAGES = ("torch", "accelerate", "diffusers", "transformers", "trl", "peft", "datasets")
# Options that say where a run is, not what it is: a repeat chooses its own.
_NOT_REPEATED = ("--output_dir", "--resume_from_checkpoint")

Arguments = TypeVar("Arguments")
Pipeline = TypeVar("Pipeline")


def begin_run(args) -> None:
    """Refuses a used `output_dir` before any data is read, and seeds what draws the initial weights.

    Raises:
        BadInput: `output_dir` holds another run.
    """
    find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    _no_loading_bars()
    random.seed(args.seed)
    np.random.seed(args.seed % 2**32)
    torch.manual_seed(args.seed)


def repeat_command(recipe: str, argv: list[str] | None, num_processes: int) -> str:
    """The command that repeats a run, from the flags that it was given."""
    words = list(sys.argv[1:] if argv is None else argv)
    kept = []
    skip = False
    for word in words:
        if not skip and not word.startswith(_NOT_REPEATED):
            kept.append(word)
        skip = word in _NOT_REPEATED
    processes = ["--num_processes", str(num_processes)] if num_processes > 1 else []
    return shlex.join(["hfgen", "train", recipe, *processes, *kept])


def finish_run(
    trainer,
    *,
    recipe: str,
    config: str | None,
    argv: list[str] | None,
    arguments: tuple[Any, ...],
    metrics: dict[str, float],
    pipeline_class: str | None = None,
    usage: str | None = None,
    pipeline_tag: str = "unconditional-image-generation",
    dataset: dict[str, Any] | None = None,
    samples: list[dict[str, str]] | None = None,
) -> None:
    """Writes run.json and the model card, and publishes the model where that was asked for.

    Args:
        trainer: the trainer, after training: ours, or one of transformers'.
        recipe, config, argv: as the recipe was called.
        arguments: the recipe's dataclasses.
        metrics: final figures, by name.
        pipeline_class: the public class of hfgen whose `from_pretrained` loads the folder; or
        usage: the code that loads it, with `{name!r}` for the folder or repository.
        pipeline_tag: the Hub's name of the task.
        dataset: what run.json says of the data; by default the training set's name, fingerprint and length.
        samples: rows of text that the model made, by column; kept in samples.json, shown in the gallery.

    Raises:
        BadInput: the Hub refused; the folder is complete all the same.
    """
    if not trainer.accelerator.is_main_process:
        return
    from .hub import push_to_hub, write_model_card

    args = trainer.args
    processes = trainer.accelerator.num_processes
    if dataset is None:
        train = trainer.train_dataset
        dataset = {"name": getattr(train, "name", None), "fingerprint": getattr(train, "fingerprint", None)}
        if hasattr(train, "__len__"):
            dataset["samples"] = len(train)
    runtimes = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    run_dir = Path(args.output_dir)
    flat = {name: value for group in arguments for name, value in _options(group).items()}
    if samples:
        write_json(run_dir / "samples.json", samples)
    write_json(
        run_dir / "run.json",
        {
            "recipe": recipe,
            "config": config,
            "command": repeat_command(recipe, argv, processes),
            "arguments": {name: getattr(value, "value", value) for name, value in flat.items()},
            "seconds": sum(runtimes),
            "num_processes": processes,
            "versions": {"hfgen": __version__} | {name: importlib.metadata.version(name) for name in _PACKAGES},
            "dataset": dataset,
            "metrics": metrics,
        },
    )
    write_model_card(run_dir, pipeline_class=pipeline_class, usage=usage, pipeline_tag=pipeline_tag)
    if getattr(args, "publish", args.push_to_hub):
        say(trainer.accelerator, f"published: {push_to_hub(run_dir, args.hub_model_id, args.hub_private_repo)}")


def _options(group: Any) -> dict[str, Any]:
    """A dataclass as plain values; transformers' arguments know themselves which of theirs are for no eyes."""
    if hasattr(group, "to_dict"):
        return group.to_dict()
    return {f.name: getattr(group, f.name) for f in dataclasses.fields(group)}


def _no_loading_bars() -> None:
    """A bar for one or two components says nothing."""
    from diffusers.utils import logging

    logging.disable_progress_bar()


def load_published(run_dir: Path, pipeline_class: type[Pipeline]) -> Pipeline:
    """The pipeline that a finished run published.

    Raises:
        BadInput: the folder is no finished run.
    """
    _no_loading_bars()
    return pipeline_class.from_pretrained(check_run_dir(run_dir))


def saved_arguments(run_dir: Path, kind: type[Arguments]) -> Arguments:
    """One of the recipe's dataclasses as a finished run was given it.

    Raises:
        BadInput: the folder is no finished run.
    """
    saved = read_json(check_run_dir(run_dir) / "run.json", {})["arguments"]
    return kind(**{f.name: saved[f.name] for f in dataclasses.fields(kind) if f.name in saved})
