"""Pairs of texts for sequence-to-sequence models: read, checked, tokenised once, and ready as batches."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from datasets import Dataset, Value
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ..data.built_once import built_once, cache_root
from ..data.text import TextDataArguments, TextSplits, load_text, usable_rows
from ..errors import BadInput, speaks
from .tokenizer import digest

if TYPE_CHECKING:
    from .translation import TranslationArguments

# Rows that are tokenised at a time, by the tokenizer's own threads.
ROWS_A_TIME = 1024
# Batches among which rows of like length are put together.
WINDOW = 50
# The label that no loss counts (torch's own choice).
IGNORED = -100


def load_pairs(data: TextDataArguments, args: TranslationArguments, embedded: Callable[[], dict]) -> TextSplits:
    """Splits of two columns of text.

    Args:
        data: where the dataset is.
        args: its columns or languages.
        embedded: the columns of each split of `stdlib`.

    Raises:
        BadInput: a missing column or language, no text, an empty one, bytes that are not UTF-8.
    """

    def columns(there: list[str]) -> list[str]:
        both_in_one = "translation" in there and args.source_column not in there
        return ["translation"] if both_in_one else list(args.columns)

    texts = load_text(data, columns, embedded, PairCheck(args))
    return replace(texts, splits={purpose: as_pairs(split, args) for purpose, split in texts.splits.items()})


def as_pairs(split: Dataset, args: TranslationArguments) -> Dataset:
    """A split with columns of its own for source and target, also where one column holds both by language.

    Raises:
        BadInput: the column `translation` lacks a language, or a column holds no text.
    """
    nested = split.features.get("translation")
    if split.column_names == ["translation"]:
        languages = list(getattr(nested, "languages", None) or (nested if isinstance(nested, dict) else []))
        for option in ("source_lang", "target_lang"):
            if (language := getattr(args, option)) not in languages:
                given = "is not set" if language is None else f"{language} is not among them"
                raise BadInput(
                    f"column translation has the languages {', '.join(languages) or 'none'}; --{option} {given}"
                )
        chosen = {args.source_lang: args.source_column, args.target_lang: args.target_column}
        split = split.flatten()
        split = split.rename_columns({f"translation.{language}": column for language, column in chosen.items()})
        split = split.select_columns(list(args.columns))
    for column in args.columns:
        if (feature := split.features[column]) not in (Value("string"), Value("large_string")):
            kind = feature.dtype if isinstance(feature, Value) else type(feature).__name__
            raise BadInput(f"column {column} holds {kind}, not text")
    return split


@dataclass
class PairCheck:
    """Which rows have a source and a target, and which of the two a row lacks; for [`load_text`]."""

    args: TranslationArguments

    def __call__(self, split: Dataset) -> np.ndarray:
        """bool (N,)."""
        return usable_rows(as_pairs(split, self.args), self.args.columns)

    def why(self, split: Dataset, row: int) -> str:
        """Of a `translation` column: which language is empty."""
        pair = as_pairs(split, self.args)[row]
        languages = zip(self.args.columns, (self.args.source_lang, self.args.target_lang), strict=True)
        empty = [language for column, language in languages if not (pair[column] or "").strip()]
        return f"column translation has no text in {' and '.join(map(str, empty))}"


@dataclass
class Ragged:
    """Rows of tokens of unequal length, one after the other.

    Attributes:
        tokens: uint16 or uint32 (N,), memory-mapped.
        offsets: int64 (rows + 1,), where each row begins and the last one ends.
    """

    tokens: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """int64 (rows,)."""
        return np.diff(self.offsets)

    def padded(self, rows: np.ndarray, fill: int) -> torch.Tensor:
        """int64 (B, longest of them): some rows, filled up on the right."""
        begins, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        places = np.arange(lengths.max())
        there = places < lengths[:, None]
        padded = np.full(there.shape, fill, np.int64)
        padded[there] = self.tokens[(begins[:, None] + places)[there]]
        return torch.from_numpy(padded)


class TokenPairs(torch.utils.data.Dataset):
    """Tokenised pairs, as ready batches padded to the longest of their rows.

    Args:
        sources, targets: the same number of rows, each with its end-of-sequence token.
        pad_token_id: fills up sources; targets are filled up with -100.
        decoder_inputs: labels (B, T) -> the decoder's inputs (B, T).
        name, fingerprint: of the dataset, for run.json and the resume.
        grouped: rows of a step (all processes), among which the lengths should be alike; 0 for any order.
    """

    def __init__(
        self,
        sources: Ragged,
        targets: Ragged,
        pad_token_id: int,
        decoder_inputs: Callable[[torch.Tensor], torch.Tensor],
        name: str = "text",
        fingerprint: str | None = None,
        grouped: int = 0,
    ):
        self.sources, self.targets = sources, targets
        self.pad_token_id, self.decoder_inputs = pad_token_id, decoder_inputs
        self.name, self.fingerprint, self.grouped = name, fingerprint, grouped

    def __len__(self) -> int:
        return len(self.sources.offsets) - 1

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """int64 `input_ids` and `attention_mask` (B, S), `labels` and `decoder_input_ids` (B, T)."""
        rows = np.asarray(rows, np.int64)
        input_ids = self.sources.padded(rows, self.pad_token_id)
        lengths = torch.from_numpy(self.sources.lengths[rows])
        labels = self.targets.padded(rows, IGNORED)
        return {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
            "labels": labels,
            "decoder_input_ids": self.decoder_inputs(labels),
        }

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([row]).items()}

    def epoch_order(self, draw: np.random.Generator) -> np.ndarray:
        """int64 (rows,): a random order, in which the rows of a step are of about the same length."""
        if not self.grouped:
            return draw.permutation(len(self))
        return length_grouped(self.sources.lengths + self.targets.lengths, self.grouped, draw)


def length_grouped(lengths: np.ndarray, batch_size: int, draw: np.random.Generator) -> np.ndarray:
    """A random order in which each `batch_size` consecutive rows have about the same length.

    Rows are shuffled; of each `WINDOW` batches the rows are sorted by length; then the batches are shuffled, a last
    incomplete one apart (transformers' LengthGroupedSampler leaves them sorted from longest to shortest instead).

    Args:
        lengths: (rows,).
        batch_size: rows of a batch.
        draw: the generator.

    Returns:
        int64 (rows,), a permutation.
    """
    order = draw.permutation(len(lengths))
    batches = []
    for begin in range(0, len(order), batch_size * WINDOW):
        window = order[begin : begin + batch_size * WINDOW]
        window = window[np.argsort(lengths[window], kind="stable")]
        batches += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    rest = [batches.pop()] if len(batches[-1]) < batch_size else []
    return np.concatenate([batches[i] for i in draw.permutation(len(batches))] + rest)


def tokenize_pairs(
    split: Dataset, tokenizer: PreTrainedTokenizerBase, args: TranslationArguments, cache_dir: str | None = None
) -> tuple[Ragged, Ragged, dict[str, int], str]:
    """Tokenises a split into the cache, or finds it there.

    Returns:
        (sources, targets, rows cut by option, fingerprint).

    Raises:
        BadInput: the cache folder can't be written to, or the disk is full.
    """
    limits = {"source": args.max_source_length, "target": args.max_target_length}
    what = (1, args.columns, args.source_prefix, limits, args.source_lang, args.target_lang)
    key = f"{what} {split._fingerprint} {digest(tokenizer)}"
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:32]
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)

    def build(folder: Path) -> None:
        lengths: dict[str, list[int]] = {side: [] for side in limits}
        cut = dict.fromkeys(limits, 0)
        bar = tqdm(total=len(split), desc="Tokenising", unit=" pairs", disable=not speaks(), leave=False)
        with open(folder / "source.bin", "wb") as sources, open(folder / "target.bin", "wb") as targets:
            for batch in split.iter(ROWS_A_TIME):
                texts = [args.source_prefix + text for text in batch[args.source_column]]
                sides = {"source": {"text": texts}, "target": {"text_target": batch[args.target_column]}}
                for (side, given), file in zip(sides.items(), (sources, targets), strict=True):
                    rows = tokenizer(**given, return_attention_mask=False, verbose=False)["input_ids"]
                    long = [i for i, row in enumerate(rows) if len(row) > limits[side]]
                    if long:  # cut by the tokenizer, which knows what has to stay at the end
                        some = {name: [values[i] for i in long] for name, values in given.items()}
                        short = tokenizer(**some, truncation=True, max_length=limits[side])["input_ids"]
                        for i, row in zip(long, short, strict=True):
                            rows[i] = row
                    cut[side] += len(long)
                    lengths[side] += map(len, rows)
                    np.asarray([token for row in rows for token in row], dtype).tofile(file)
                bar.update(len(texts))
        bar.close()
        for side in limits:
            np.save(folder / f"{side}.npy", np.concatenate([[0], np.cumsum(lengths[side])]).astype(np.int64))
        (folder / "meta.json").write_text(json.dumps({"dtype": dtype.name, "cut": cut}))

    folder = built_once(cache_root(cache_dir) / "pairs", fingerprint, build)
    meta = json.loads((folder / "meta.json").read_text())
    sources, targets = (
        Ragged(np.memmap(folder / f"{side}.bin", dtype=meta["dtype"], mode="r"), np.load(folder / f"{side}.npy"))
        for side in limits
    )
    return sources, targets, {f"max_{side}_length": count for side, count in meta["cut"].items()}, fingerprint


def make_pairs(
    texts: TextSplits, tokenizer: PreTrainedTokenizerBase, args: TranslationArguments, data: TextDataArguments, model
) -> dict[str, TokenPairs]:
    """The tokenised pairs of each split; says how many were cut.

    Raises:
        BadInput: see [`tokenize_pairs`].
    """
    pairs = {}
    for purpose, split in texts.splits.items():
        sources, targets, cut, fingerprint = tokenize_pairs(split, tokenizer, args, data.cache_dir)
        for option, count in cut.items():
            if count and speaks():
                print(
                    f"hfgen: {count} of {len(split)} rows of the {purpose} split are longer than --{option} "
                    f"{getattr(args, option)} tokens and were cut",
                    file=sys.stderr,
                )
        shift = decoder_inputs_of(model)
        pairs[purpose] = TokenPairs(sources, targets, tokenizer.pad_token_id, shift, texts.name, fingerprint)
    return pairs


def decoder_inputs_of(model) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model's own function from labels to the decoder's inputs, or [`shift_right`] where it has none (M2M-100)."""
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        return lambda labels: own(labels=labels.clone())  # FSMT's overwrites them
    config = model.config
    return partial(shift_right, start=config.decoder_start_token_id, pad=config.pad_token_id)


def shift_right(labels: torch.Tensor, start: int, pad: int) -> torch.Tensor:
    """The decoder sees the label before: (B, T) with `start` first, the last label left out, -100 as `pad`."""
    shifted = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], 1)
    return shifted.masked_fill(shifted == IGNORED, pad)
