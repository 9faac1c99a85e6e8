"""Exact resume for transformers' and TRL's trainers: kill -9, run again, and the weights are equal bit for bit.

Transformers restores the order of samples, but not a collator's random draws (masks, augmentation), and its
checkpoints are written in place. Here every draw is a pure function: the order one of (seed, epoch), what the
collator draws one of (seed, epoch, position), what the step draws (dropout) one of (seed, step, rank). The trainers
stay as they are: a data set and a callback do it.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer_callback import TrainerCallback

from .. import checkpoint as checkpointing
from ..errors import BadInput
from ..guard import StepGuard
from ..progress import closing_bars, say
from ..seeding import mix, seed_globals

# Three kinds of draws that share no seed.
_ORDER, _COLLATION, _STEP = 11, 12, 13


class EpochDataset(torch.utils.data.Dataset):
    """A map-style dataset in an order that is a pure function of (seed, epoch).

    Fetching a batch seeds the global generators from (seed, epoch, position), so whatever its collator draws next, in
    this process or in a loader's worker, is the same after a resume. The step's own draws are seeded after that, by
    [`ExactResume`].

    Args:
        dataset: what is reordered; one with `__getitems__` may hand over a ready batch, one with `epoch_order(draw)`
            makes the order itself, from NumPy's generator `draw` alone (rows of like length together, say).
        seed: of the run.
    """

    def __init__(self, dataset, seed: int):
        self.dataset, self.seed = dataset, seed
        self.name = getattr(dataset, "name", None)
        self.fingerprint = getattr(dataset, "fingerprint", getattr(dataset, "_fingerprint", None))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by Accelerate's loader before each epoch."""
        self.epoch = epoch
        draw = np.random.default_rng([self.seed, epoch, _ORDER])
        own = getattr(self.dataset, "epoch_order", None)
        self.order = draw.permutation(len(self.dataset)) if own is None else own(draw)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, positions: list[int]) -> Any:
        seed_globals(mix(self.seed, self.epoch, positions[0], _COLLATION))
        rows = self.order[np.asarray(positions, np.int64)].tolist()
        if hasattr(self.dataset, "__getitems__"):
            return self.dataset.__getitems__(rows)
        return [self.dataset[row] for row in rows]

    def __getitem__(self, position: int) -> Any:
        return self.dataset[int(self.order[position])]


class EpochStream(torch.utils.data.IterableDataset):
    """A stream whose n-th sample, and what is drawn to collate it, is a pure function of (seed, epoch, n).

    A resume reads the stream again up to where it was: exact, at the price of that reading.

    Args:
        stream: an iterable of samples; `set_epoch(epoch)` of it is called where it has one.
        seed: of the run.
    """

    def __init__(self, stream, seed: int):
        self.stream, self.seed, self.epoch = stream, seed, 0
        self.name, self.fingerprint = getattr(stream, "name", None), getattr(stream, "fingerprint", None)

    def set_epoch(self, epoch: int) -> None:
        """Called by Accelerate's loader before each epoch."""
        self.epoch = epoch
        if hasattr(self.stream, "set_epoch"):
            self.stream.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        for position, sample in enumerate(self.stream):
            seed_globals(mix(self.seed, self.epoch, position, _COLLATION))
            yield sample


class _AlreadyTrained(Exception):
    """The checkpoint is the run's last: transformers would train one step more."""


class ExactResume(TrainerCallback):
    """Seeds each step, stops for a loss that is not finite and for signals, and marks whole checkpoints.

    Args:
        trainer: the trainer that it belongs to.
        save_total_limit: checkpoints kept, the best one besides; transformers would remove the old one before the new
            one is known to be whole.
    """

    def __init__(self, trainer: Trainer, save_total_limit: int | None):
        self.trainer, self.save_total_limit = trainer, save_total_limit
        self.guard = StepGuard(trainer.accelerator)
        self.received = 0
        self.started = False

    def on_train_begin(self, args, state, control, **kwargs):
        if 0 < state.max_steps <= state.global_step:
            raise _AlreadyTrained
        self.started = True

    def on_step_begin(self, args, state, control, **kwargs):
        seed_globals(mix(args.seed, state.global_step, args.process_index, _STEP), args.device)

    def on_step_end(self, args, state, control, **kwargs):
        # The sum since the last log: once it is not finite it stays so.
        total = self.trainer._tr_loss
        self.guard.record(state.global_step, {"loss": total.item() if total.device.type == "cpu" else total.clone()})
        found = self.guard.look(
            state.global_step, now=control.should_log or control.should_evaluate or control.should_save
        )
        if found.bad is not None:
            kept = checkpointing.checkpoints(args.output_dir)
            last = f"{kept[-1]} is kept" if kept else "no checkpoint was written before"
            raise BadInput(
                f"the loss is not finite at step {found.bad[0]}; {last}: lower --learning_rate, or clip with "
                "--max_grad_norm 1"
            )
        if found.signal:
            self.received = found.signal
            control.should_save = control.should_training_stop = True
        return control

    def on_save(self, args, state, control, **kwargs):
        self.trainer.accelerator.wait_for_everyone()  # each rank writes its own part
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing here reads
        checkpointing.fsync_tree(folder)
        mark = folder / checkpointing.STATE_FOLDER
        mark.mkdir(exist_ok=True)
        aside = mark / f".{checkpointing.STATE_FILE}.tmp"
        aside.write_text(json.dumps(facts(self.trainer), indent=2))
        aside.rename(mark / checkpointing.STATE_FILE)
        checkpointing.fsync_tree(mark)
        checkpointing.remove_old(args.output_dir, self.save_total_limit, state.best_model_checkpoint)


def facts(trainer: Trainer) -> dict:
    """What a resumed run must share with the checkpoint to be bit-identical."""
    args = trainer.args
    return {
        "trainer": type(trainer).__name__,
        "num_processes": trainer.accelerator.num_processes,
        "step_size": args.train_batch_size * args.gradient_accumulation_steps * trainer.accelerator.num_processes,
        "seed": args.seed,
        "dataset": getattr(trainer.train_dataset, "fingerprint", None),
    }


def train_exactly(trainer: Trainer, resume_from_checkpoint: str | None, save_total_limit: int | None = None) -> None:
    """Runs `trainer.train()` so that a run that was killed and repeated ends with the same weights.

    The trainer's data set is put into an order of its own, its other samplers are not used.

    Args:
        trainer: a transformers or TRL trainer, ready to train; its `args.save_total_limit` must be `None`.
        resume_from_checkpoint: `true` goes on from `output_dir`'s newest whole checkpoint; or a checkpoint's folder.
        save_total_limit: checkpoints kept, the best one besides.

    Raises:
        BadInput: a loss that is not finite, a checkpoint that can't be written, read or resumed.
        SystemExit: on SIGTERM or SIGINT, after a checkpoint was written (128 + the signal's number).
    """
    args = trainer.args
    checkpoint = checkpointing.find_checkpoint(args.output_dir, resume_from_checkpoint)
    trainer.accelerator.wait_for_everyone()  # no rank may write before all have looked
    if trainer.accelerator.is_main_process:
        _remove_unfinished(args.output_dir)
    trainer.accelerator.wait_for_everyone()
    data = trainer.train_dataset
    stream = isinstance(data, torch.utils.data.IterableDataset)
    trainer.train_dataset = EpochStream(data, args.seed) if stream else EpochDataset(data, args.seed)
    args.train_sampling_strategy = "sequential"
    exact = ExactResume(trainer, save_total_limit)
    trainer.add_callback(exact)
    if checkpoint is not None:
        _check(trainer, checkpoint)
        say(trainer.accelerator, f"resuming {checkpoint} at step {checkpointing.step_of(checkpoint)}")
    elif str(resume_from_checkpoint).lower() == "true":
        say(trainer.accelerator, f"{args.output_dir} holds no checkpoint yet: starting at step 0")
    try:
        with exact.guard.signals(), closing_bars(trainer.callback_handler), own_names(trainer):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except _AlreadyTrained:
        say(trainer.accelerator, f"{checkpoint} is the run's last: nothing is left to train")
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise _explained(error, trainer, exact, checkpoint) from error
    if exact.received:
        name = signal.Signals(exact.received).name
        say(
            trainer.accelerator,
            f"hfgen: {name} at step {trainer.state.global_step}: saved {args.output_dir}/checkpoint-"
            f"{trainer.state.global_step}; continue with --resume_from_checkpoint true",
        )
        raise SystemExit(128 + exact.received)


@contextmanager
def own_names(trainer: Trainer) -> Iterator[None]:
    """Inside, checkpoints hold weights under the names that the model has in memory.

    transformers 5 saves some architectures (ViT, say) under the names of older versions, and its Trainer reads them
    back without renaming: a resume, and `load_best_model_at_end`, would silently keep what is in memory.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    before = getattr(model, "_weight_conversions", None)
    model._weight_conversions = []
    try:
        yield
    finally:
        if before is None:
            del model._weight_conversions
        else:
            model._weight_conversions = before


def _remove_unfinished(output_dir: str) -> None:
    for folder in checkpointing.checkpoint_folders(output_dir):
        if not checkpointing.is_whole(folder):
            shutil.rmtree(folder)


def _check(trainer: Trainer, checkpoint: Path) -> None:
    before, now = checkpointing.read_facts(checkpoint), facts(trainer)
    if before.get("trainer") != now["trainer"]:
        raise BadInput(f"{checkpoint} was written by {before.get('trainer')}, this is {now['trainer']}")
    for name, value in now.items():
        if before.get(name) != value:
            say(trainer.accelerator, f"hfgen: warning: {name} was {before.get(name)}, is {value}: not bit-identical")


def _explained(error: Exception, trainer: Trainer, exact: ExactResume, checkpoint: Path | None) -> Exception:
    """A [`BadInput`] where the user can mend it, else the error itself."""
    if isinstance(error, BadInput):
        return error
    output_dir = trainer.args.output_dir
    unfinished = [f for f in checkpointing.checkpoint_folders(output_dir) if not checkpointing.is_whole(f)]
    if unfinished:
        line = f"{unfinished[-1]} could not be written: {checkpointing.why_unwritten(error, Path(output_dir))}"
        if trainer.accelerator.is_main_process:
            _remove_unfinished(output_dir)
        kept = checkpointing.checkpoints(output_dir)
        return BadInput(f"{line}; {f'{kept[-1]} is kept' if kept else 'no checkpoint was written before'}")
    if checkpoint is not None and not exact.started:
        first = " ".join(str(error).split())[:200]
        return BadInput(f"{checkpoint} can't be resumed with these options: {first}")
    return error
