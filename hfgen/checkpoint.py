"""Checkpoints that are whole or not there at all, and the rules of resuming."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from .errors import DISK_FULL, BadInput

FOLDER = re.compile(r"^checkpoint-(\d+)$")
STATE_FOLDER = "training_state"
STATE_FILE = "hfgen_state.json"


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The whole checkpoints in a run folder, oldest first."""
    return [folder for folder in checkpoint_folders(output_dir) if is_whole(folder)]


def checkpoint_folders(output_dir: str | Path) -> list[Path]:
    """All `checkpoint-<step>` folders in a run folder, oldest first, also one whose writing was cut short."""
    folder = Path(output_dir)
    found = [p for p in folder.iterdir() if p.is_dir() and FOLDER.match(p.name)] if folder.is_dir() else []
    return sorted(found, key=step_of)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: the state file comes last."""
    return (checkpoint / STATE_FOLDER / STATE_FILE).is_file()


def step_of(checkpoint: Path) -> int:
    """The optimizer step at which a checkpoint was written."""
    return int(FOLDER.match(checkpoint.name).group(1))


def find_checkpoint(output_dir: str | Path, resume_from_checkpoint: str | bool | None) -> Path | None:
    """The checkpoint to go on from, or `None` to start at step 0.

    `true` with no checkpoint there yet starts at step 0, so that the same command continues a run that was killed
    before its first checkpoint.

    Raises:
        BadInput: not resuming, but `output_dir` holds a run already; or the named checkpoint is not one.
    """
    asked = str(resume_from_checkpoint or "false")
    found = checkpoints(output_dir)
    if asked.lower() == "false":
        finished = [name for name in ("model_index.json", "trainer_state.json") if (Path(output_dir) / name).exists()]
        if found or finished:
            holds = found[-1].name if found else f"a finished run ({finished[0]})"
            raise BadInput(
                f"{output_dir} already holds {holds}: continue it with --resume_from_checkpoint true, "
                "or choose another --output_dir"
            )
        return None
    if asked.lower() == "true":
        return found[-1] if found else None
    path = Path(asked)
    if not is_whole(path):
        there = f"; {output_dir} holds {', '.join(p.name for p in found)}" if found else ""
        raise BadInput(f"--resume_from_checkpoint {asked} is not a checkpoint of hfgen{there}")
    return path


def fsync_tree(folder: Path) -> None:
    """Makes every file and folder below `folder` durable."""
    for root, _, files in os.walk(folder):
        for name in [*files, "."]:
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def why_unwritten(error: Exception, folder: Path) -> str:
    """Why a write failed, for an error line: the full disk, or the first line of `error`; and the space left."""
    free = shutil.disk_usage(folder).free / 2**20
    full = getattr(error, "errno", None) in DISK_FULL or "No space left" in str(error) or free < 1
    reason = "the disk is full" if full else str(error).splitlines()[0]
    return f"{reason} ({free:.0f} MiB free at {folder})"


def _agree(accelerator, ok: bool) -> bool:
    """Whether all ranks are well; a barrier besides."""
    if accelerator.num_processes == 1:
        return ok
    failed = torch.tensor([0.0 if ok else 1.0], device=accelerator.device)
    return accelerator.reduce(failed, "sum").item() == 0


@contextmanager
def written_aside(target: Path, accelerator, keeps: str) -> Iterator[Path]:
    """Yields a folder to write into; all of it becomes `target` at once, or nothing of it stays.

    Every rank enters; rank 0 creates, syncs and renames. An entry of `target` that is written again is replaced whole.

    Args:
        target: the folder to make; where it exists, entries of the new one replace its own.
        accelerator: for the ranks.
        keeps: what survives a failure, for the error line.

    Raises:
        BadInput: it could not be written, such as on a full disk.
    """
    aside = target / ".partial" if target.exists() else target.parent / f".{target.name}.partial"
    error = None
    try:
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
    except OSError as failure:
        error = failure
    if _agree(accelerator, error is None):
        try:
            yield aside
        except (OSError, RuntimeError, SafetensorError) as failure:
            error = failure
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        if _agree(accelerator, error is None) and accelerator.is_main_process:
            try:
                fsync_tree(aside)
                _move_into(aside, target)
            except OSError as failure:
                error = failure
    if not _agree(accelerator, error is None):
        folder = next(p for p in [target, *target.parents] if p.is_dir())
        line = (
            f"{target} could not be written: {why_unwritten(error, folder)}"
            if error
            else f"{target} could not be written"
        )
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
        raise BadInput(f"{line}; {keeps}") from error


def _move_into(aside: Path, target: Path) -> None:
    if target.exists():
        for entry in aside.iterdir():
            old = target / entry.name
            if old.is_dir():
                shutil.rmtree(old)
            os.replace(entry, old)
        aside.rmdir()
    else:
        os.replace(aside, target)
    folder = os.open(target.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def remove_old(output_dir: str | Path, limit: int | None, best: str | None) -> None:
    """Removes the oldest checkpoints beyond `limit`, never the best one."""
    if limit is None:
        return
    found = checkpoints(output_dir)
    for old in found[:-limit]:
        if best is None or old.resolve() != Path(best).resolve():
            shutil.rmtree(old)


def save_state(folder: Path, accelerator, ema, facts: dict) -> None:
    """Writes what an exact resume needs: weights, optimizer, schedule, scaler (through Accelerate), EMA, `facts`."""
    state = folder / STATE_FOLDER
    accelerator.save_state(str(state))
    if ema is not None and accelerator.is_main_process:
        torch.save(ema.state_dict(), state / "ema.bin")
    if accelerator.is_main_process:
        (state / STATE_FILE).write_text(json.dumps(facts, indent=2))


def read_facts(checkpoint: Path) -> dict:
    """What [`save_state`] kept as `facts`.

    Raises:
        BadInput: it can't be read.
    """
    try:
        return json.loads((checkpoint / STATE_FOLDER / STATE_FILE).read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{checkpoint} can't be read as a checkpoint of hfgen: {error}") from None


def load_state(checkpoint: Path, accelerator, ema) -> None:
    """Puts back what [`save_state`] wrote.

    Raises:
        BadInput: it can't be read, or belongs to another model.
    """
    state = checkpoint / STATE_FOLDER
    try:
        accelerator.load_state(str(state))
        if ema is not None:
            ema.load_state_dict(torch.load(state / "ema.bin", map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        first = " ".join(str(error).split())[:200]
        raise BadInput(f"{checkpoint} can't be resumed with these options: {first}") from error
