"""What the user got wrong, said in one line."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

EXIT_BAD_INPUT = 2


class BadInput(ValueError):
    """Something the user can mend: the message is one line that names the thing and the remedy."""


def speaks() -> bool:
    """True in the one process that may write to the screen (rank 0, or the only one)."""
    return int(os.environ.get("RANK", "0")) == 0


def guarded(function: Callable[[], None]) -> int:
    """Runs `function`; a [`BadInput`] becomes one line on stderr (rank 0 alone speaks).

    `HFGEN_DEBUG=1` shows the traceback as well.

    Returns:
        int: the exit code: 0, 2 for a [`BadInput`], or the code of a `SystemExit`.
    """
    try:
        function()
    except BadInput as error:
        if os.environ.get("HFGEN_DEBUG") == "1":
            traceback.print_exc()
        if speaks():
            sys.stdout.flush()
            print(f"hfgen: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return EXIT_BAD_INPUT
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    return 0
