"""Decoded pixels on disk: one uint8 file a split, mapped into memory by every process that trains on it.

A cache is a folder `<root>/<key>/` with `pixels.u8` (N x C x H x W bytes) and `meta.json`. It is built in `<key>.tmp`
under a file lock, synced and renamed, so it is either whole or absent, whoever is killed when.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import pyarrow as pa
import torch
import xxhash
from filelock import FileLock, Timeout
from tqdm import tqdm

from ..errors import BadInput, speaks
from .decode import (
    PixelFormat,
    UnreadableImage,
    decode_all,
    decoding_workers,
    image_name,
    natural_shape,
    open_image,
    stored_values,
    unreadable_input,
)

if TYPE_CHECKING:
    from datasets import Dataset

# Part of every key: raise it when the same input gives other pixels or another file layout.
FORMAT_VERSION = 1
# What is decoded at a time: at most so many images, and so many bytes.
BLOCK_IMAGES, BLOCK_BYTES = 128, 2**22


@dataclass
class Split:
    """Rows of a dataset whose images are wanted.

    Args:
        dataset: a `datasets.Dataset` whose `image_column` is not decoded (`Image(decode=False)`).
        rows: increasing row numbers, int64 (N,).
        name: of the split, for messages.
        purpose: train, validation or test, for the progress bar.
        fingerprint: changes when the dataset does.
    """

    dataset: Dataset
    image_column: str
    rows: np.ndarray
    name: str
    purpose: str
    fingerprint: str

    def row_name(self, row: int) -> str:
        return f"split '{self.name}', row {row}"

    def encoded(self, rows: np.ndarray) -> pa.StructArray:
        """The stored images of some rows: `bytes` and `path` of each."""
        return self._table[rows.tolist()].column(0).combine_chunks()

    @cached_property
    def _table(self) -> Dataset:
        return self.dataset.select_columns([self.image_column]).with_format("arrow")

    def files_digest(self) -> str:
        """Of the paths, sizes and times of change of the image files that the dataset names but does not hold."""
        digest = hashlib.sha256()
        chosen, start = set(self.rows.tolist()), 0
        for chunk in self.dataset.data.column(self.image_column).chunks:
            if chunk.field("bytes").null_count:
                paths, held = chunk.field("path").to_pylist(), chunk.field("bytes").is_valid().to_pylist()
                for row, path in enumerate(paths, start):
                    if path is not None and not held[row - start] and row in chosen:
                        digest.update(file_state(path))
            start += len(chunk)
        return digest.hexdigest()


def file_state(path: str) -> bytes:
    """Changes when the file does; of a file that is absent or inside an archive it tells the name only."""
    try:
        status = os.stat(path)
    except OSError:
        return f"{path}\0".encode()
    return f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode()


@dataclass
class Pixels:
    """What a cache holds.

    Args:
        images: uint8 (N, C, H, W), mapped read-only.
        skipped: (row, name, reason) of each image that could not be read.
        digest: of the pixels themselves, the same on every machine.
    """

    images: np.ndarray
    skipped: list[tuple[int, str, str]]
    digest: str


def cached_pixels(split: Split, pixels: PixelFormat, root: Path, skip_unreadable: bool = False) -> Pixels:
    """Maps the split's cache, after building it if it isn't there yet.

    Of several processes that start at once one builds and the others wait.

    Raises:
        BadInput: an unreadable image (unless `skip_unreadable`), several sizes without a resolution, too little free
            disk, a cache folder that can't be written to.
    """
    description = [FORMAT_VERSION, split.fingerprint, split.files_digest(), split.image_column]
    description += [hashlib.sha256(split.rows.tobytes()).hexdigest(), pixels.size, pixels.channels, pixels.resize_mode]
    key = hashlib.sha256(json.dumps(description).encode()).hexdigest()[:32]
    folder, lock = root / key, FileLock(root / f"{key}.lock")
    found = open_cache(folder)
    if found is None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            let_local_rank_0_go_first(folder, lock)
            with lock:
                found = open_cache(folder)
                if found is None:
                    remove_leftovers(root, lock)
                    build_cache(split, pixels, folder, skip_unreadable)
                    found = open_cache(folder)
        except OSError as error:
            raise BadInput(
                f"the cache folder {root} can't be written to ({error}); name another with --cache_dir"
            ) from error
    if found.skipped and not skip_unreadable:
        raise unreadable_input(*found.skipped[0][1:])
    return found


def open_cache(folder: Path) -> Pixels | None:
    """The cache in `folder`, or None where there is none or it isn't whole."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        path, shape = folder / "pixels.u8", tuple(meta["shape"])
        if path.stat().st_size != np.prod(shape, dtype=np.int64):
            return None
    except (OSError, ValueError, KeyError):
        return None
    images = np.memmap(path, dtype=np.uint8, mode="r", shape=shape)
    return Pixels(images, [tuple(entry) for entry in meta["skipped"]], meta["digest"])


def let_local_rank_0_go_first(folder: Path, lock: FileLock, patience: float = 10.0) -> None:
    """Other ranks wait a little for rank 0 to take the lock, since only rank 0 shows the progress bar."""
    deadline = time.monotonic() + patience
    while os.environ.get("LOCAL_RANK", "0") != "0" and time.monotonic() < deadline and not folder.exists():
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return
        lock.release()
        time.sleep(0.1)


def remove_leftovers(root: Path, own_lock: FileLock) -> None:
    """Removes what killed builds left: a temporary folder whose lock nobody holds belongs to no living process."""
    for leftover in root.glob("*.tmp"):
        lock = FileLock(leftover.with_suffix(".lock"))
        if lock.lock_file == own_lock.lock_file:
            shutil.rmtree(leftover, ignore_errors=True)
            continue
        try:
            with lock.acquire(timeout=0):
                shutil.rmtree(leftover, ignore_errors=True)
        except Timeout:
            continue


def build_cache(split: Split, pixels: PixelFormat, folder: Path, skip_unreadable: bool) -> None:
    """Decodes the split beside `folder`, then puts it in place in one rename."""
    pixels = pixels.completed_by(*natural_shape(first_image(split, pixels, skip_unreadable)))
    needed = len(split.rows) * int(np.prod(pixels.shape))
    require_disk(folder.parent, needed)
    temporary = folder.with_suffix(".tmp")
    temporary.mkdir()
    try:
        digest, kept, skipped = xxhash.xxh3_128(), 0, []
        with open(temporary / "pixels.u8", "wb") as file:
            for block in decoded_blocks(split, pixels, skip_unreadable):
                file.write(block.images)
                digest.update(block.digest)
                kept += len(block.images)
                skipped += block.unreadable
            synced(file)
        if kept == 0:
            raise BadInput(f"split '{split.name}' of the dataset has no readable image")
        shape = (kept, *pixels.shape)
        digest.update(repr(shape).encode())
        with open(temporary / "meta.json", "w", encoding="utf-8") as file:
            json.dump({"shape": shape, "skipped": skipped, "digest": digest.hexdigest()}, file)
            synced(file)
        if folder.exists():  # a cache that open_cache found damaged
            shutil.rmtree(folder)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(folder.parent, needed) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def first_image(split: Split, pixels: PixelFormat, skip_unreadable: bool) -> PIL.Image.Image:
    """The first readable image, which tells the size and the channels that were left open."""
    for row in split.rows:
        value = next(stored_values(split.encoded(np.array([row]))))
        try:
            return open_image(value, pixels)
        except UnreadableImage as error:
            if not skip_unreadable:
                raise unreadable_input(image_name(value, split.row_name(row)), str(error)) from error
    raise BadInput(f"split '{split.name}' of the dataset has no readable image")


@dataclass
class Block:
    """What decoding some rows gave.

    Args:
        images: uint8 (N, C, H, W) of the readable ones. An array: from a worker it comes through a pipe, which takes
            half the time of a tensor's shared memory and works in containers, which have little of that.
        digest: of the images.
        unreadable: (row, name, reason) of the others.
        complaint: the message of a [`BadInput`] that stopped it.
    """

    rows: int
    images: np.ndarray | None = None
    digest: bytes = b""
    unreadable: list[tuple[int, str, str]] = field(default_factory=list)
    complaint: str | None = None


class Blocks(torch.utils.data.Dataset):
    """A split cut into blocks; indexing one decodes it."""

    def __init__(self, split: Split, pixels: PixelFormat, skip_unreadable: bool):
        self.split, self.pixels, self.skip_unreadable = split, pixels, skip_unreadable
        self.size = max(1, min(BLOCK_IMAGES, BLOCK_BYTES // int(np.prod(pixels.shape))))

    def __len__(self) -> int:
        return -(-len(self.split.rows) // self.size)

    def __getitem__(self, index: int) -> Block:
        rows = self.split.rows[index * self.size : (index + 1) * self.size]
        names = [self.split.row_name(row) for row in rows]
        try:
            values = stored_values(self.split.encoded(rows))
            images, unreadable = decode_all(values, names, self.pixels, self.skip_unreadable)
        except BadInput as error:  # a worker process would hand it on with its traceback in the message
            return Block(len(rows), complaint=str(error))
        digest = xxhash.xxh3_128_digest(images)
        skipped = [(int(rows[i]), name, reason) for i, name, reason in unreadable]
        return Block(len(rows), images, digest, skipped)


def decoded_blocks(split: Split, pixels: PixelFormat, skip_unreadable: bool) -> Iterator[Block]:
    """Decoded blocks in the order of the rows, made by one process a core where forking one is cheap.

    Threads would do for large images, but with small ones they wait for Python's lock more than they work: two decode
    9,000 JPEGs of 64x64 a second where one decodes 15,000.
    """
    blocks = Blocks(split, pixels, skip_unreadable)
    workers = min(decoding_workers(), len(blocks)) if sys.platform == "linux" and len(blocks) > 1 else 0
    loader = torch.utils.data.DataLoader(
        blocks,
        batch_size=None,
        collate_fn=as_it_is,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator(),  # not the global one: initial weights must not depend on what was cached before
    )
    with tqdm(total=len(split.rows), desc=f"Decoding {split.purpose}", unit="img", disable=not speaks()) as bar:
        for block in loader:
            if block.complaint is not None:
                raise BadInput(block.complaint)
            yield block
            bar.update(block.rows)


def as_it_is(block: Block) -> Block:
    return block


def require_disk(root: Path, needed: int) -> None:
    if needed > shutil.disk_usage(root).free:
        raise disk_full(root, needed)


def disk_full(root: Path, needed: int) -> BadInput:
    return BadInput(
        f"the decoded images need {needed:,} bytes and {root} has {shutil.disk_usage(root).free:,} free; "
        "make room, name another folder with --cache_dir, lower --resolution, or read them anew in every epoch with "
        "--streaming true"
    )


def synced(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
