"""What the benchmarks share: where the data is, what the machine is, and the JSON line that each prints last."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))


def say(line: str) -> None:
    """Progress, on stderr: stdout ends with the JSON line."""
    print(line, file=sys.stderr, flush=True)


def words_and_options() -> tuple[list[str], list[str]]:
    """A benchmark's own words, and, from the first `--option` on, what goes to the recipe that it runs."""
    words = sys.argv[1:]
    first = next((k for k, word in enumerate(words) if word.startswith("--")), len(words))
    return words[:first], words[first:]


def data_folder(name: str) -> Path | None:
    """`name` in the folder that the first argument names, or else in ../shared/data beside the checkout."""
    given = [Path(word) for word in words_and_options()[0] if Path(word).is_dir()]
    roots = given or [HERE.parent.parent / "shared" / "data"]
    for root in roots:
        for path in (root / name, root):
            if path.name == name and path.exists():
                return path
    say(f"{name} is not at {roots[0]}: give its folder as the argument")
    return None


def median_ratio(ours: list[float], peers: list[float]) -> float:
    """The median of ours / peer's, pair by pair."""
    return statistics.median(a / b for a, b in zip(ours, peers, strict=True))


def machine() -> str:
    """The processor, cores in use and torch's version."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}"


def finish(**figures) -> None:
    """Prints the one JSON line."""
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps({**rounded, "machine": machine()}), flush=True)
