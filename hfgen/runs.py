"""A run folder as others read it: run.json, trainer_state.json, evaluation.json, figures/figures.json."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import BadInput


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity, which JSON has no word for, as `None`."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Writes JSON beside the file and renames it there, so that a reader finds the old file or the new one."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_json(path: Path, default: Any) -> Any:
    """A file's JSON, or `default` where there is no file.

    Raises:
        BadInput: the file is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return default
    except ValueError as error:
        raise BadInput(f"{path} is not valid JSON ({error}); the file is damaged") from None


@dataclass
class Run:
    """What a finished run left.

    Attributes:
        directory: the run folder.
        recipe, config, command: what was run; `command` repeats it.
        seconds: wall-clock time of the training, in seconds.
        metrics: those of `hfgen evaluate`, then the training's final ones; the former win where both have a name.
        log_history: transformers' list of logged dictionaries, each with its `step`.
        figures: `{"file", "title", "caption"}` of each picture in figures/, in display order.
        samples: rows of text that the model made, by column (samples.json).
        error: the line that the run failed with, or `None`.
    """

    directory: Path
    recipe: str
    config: str | None = None
    command: str = ""
    seconds: float = 0.0
    num_processes: int = 1
    versions: dict[str, str] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    log_history: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, str]] = field(default_factory=list)
    samples: list[dict[str, str]] = field(default_factory=list)
    error: str | None = None

    @property
    def alarms(self) -> list[dict[str, Any]]:
        """The alarms raised: entries of the log with the key `alarm`."""
        return [entry for entry in self.log_history if "alarm" in entry]


def check_run_dir(run_dir: Path) -> Path:
    """`run_dir`, if it is the folder of a finished run.

    Raises:
        BadInput: no such folder, not a run, or one whose training has not finished.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise BadInput(f"{run_dir}: there is no such folder; give the --output_dir of a finished run")
    if not (run_dir / "run.json").is_file():
        if any(run_dir.glob("checkpoint-*")):
            raise BadInput(
                f"{run_dir} holds checkpoints of a run that has not finished; "
                "repeat its command with --resume_from_checkpoint true"
            )
        raise BadInput(f"{run_dir} is not a run folder (it has no run.json); give the --output_dir of a finished run")
    return run_dir


def read_run(run_dir: Path) -> Run:
    """Reads a run folder.

    Raises:
        BadInput: it is none, or one of its files is damaged.
    """
    run_dir = check_run_dir(run_dir)
    facts = read_json(run_dir / "run.json", {})
    if not isinstance(facts, dict) or "recipe" not in facts:
        raise BadInput(f"{run_dir / 'run.json'} names no recipe; the file is damaged")
    known = ("recipe", "config", "command", "seconds", "num_processes", "versions", "dataset")
    return Run(
        directory=run_dir,
        **{key: facts[key] for key in known if facts.get(key) is not None},
        metrics={**(evaluated := read_json(run_dir / "evaluation.json", {})), **facts.get("metrics", {}), **evaluated},
        log_history=read_json(run_dir / "trainer_state.json", {}).get("log_history", []),
        figures=read_json(run_dir / "figures" / "figures.json", []),
        samples=read_json(run_dir / "samples.json", []),
    )
