"""Starts the toy run, a recipe or another script below tests/, as a user would: in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

HERE = Path(__file__).parent


def environment(threads: int = 1) -> dict[str, str]:
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_", "HFGEN_DEBUG")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(launcher)}
    path = os.pathsep.join(filter(None, [str(HERE.parent), str(HERE), kept.get("PYTHONPATH")]))
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def command(processes: int, *flags: str) -> list[str]:
    """Of the toy, or of the script that the first word names."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    # An absolute path, of a recipe, stays what it is.
    script, flags = (flags[0], flags[1:]) if flags and flags[0].endswith(".py") else ("toy.py", flags)
    return [*launcher, str(HERE / script), *flags]


def start(processes: int, *flags: str, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(processes, *flags),
        env=environment() | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def own_flags(argv: list[str], defaults: dict[str, float]) -> tuple[dict[str, float], list[str]]:
    """A test script's own `--name=number` flags, and the other words."""
    own, others = dict(defaults), []
    for word in argv:
        name, _, value = word.partition("=")
        if name in own:
            own[name] = float(value)
        else:
            others.append(word)
    return own, others


def run(processes: int, *flags: str, expect: int = 0, timeout: float = 180, **env: str) -> str:
    """Runs to the end; returns what it printed."""
    process = start(processes, *flags, **env)
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == expect, output[-4000:]
    return output


def kill_after(process: subprocess.Popen, output_dir: Path, seconds: float) -> None:
    """kill -9 to the launcher and all its workers, `seconds` after it wrote its first checkpoint."""
    before = set(output_dir.glob("checkpoint-*"))
    deadline = time.monotonic() + 120
    while not set(output_dir.glob("checkpoint-*")) - before:
        assert process.poll() is None, process.stdout.read()[-4000:]
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)
    time.sleep(seconds)
    launcher = psutil.Process(process.pid)
    family = [*launcher.children(recursive=True), launcher]  # torchrun's workers have process groups of their own
    for member in family:
        member.kill()
    process.communicate()
    psutil.wait_procs(family, timeout=30)
