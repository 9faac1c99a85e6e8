"""Text for training: found on disk, in files, on the Hub or in Python itself; checked; split; mixed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ..config import nearest
from ..errors import BadInput, speaks
from .cached_splits import choose_splits, held_out, subset
from .sources import Source, file_ending, find_files_or_hub, saved_to_disk

# What each kind of file is read with.
TEXT_BUILDERS = {
    ".txt": "text",
    ".md": "text",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
# With fewer documents than this the validation split is the end of the text, not some of the documents.
FEW_DOCUMENTS = 20


@dataclass
class TextDataArguments:
    """Where the text is; one dataclass for every text recipe.

    Raises:
        BadInput: a value out of its range, or options that contradict each other.
    """

    _argument_group_name = "data"

    dataset_name: list[str] = field(
        default_factory=lambda: ["stdlib"],
        metadata={
            "help": "`stdlib` (text that comes with Python); a txt, json, jsonl, csv, parquet or arrow file (gz too), "
            "a glob or a folder of them; a folder written by save_to_disk; a Hub id. Several are mixed."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the dataset, if it has several."}
    )
    dataset_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "How often a sample comes from each of several datasets; in proportion to size if not given."
        },
    )
    stopping_strategy: Literal["first_exhausted", "all_exhausted"] = field(
        default="all_exhausted",
        metadata={
            "help": "A weighted mixture's epoch ends with the first dataset's end, or once all were seen whole."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Name of the split to train on."})
    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "Name of the validation split; if not given, `validation`, `valid`, `val` or `dev` if there."
        },
    )
    test_split: str | None = field(
        default=None, metadata={"help": "Name of the test split; if not given, `test` if there."}
    )
    validation_fraction: float = field(
        default=0.1,
        metadata={
            "help": "Share of the train split held out where there is no validation split (of few documents: the end "
            "of the text); 0 holds out none."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on a fixed random subset of this many rows."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Keep this many rows of the validation and test splits (streaming: 200)."}
    )
    skip_bad_rows: bool = field(
        default=False, metadata={"help": "Count rows that can't be used and go on instead of stopping at the first."}
    )
    sample_by: Literal["document", "paragraph", "line"] = field(
        default="document", metadata={"help": "What a row of a txt file is."}
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the training text anew in every pass instead of preparing it (causal pretraining)."},
    )
    shuffle_buffer_size: int = field(
        default=1000, metadata={"help": "Streaming: rows held in memory to draw the next one from."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder for prepared data; the datasets library's own by default."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.dataset_name, str):
            self.dataset_name = [self.dataset_name]
        if not 0 <= self.validation_fraction < 1:
            raise BadInput(f"--validation_fraction {self.validation_fraction}: must be at least 0 and below 1")
        for name in ("max_train_samples", "max_eval_samples", "shuffle_buffer_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"--{name} {value}: must be at least 1")
        weights = self.dataset_weights
        if weights is not None and (len(weights) != len(self.dataset_name) or min(weights) <= 0):
            raise BadInput(
                f"--dataset_weights {' '.join(map(str, weights))}: give one number above 0 for each of the "
                f"{len(self.dataset_name)} datasets"
            )


@dataclass
class TextSplits:
    """What was loaded.

    Attributes:
        splits: `train`; `validation`, held out of train where the dataset has none; `test` where it has one.
        name: of the dataset(s), for messages, cards and run.json.
        skipped: rows left out, by split.
    """

    splits: dict[str, Dataset]
    name: str
    skipped: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, split: str) -> Dataset:
        return self.splits[split]

    def __contains__(self, split: str) -> bool:
        return split in self.splits

    @property
    def held_out(self) -> str | None:
        """The split that final figures are measured on: test, or else validation; None where there is neither."""
        return next((split for split in ("test", "validation") if split in self.splits), None)


def load_text(
    args: TextDataArguments,
    columns: Sequence[str] | Callable[[list[str]], Sequence[str]],
    embedded: Callable[[], dict[str, dict[str, list]]],
    check: Callable[[Dataset], np.ndarray] | None = None,
) -> TextSplits:
    """Loads the splits that `args` names, with the given columns and no empty rows.

    Args:
        args: see [`TextDataArguments`].
        columns: what each row must have; other columns are left out. Empty: all are kept, none is checked. Or a
            function that chooses them from those that the training split has.
        embedded: the columns of each split of `stdlib` (see [`hfgen.data.stdlib`]).
        check: a split -> bool (N,), True for rows that can be used, beyond not being empty. It may have a method
            `why(split, row)` that says what is wrong with one.

    Raises:
        BadInput: whatever is wrong with the dataset or with what was asked of it, in one line.
    """
    if not speaks():
        datasets.disable_progress_bars()
    if args.streaming:
        raise BadInput("--streaming true is for pretrain_causal_lm; here the data is prepared once: leave it out")
    loaded = [_load_one(name, args, columns, embedded, check) for name in args.dataset_name]
    if len(loaded) == 1:
        return loaded[0]
    return _mixed(loaded, args)


def _load_one(name: str, args: TextDataArguments, columns, embedded, check) -> TextSplits:
    if name == "stdlib":
        parts = {split: Dataset.from_dict(rows) for split, rows in embedded().items()}
        source = Source(parts, {}, "stdlib")
    else:
        source = find_text(name, args)
    names = choose_splits(args, source)
    splits = {purpose: source.splits[split] for purpose, split in names.items()}
    if callable(columns):
        columns = columns(splits["train"].column_names)
    for purpose, split in splits.items():
        if len(split) == 0:
            raise BadInput(f"split '{names[purpose]}' of dataset {name} is empty")
        missing = [column for column in columns if column not in split.column_names]
        if missing:
            raise BadInput(
                f"dataset {name}, split '{names[purpose]}': there is no column {missing[0]}, only "
                f"{', '.join(split.column_names)}{nearest(missing[0], split.column_names)}"
            )
    if columns:
        splits = {purpose: split.select_columns(list(columns)) for purpose, split in splits.items()}
    skipped = {}
    for purpose, split in splits.items():
        good = usable_rows(split, columns)
        if check is not None:
            good &= check(split)
        if not good.all():
            if not args.skip_bad_rows:
                first = int(np.argmin(good))
                wrong = describe_bad_row(split, columns, first, getattr(check, "why", None))
                raise BadInput(
                    f"dataset {name}, split '{names[purpose]}', row {first}: {wrong}; mend it, or leave such rows out "
                    "with --skip_bad_rows true"
                )
            skipped[purpose] = int((~good).sum())
            if speaks():
                print(f"hfgen: {skipped[purpose]} rows of the {purpose} split were left out", file=sys.stderr)
            splits[purpose] = split.select(np.flatnonzero(good))
            if len(splits[purpose]) == 0:
                raise BadInput(f"split '{names[purpose]}' of dataset {name} has no row that can be used")
    if "validation" not in splits and args.validation_fraction > 0:
        splits["train"], splits["validation"] = _hold_out(splits["train"], args, names["train"])
    for purpose, split in splits.items():
        limit = args.max_train_samples if purpose == "train" else args.max_eval_samples
        if limit is not None and limit < len(split):
            splits[purpose] = split.select(subset(np.arange(len(split)), limit))
    ordered = {purpose: splits[purpose] for purpose in ("train", "validation", "test") if purpose in splits}
    return TextSplits(ordered, name, skipped)


def find_text(name: str, args: TextDataArguments) -> Source:
    """Opens a dataset of text; its splits are read as streams with `args.streaming`.

    Raises:
        BadInput: nothing is there, or the datasets library can't read it; names the file and the line where it can.
    """
    path = os.path.expanduser(name)
    if (Path(path) / "state.json").is_file() or (Path(path) / "dataset_dict.json").is_file():
        return saved_to_disk(path)
    if os.path.isdir(path):
        endings = {file_ending(f) for f in Path(path).rglob("*") if f.is_file()} & TEXT_BUILDERS.keys()
        if endings == {".txt"}:  # the datasets library would read them line by line
            path = os.path.join(path, "**", "*.txt")
    try:
        return find_files_or_hub(
            path,
            args.dataset_config_name,
            args.cache_dir,
            TEXT_BUILDERS,
            {"text": {"sample_by": args.sample_by}, ".tsv": {"sep": "\t"}},
            args.streaming,
        )
    except BadInput as error:
        if (place := _bad_text(path)) is not None:
            raise BadInput(f"dataset {name}: {place}") from error
        raise


def _bad_text(pattern: str) -> str | None:
    """The file and line that is not UTF-8 or not JSON, of those that a pattern names on this machine."""
    import glob

    files = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
    if os.path.isdir(pattern):
        files = sorted(str(f) for f in Path(pattern).rglob("*") if f.is_file())
    for file in files:
        if Path(file).suffix.lower() not in (".txt", ".md", ".json", ".jsonl", ".csv", ".tsv"):
            continue
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    return (
                        f"{file}, line {number} is not UTF-8 (byte {error.start}: {line[error.start]:#x}); convert it"
                    )
                if Path(file).suffix.lower() == ".jsonl" and text.strip():
                    try:
                        json.loads(text)
                    except ValueError as error:
                        return f"{file}, line {number} is not JSON: {error}"
    return None


def usable_rows(split: Dataset, columns: Sequence[str]) -> np.ndarray:
    """bool (N,): True where no column is missing or empty (text of white space alone, a list of nothing)."""
    good = np.ones(len(split), bool)
    for column in columns:
        values = split.data.column(column).combine_chunks() if split._indices is None else None
        if values is None:
            values = pa.array(split[column])
        full = pc.is_valid(values)
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            full = pc.and_(full, pc.fill_null(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(values)), 0), False))
        elif pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            full = pc.and_(full, pc.fill_null(pc.greater(pc.list_value_length(values), 0), False))
        good &= full.to_numpy(zero_copy_only=False)
    return good


def describe_bad_row(
    split: Dataset, columns: Sequence[str], row: int, why: Callable[[Dataset, int], str] | None = None
) -> str:
    """What is wrong with a row that [`usable_rows`] or a recipe's check refused; `why` knows the check's reason."""
    for column in columns:
        value = split[row][column]
        if value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, list) and not value):
            return f"column {column} is empty"
    if why is not None:
        return why(split, row)
    values = {column: split[row][column] for column in columns}
    return f"it can't be used ({' '.join(str(values)[:120].split())})"


def _hold_out(train: Dataset, args: TextDataArguments, name: str) -> tuple[Dataset, Dataset]:
    """(train, validation): some of the documents, or of few plain texts the end."""
    few = len(train) < FEW_DOCUMENTS and train.column_names == ["text"]
    if not few:
        kept, held = held_out(len(train), args.validation_fraction, name)
        return train.select(kept), train.select(held)
    documents = train["text"]
    remaining = round(sum(map(len, documents)) * args.validation_fraction)
    kept, held = list(documents), []
    while remaining > 0 and kept:
        last = kept.pop()
        if len(last) > remaining:
            kept.append(last[: len(last) - remaining])
            last = last[len(last) - remaining :]
        remaining -= len(last)
        held.insert(0, last)
    if not kept or not held:
        raise BadInput(f"split '{name}' is too short to hold out --validation_fraction {args.validation_fraction}")
    return Dataset.from_dict({"text": kept}), Dataset.from_dict({"text": held})


def _mixed(loaded: list[TextSplits], args: TextDataArguments) -> TextSplits:
    """Several datasets as one: the training splits by weight, the others one after the other."""
    try:
        if args.dataset_weights is None:
            train = datasets.concatenate_datasets([part["train"] for part in loaded])
        else:
            total = sum(args.dataset_weights)
            train = datasets.interleave_datasets(
                [part["train"] for part in loaded],
                probabilities=[weight / total for weight in args.dataset_weights],
                seed=0,
                stopping_strategy=args.stopping_strategy,
            )
        splits = {"train": train}
        for purpose in ("validation", "test"):
            parts = [part[purpose] for part in loaded if purpose in part]
            if parts:
                splits[purpose] = datasets.concatenate_datasets(parts)
    except (ValueError, TypeError) as error:
        raise BadInput(f"{', '.join(p.name for p in loaded)} can't be mixed: {str(error).splitlines()[0]}") from error
    skipped = {split: sum(part.skipped.get(split, 0) for part in loaded) for split in splits}
    return TextSplits(splits, " + ".join(part.name for part in loaded), {k: v for k, v in skipped.items() if v})
