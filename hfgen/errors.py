"""What the user got wrong, said in one line."""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

EXIT_BAD_INPUT = 2
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class BadInput(ValueError):
    """Something the user can mend: the message is one line that names the thing and the remedy."""


def speaks() -> bool:
    """True in the one process that may write to the screen (rank 0, or the only one)."""
    return int(os.environ.get("RANK", "0")) == 0


def _tell(message: str) -> int:
    if os.environ.get("HFGEN_DEBUG") == "1":
        traceback.print_exc()
    if not speaks():
        # Launchers stop the others as soon as one fails: rank 0, which mostly meets the same error, gets time to say
        # it. If this rank is still here then, rank 0 did not, and this one speaks.
        time.sleep(5)
    sys.stdout.flush()
    print(f"hfgen: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return EXIT_BAD_INPUT


def guarded(function: Callable[[], None]) -> int:
    """Runs `function`; a [`BadInput`] (or a full disk) becomes one line on stderr (rank 0 alone speaks).

    `HFGEN_DEBUG=1` shows the traceback as well.

    Returns:
        int: the exit code: 0, 2 for a [`BadInput`], or the code of a `SystemExit`.
    """
    try:
        function()
    except BadInput as error:
        return _tell(str(error))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        return _tell(f"the disk is full ({error.filename or error}): free some space and resume")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    return 0


def leave(code: int) -> NoReturn:
    """Ends a script with this exit code.

    A process among several skips the interpreter's teardown: now and then (once in some sixty runs) the threads behind
    the collectives abort in it, and the launcher reports a finished run as failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
