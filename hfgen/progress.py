"""Lines and progress bars that do not get into each other's way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm
from transformers.trainer_callback import CallbackHandler

# Below so many rows preparing a split takes a few seconds: a bar for each of its passes would only be noise.
FEW_ROWS = 20_000


def say(accelerator, line: str) -> None:
    """One line on the screen, from rank 0, without breaking the progress bar."""
    if accelerator.is_main_process:
        tqdm.write(line, file=sys.stderr)


@contextmanager
def closing_bars(handler: CallbackHandler) -> Iterator[None]:
    """After an error its line is the last thing on the screen, not a progress bar redrawn at exit."""
    try:
        yield
    except BaseException:
        for callback in handler.callbacks:
            for bar in (getattr(callback, name, None) for name in ("prediction_bar", "training_bar")):
                if bar is not None:
                    bar.close()
        raise


@contextmanager
def few_bars(rows: int) -> Iterator[None]:
    """Inside, the datasets library shows its progress bars only for many rows."""
    import datasets  # takes most of a second, and images that come with the install don't need it

    hide = rows < FEW_ROWS and not datasets.are_progress_bars_disabled()
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()
