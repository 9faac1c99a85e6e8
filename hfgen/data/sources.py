"""Finds a dataset of images with the `datasets` library: on disk, in files, or on the Hub."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import socket
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import datasets
from datasets import ClassLabel, Features, Image, Value
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ..errors import BadInput, speaks
from .arguments import ImageDataArguments

# Builder of the datasets library for a single file or for the files of a glob.
BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
# The datasets library unpacks these.
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
VALIDATION_NAMES = ("validation", "valid", "val", "dev")
# The words by which the datasets library, too, tells splits apart in file names.
SPLIT_WORDS = {"validation": "validation|valid|dev|val|eval", "test": "test|testing", "train": "train|training"}


@dataclass
class Source:
    """A dataset that was found: its splits and what tells each one's content.

    A split is a `Dataset`, or an `IterableDataset` if streaming was asked for and it isn't made of local image files.
    """

    splits: dict[str, Any]
    fingerprints: dict[str, str]
    name: str

    def split(self, name: str, option: str) -> Any:
        if name not in self.splits:
            raise BadInput(f"--{option} {name}: dataset {self.name} has the splits {', '.join(self.splits)}")
        return self.splits[name]


def find_source(args: ImageDataArguments, streaming: bool) -> Source:
    """Opens `args.dataset_name`.

    Raises:
        BadInput: nothing is there, or the datasets library can't read it.
    """
    if not speaks():
        datasets.disable_progress_bars()
    name = os.path.expanduser(args.dataset_name)
    if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
        return saved_to_disk(name)
    return find_files_or_hub(name, args.dataset_config_name, args.cache_dir, BUILDERS, streaming=streaming)


def find_files_or_hub(
    name: str,
    config_name: str | None,
    cache_dir: str | None,
    builders: dict[str, str],
    builder_options: dict[str, dict[str, Any]] | None = None,
    streaming: bool = False,
) -> Source:
    """Opens a folder, a file, a glob or a Hub id with the datasets library.

    Args:
        name: what is opened, `~` expanded.
        config_name: the dataset's configuration.
        cache_dir: folder for prepared tables.
        builders: the builder by a file's ending, such as `{".parquet": "parquet"}`.
        builder_options: further options by builder or ending.
        streaming: open without preparing tables.

    Raises:
        BadInput: nothing is there, or the datasets library can't read it.
    """
    options = {"name": config_name, "cache_dir": cache_dir and os.path.expanduser(cache_dir)}
    if os.path.isdir(name):
        options["path"] = os.path.abspath(name)
    elif os.path.isfile(name) or glob.has_magic(name):
        options |= files_of(name, builders, builder_options or {})
    elif re.fullmatch(r"(hf://datasets/)?[\w.-]+(/[\w.-]+)?", name) and not name.startswith("."):
        options["path"] = name
    else:
        raise BadInput(f"dataset {name}: there is no such file or folder (looked in {os.getcwd()})")
    return with_datasets_library(name, options, streaming)


def files_of(
    pattern: str, builders: dict[str, str], builder_options: dict[str, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Arguments of `load_dataset` for a file or a glob; files go to the splits that their names tell."""
    one_file = [pattern] if os.path.isfile(pattern) else []
    files = sorted(os.path.abspath(file) for file in one_file or glob.glob(pattern, recursive=True))
    if not files:
        raise BadInput(f"dataset {pattern}: no file matches")
    endings = {file_ending(file) for file in files}
    if len(endings) > 1 or not endings <= builders.keys():
        raise BadInput(
            f"dataset {pattern}: files are read from {', '.join(builders)}, all of one kind, not from "
            f"{', '.join(sorted(endings))}"
            + ("" if ".txt" in builders else "; for a folder of images name the folder")
        )
    splits: dict[str, list[str]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", Path(file).stem.lower())
        split = next((s for s, known in SPLIT_WORDS.items() if set(words) & set(known.split("|"))), "train")
        splits.setdefault(split, []).append(file)
    ending = endings.pop()
    chosen = {"path": builders[ending], "data_files": splits if len(splits) > 1 else {"train": files}}
    return chosen | (builder_options or {}).get(ending, {}) | (builder_options or {}).get(builders[ending], {})


def file_ending(path: str | Path) -> str:
    """The ending that tells what is in a file, in lower case: `.jsonl` of `pairs.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def with_datasets_library(name: str, options: dict[str, Any], streaming: bool) -> Source:
    on_hub = "data_files" not in options and not os.path.isdir(options["path"])
    offline_before = datasets.config.HF_HUB_OFFLINE
    # Without a network the Hub's client retries for 23 s and prints each try; what is in its cache is still found.
    datasets.config.HF_HUB_OFFLINE = offline_before or (on_hub and not hub_is_reachable())
    try:
        builder = datasets.load_dataset_builder(**options)
        if streaming and not stores_only_paths(builder):
            splits = builder.as_streaming_dataset()
        else:
            builder.download_and_prepare()
            splits = {split: rows_of(builder, split) for split in builder.info.splits}
    except datasets.exceptions.DatasetGenerationError as error:
        raise BadInput(f"dataset {name} can't be read: {first_line(error.__cause__ or error)}") from error
    except StopIteration as error:  # of the datasets library, in a JSON file without a line
        raise BadInput(f"dataset {name} is empty") from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        problem = f"is no file or folder in {os.getcwd()}, nor to be had from the Hub" if on_hub else "can't be read"
        raise BadInput(f"dataset {name} {problem}: {first_line(error)}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline_before
    if isinstance(builder, ImageFolder):
        splits = without_split_labels(splits)
    identity = f"{builder.dataset_name}/{builder.config_id}/{builder.config.version}/{builder.hash}"
    return Source(dict(splits), {split: f"{identity}/{split}" for split in splits}, name)


def without_split_labels(splits: dict[str, Any]) -> dict[str, Any]:
    """Of images in train/ and test/ without class folders the datasets library takes those two names for classes."""
    words = {word for known in SPLIT_WORDS.values() for word in known.split("|")}
    features = next(iter(splits.values())).features or {}
    label = features.get("label")
    if isinstance(label, ClassLabel) and set(label.names) <= words:
        return {name: split.remove_columns("label") for name, split in splits.items()}
    return splits


def rows_of(builder: datasets.DatasetBuilder, split: str) -> datasets.Dataset:
    """One split; the datasets library itself fails on an empty one."""
    if builder.info.splits[split].num_examples == 0:
        return datasets.Dataset.from_dict({c: [] for c in builder.info.features}, features=builder.info.features)
    return builder.as_dataset(split=split)


def stores_only_paths(builder: datasets.DatasetBuilder) -> bool:
    """A folder of image files on this machine: its table is small, and can then be shuffled as a whole."""
    files = [file for split in (builder.config.data_files or {}).values() for file in split]
    local = all("://" not in file and not file.endswith(".zip") for file in files)
    return local and isinstance(builder, ImageFolder)


def saved_to_disk(folder: str) -> Source:
    try:
        loaded = datasets.load_from_disk(folder)
    except (OSError, ValueError) as error:
        raise BadInput(f"dataset {folder} can't be read: {first_line(error)}") from error
    splits = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    # A folder can be written anew with another content under the same fingerprint, so its files count too.
    fingerprints = {}
    for split, dataset in splits.items():
        files = [(Path(f["filename"]).name, os.stat(f["filename"])) for f in dataset.cache_files]
        state = [(name, status.st_size, status.st_mtime_ns) for name, status in files]
        fingerprints[split] = hashlib.sha256(repr((dataset._fingerprint, state)).encode()).hexdigest()
    return Source(splits, fingerprints, folder)


def hub_is_reachable() -> bool:
    """Whether the Hub's name resolves; behind a proxy that can't be told and counts as yes."""
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urlparse(datasets.config.HF_ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def image_column(features: Features, wanted: str | None, name: str) -> str:
    """The column of images: the one asked for, or the first.

    Raises:
        BadInput: it isn't there (the line lists those that are), or holds something else.
    """
    if wanted is not None and wanted not in features:
        raise BadInput(f"--image_column {wanted}: dataset {name} has the columns {', '.join(features)}")
    if wanted is not None and not holds_images(features[wanted]):
        raise BadInput(f"--image_column {wanted}: in dataset {name} it holds {kind(features[wanted])}, not images")
    candidates = [wanted] if wanted else [c for c, feature in features.items() if isinstance(feature, Image)]
    # Parquet files of other makers don't say that their bytes are images.
    candidates += [c for c, feature in features.items() if holds_images(feature)]
    if not candidates:
        raise BadInput(f"dataset {name} has no column of images, only {', '.join(features)}")
    return candidates[0]


def holds_images(feature: Any) -> bool:
    if isinstance(feature, dict):
        return feature.get("bytes") in (Value("binary"), Value("large_binary"))
    return isinstance(feature, Image) or feature in (Value("binary"), Value("large_binary"))


def kind(feature: Any) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def label_column(features: Features, wanted: str | None, name: str) -> str | None:
    """The column of labels: the one asked for, the first ClassLabel, one called label or labels, or None.

    Raises:
        BadInput: it isn't there (the line lists those that are), or holds neither classes nor integers nor strings.
    """
    if wanted is not None:
        if wanted not in features:
            raise BadInput(f"--label_column {wanted}: dataset {name} has the columns {', '.join(features)}")
        if not holds_labels(features[wanted]):
            raise BadInput(
                f"--label_column {wanted}: that column of dataset {name} holds {kind(features[wanted])}; "
                "labels are classes, integers or strings"
            )
        return wanted
    classes = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    named = [column for column in ("label", "labels") if column in features and holds_labels(features[column])]
    return next(iter(classes + named), None)


def holds_labels(feature: Any) -> bool:
    if isinstance(feature, ClassLabel):
        return True
    return isinstance(feature, Value) and any(kind in feature.dtype for kind in ("int", "string", "bool"))
