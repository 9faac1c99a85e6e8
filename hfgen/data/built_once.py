"""A folder that is made once, by whichever process comes first, and is whole or absent, whoever is killed when."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
from filelock import FileLock

from ..checkpoint import fsync_tree
from ..errors import DISK_FULL, BadInput
from .cache import let_local_rank_0_go_first, remove_leftovers


def cache_root(cache_dir: str | None) -> Path:
    """The folder for prepared data: `hfgen` in `cache_dir`, or in the datasets library's own."""
    return Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser() / "hfgen"


def built_once(root: Path, key: str, build: Callable[[Path], None]) -> Path:
    """`root/key`, after `build(folder)` filled it if it was not there yet.

    Of several processes that start at once one builds and the others wait.

    Raises:
        BadInput: `root` can't be written to, or the disk is full.
    """
    folder, lock = root / key, FileLock(root / f"{key}.lock")
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        let_local_rank_0_go_first(folder, lock)
        with lock:
            if not folder.is_dir():
                remove_leftovers(root, lock)
                temporary = folder.with_suffix(".tmp")
                temporary.mkdir()
                try:
                    build(temporary)
                    fsync_tree(temporary)
                    os.replace(temporary, folder)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        why = "the disk is full" if error.errno in DISK_FULL else str(error)
        raise BadInput(
            f"the cache folder {root} can't be written to ({why}); name another with --cache_dir"
        ) from error
    return folder
