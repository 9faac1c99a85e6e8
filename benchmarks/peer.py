"""The peers that benchmarks compare hfgen with: packages in environments of their own, repositories in clones.

Nothing of a peer is installed beside hfgen. What was made once is kept under the cache folder and used again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock


def cache_folder() -> Path:
    """Where environments and clones are kept: `hfgen-peers` in the user's cache folder."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hfgen-peers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def venv(name: str, requirements: list[str]) -> Path | None:
    """The Python of an environment that has `requirements`, made on the first call (it may take minutes).

    Returns:
        Path: the interpreter; None, after saying why, where it can't be made.
    """
    digest = hashlib.sha256(repr((sys.version_info[:2], requirements)).encode()).hexdigest()[:12]
    folder = cache_folder() / f"{name}-{digest}"
    python, complete = folder / "bin" / "python", folder / "complete"
    with FileLock(f"{folder}.lock"):
        if complete.exists():
            return python
        print(
            f"making an environment for {name} in {folder} ({', '.join(requirements)}) ...",
            file=sys.stderr,
            flush=True,
        )
        shutil.rmtree(folder, ignore_errors=True)
        try:
            run(sys.executable, "-m", "venv", str(folder))
            run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
        except RuntimeError as error:
            print(f"the peer {name} did not run: {error}", file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            return None
        complete.touch()
        return python


def repository(name: str, url: str) -> Path | None:
    """The folder of a peer that lives only in a repository: `$HFGEN_PEERS/<name>`, else a clone of `url`.

    Returns:
        Path: the folder; None, after saying why, where there is neither.
    """
    given = os.environ.get("HFGEN_PEERS")
    if given and (Path(given) / name).is_dir():
        return Path(given) / name
    folder = cache_folder() / name
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return folder
        print(f"cloning {url} ...", file=sys.stderr, flush=True)
        unfinished = folder.with_suffix(".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            run("git", "clone", "--quiet", "--depth", "1", url, str(unfinished))
        except RuntimeError as error:
            print(
                f"the peer {name} did not run: {error}; put it under the folder that HFGEN_PEERS names",
                file=sys.stderr,
                flush=True,
            )
            return None
        unfinished.rename(folder)
        return folder


def run(*command: str) -> None:
    """Runs a command; where it fails, the error is the line in which it says why."""
    try:
        environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    except FileNotFoundError as error:
        raise RuntimeError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        lines = [line.strip() for line in (error.stderr or error.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith(("fatal", "error"))]
        raise RuntimeError((errors or lines[-1:] or [f"{command[0]} failed"])[0]) from error
