"""Text too large to prepare: read, tokenised and packed on the way, mixed from several sources, resumed exactly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import datasets
import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ..data.cached_splits import choose_splits
from ..data.text import TextDataArguments, TextSplits, find_text
from ..errors import BadInput

# Documents tokenised at a time, and held out where there is no validation split.
DOCUMENTS_A_TIME, HELD_OUT = 64, 200


class StreamBlocks(torch.utils.data.IterableDataset):
    """Endless blocks of packed documents from streams, pass after pass; a pure function of the streams and the seed.

    Args:
        streams: each with a column of text.
        column: its name.
        tokenizer: one with an end-of-sequence token.
        block_size: tokens a block.
        seed: of the order within the shuffle buffer, and of the mixture.
        shuffle_buffer_size: documents held in memory.
        weights: how often a document comes from each stream; None reads one stream after the other.
        stopping_strategy: as in `datasets.interleave_datasets`.
        isolate: positions begin anew with each document (see [`hfgen.text.tokens.TokenBlocks`]).
        name: for the record.
    """

    fingerprint = None

    def __init__(
        self,
        streams: list[IterableDataset],
        column: str,
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        *,
        seed: int,
        shuffle_buffer_size: int,
        weights: list[float] | None = None,
        stopping_strategy: str = "all_exhausted",
        isolate: bool = True,
        name: str = "stream",
    ):
        self.column, self.tokenizer, self.block_size = column, tokenizer, block_size
        self.isolate, self.name = isolate, name
        parts = [stream.select_columns([column]) for stream in streams]
        if len(parts) == 1:
            mixed = parts[0]
        elif weights is None:
            mixed = datasets.concatenate_datasets(parts)
        else:
            shares = [weight / sum(weights) for weight in weights]
            mixed = datasets.interleave_datasets(
                parts, probabilities=shares, seed=seed, stopping_strategy=stopping_strategy
            )
        self.documents = mixed.shuffle(seed=seed, buffer_size=shuffle_buffer_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        tokens: list[int] = []
        positions: list[int] = []
        for number in itertools.count():  # passes; one endless epoch, so that a resume counts steps alone
            self.documents.set_epoch(number)
            found = False
            for batch in self.documents.iter(DOCUMENTS_A_TIME):
                texts = [text for text in batch[self.column] if text and text.strip()]
                if not texts:
                    continue
                found = True
                for ids in self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]:
                    tokens += [*ids, self.tokenizer.eos_token_id]
                    positions += range(len(ids) + 1)
                size = self.block_size
                whole = len(tokens) // size * size
                for begin in range(0, whole, size):
                    ids = torch.tensor(tokens[begin : begin + size])
                    block = {"input_ids": ids, "labels": ids}
                    if self.isolate:
                        inside = torch.tensor(positions[begin : begin + size])
                        # A document that began in an earlier block begins at 0 here.
                        first = int((inside == 0).int().argmax()) if (inside == 0).any() else size
                        inside[:first] -= inside[0].item()
                        block["position_ids"] = inside
                    yield block
                del tokens[:whole], positions[:whole]
            if not found:
                raise BadInput(f"dataset {self.name}: the stream has no row with text in column {self.column}")


def load_stream(args: TextDataArguments, column: str) -> tuple[list[IterableDataset], TextSplits]:
    """The training streams, and the held-out rows: of the validation and test splits, or the streams' first ones.

    Raises:
        BadInput: `stdlib` is no stream; no such column or split.
    """
    count = args.max_eval_samples or HELD_OUT
    streams, held = [], {"validation": [], "test": []}
    for name in args.dataset_name:
        if name == "stdlib":
            raise BadInput("--streaming true: dataset stdlib comes with Python and fits in memory; leave it out")
        source = find_text(name, args)
        splits = {purpose: as_stream(source.splits[split]) for purpose, split in choose_splits(args, source).items()}
        first = next(iter(splits["train"]), None)
        if first is None:
            raise BadInput(f"split '{args.train_split}' of dataset {name} is empty")
        if column not in first:
            raise BadInput(f"dataset {name}: there is no column {column}, only {', '.join(first)}")
        train = splits["train"]
        if "validation" not in splits and args.validation_fraction > 0:
            splits["validation"], train = train.take(count), train.skip(count)
        streams.append(train)
        for purpose in held:
            if purpose in splits:
                held[purpose] += [row[column] for row in splits[purpose].take(count) if row[column]]
    rows = {purpose: Dataset.from_dict({column: texts[:count]}) for purpose, texts in held.items() if texts}
    return streams, TextSplits(rows, " + ".join(args.dataset_name))


def as_stream(split: Dataset | IterableDataset) -> IterableDataset:
    """A split that is read from its beginning each time."""
    return split.to_iterable_dataset() if isinstance(split, Dataset) else split
