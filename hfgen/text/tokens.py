"""Documents as one memory-mapped array of tokens, made once; and blocks of it, ready to train on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ..data.built_once import built_once, cache_root
from ..errors import BadInput, speaks
from .tokenizer import digest

# Documents that are tokenised at a time, by the tokenizer's own threads.
DOCUMENTS_A_TIME = 256


@dataclass
class TokenCorpus:
    """The tokens of all documents, one after the other, each ended by the tokenizer's end-of-sequence token.

    Attributes:
        tokens: uint16 or uint32 (N,), memory-mapped.
        starts: int64 (documents,), where each document begins.
        characters: of the documents, before tokenising.
        fingerprint: of the documents and the tokenizer.
    """

    tokens: np.ndarray
    starts: np.ndarray
    characters: int
    fingerprint: str
    name: str = "text"

    @property
    def characters_per_token(self) -> float:
        """By which nats a token become nats a character, so that tokenizers compare."""
        return self.characters / len(self.tokens)


def tokenize_corpus(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, cache_dir: str | None = None, name: str = "text"
) -> TokenCorpus:
    """Tokenises the column `text` of a split into the cache, or finds it there.

    Raises:
        BadInput: the cache folder can't be written to, or the disk is full.
    """
    fingerprint = hashlib.sha256(f"1 {dataset._fingerprint} {digest(tokenizer)}".encode()).hexdigest()[:32]
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    # The documents' end is a token of its own: models that have none (BERT) end a sentence with SEP.
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id

    def build(folder: Path) -> None:
        starts, position, characters = [], 0, 0
        bar = tqdm(total=len(dataset), desc="Tokenising", unit=" documents", disable=not speaks(), leave=False)
        with open(folder / "tokens.bin", "wb") as file:
            for batch in dataset.iter(DOCUMENTS_A_TIME):
                encoded = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
                for text, ids in zip(batch["text"], encoded, strict=True):
                    starts.append(position)
                    position += len(ids) + (end is not None)
                    characters += len(text)
                    np.asarray([*ids, end] if end is not None else ids, dtype).tofile(file)
                bar.update(len(encoded))
        bar.close()
        np.save(folder / "starts.npy", np.asarray(starts, np.int64))
        (folder / "meta.json").write_text(json.dumps({"dtype": dtype.name, "characters": characters}))

    # A tokenizer warns of documents longer than a model's context; they are cut into blocks here.
    limit, tokenizer.model_max_length = tokenizer.model_max_length, int(1e30)
    try:
        folder = built_once(cache_root(cache_dir) / "tokens", fingerprint, build)
    finally:
        tokenizer.model_max_length = limit
    meta = json.loads((folder / "meta.json").read_text())
    tokens = np.memmap(folder / "tokens.bin", dtype=meta["dtype"], mode="r")
    return TokenCorpus(tokens, np.load(folder / "starts.npy"), meta["characters"], fingerprint, name)


class TokenBlocks(torch.utils.data.Dataset):
    """Consecutive blocks of a corpus, as ready batches.

    Args:
        corpus: the tokens.
        block_size: tokens a block.
        isolate: positions begin anew with each document, from which transformers' models take that documents packed
            into one block do not see each other (`find_packed_sequence_indices` in its masking_utils).
        around: (first, last) special token ids put around each block, inside `block_size` (BERT's CLS and SEP).

    Raises:
        BadInput: the corpus is shorter than one block.
    """

    def __init__(
        self,
        corpus: TokenCorpus,
        block_size: int,
        isolate: bool = True,
        around: tuple[int, int] | None = None,
        split: str = "train",
    ):
        self.corpus, self.block_size, self.isolate, self.around = corpus, block_size, isolate, around
        self.name, self.fingerprint = corpus.name, f"{corpus.fingerprint}/{block_size}/{isolate}"
        self.stride = block_size - (2 if around else 0)
        self.count = len(corpus.tokens) // self.stride
        if self.count == 0:
            raise BadInput(
                f"the {split} split has {len(corpus.tokens)} tokens, fewer than one block of {block_size}: lower "
                "--block_size"
            )
        self._offsets = np.arange(self.stride)

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """A batch: `input_ids` and `labels` int64 (B, block_size); `position_ids` where documents meet in a block."""
        begins = np.asarray(indices, np.int64) * self.stride
        places = begins[:, None] + self._offsets
        ids = torch.from_numpy(self.corpus.tokens[places].astype(np.int64))
        if self.around:
            first, last = (torch.full((len(ids), 1), token) for token in self.around)
            ids = torch.cat([first, ids, last], 1)
        batch = {"input_ids": ids, "labels": ids}
        if self.isolate and (positions := self._positions(begins)) is not None:
            batch["position_ids"] = positions
        return batch

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def _positions(self, begins: np.ndarray) -> torch.Tensor | None:
        """(B, block_size) positions within the documents, None where no block has two."""
        starts = self.corpus.starts
        inside = np.searchsorted(starts, begins + self.stride, "left") - np.searchsorted(starts, begins, "right")
        if not inside.any():
            return None
        positions = np.tile(self._offsets, (len(begins), 1))
        for row in np.flatnonzero(inside):
            first = np.searchsorted(starts, begins[row], "right")
            for start in starts[first : first + inside[row]]:
                at = start - begins[row]
                positions[row, at:] = self._offsets[: self.stride - at]
        if self.around:
            # CLS belongs to the first document, SEP to the last.
            positions = np.concatenate([positions[:, :1], positions + 1, positions[:, -1:] + 2], 1)
        return torch.from_numpy(positions.astype(np.int64))


def as_batch(batch):
    """The collator of datasets that hand over ready batches; what comes one by one is stacked."""
    return batch if isinstance(batch, dict) else torch.utils.data.default_collate(batch)
