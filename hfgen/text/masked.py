"""Masked language models (BERT): which tokens are hidden, the loss on them, and pseudo-perplexity."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from tokenizers import models
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase, Trainer

from ..data.text import TextDataArguments, TextSplits
from ..errors import BadInput
from ..precision import full_float32
from ..seeding import EVALUATION, mix
from .model import usable_positions
from .tokens import TokenBlocks, as_batch, tokenize_corpus

# The label of a token that is not predicted.
IGNORED = -100
# Of the chosen tokens, how many become [MASK] and how many a random token; the rest stay (Devlin et al. 2019, 3.1).
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1


@dataclass
class MaskedLMArguments:
    """How text becomes training samples of a masked language model.

    Raises:
        BadInput: a value out of its range.
    """

    _argument_group_name = "masked language model"

    text_column: str = field(default="text", metadata={"help": "Column of text."})
    block_size: int = field(
        default=256, metadata={"help": "Tokens of a training sample, the first and last special token included."}
    )
    mlm_probability: float = field(
        default=0.15,
        metadata={
            "help": "Share of tokens to predict: 0.15 (Devlin et al. 2019); larger models learn faster at 0.3 to 0.4 "
            "(Wettig et al. 2023)."
        },
    )
    whole_word_masking: bool = field(
        default=False, metadata={"help": "Choose whole words, all of their tokens, instead of single tokens."}
    )
    pseudo_perplexity_blocks: int = field(
        default=4,
        metadata={"help": "Held-out blocks of which pseudo-perplexity is measured: a pass a token; 0 leaves it out."},
    )

    def __post_init__(self) -> None:
        if self.block_size < 4:
            raise BadInput(f"--block_size {self.block_size}: must be at least 4")
        if not 0 < self.mlm_probability < 1:
            raise BadInput(f"--mlm_probability {self.mlm_probability}: must be above 0 and below 1")
        if self.pseudo_perplexity_blocks < 0:
            raise BadInput(f"--pseudo_perplexity_blocks {self.pseudo_perplexity_blocks}: must be at least 0")


def word_tables(tokenizer: PreTrainedTokenizerBase) -> tuple[torch.Tensor, torch.Tensor]:
    """Where words begin and end, by token, so that a batch is cut into words by two look-ups.

    WordPiece says so itself (`##` continues a word). Of other tokenizers (byte-level, `▁`, characters) a token begins
    a word where its first character is none of a word's (a letter, digit, `_` or part of one beyond ASCII), and ends
    one where its last is none: ` the` begins, `\\n` and `(` begin and end, `ing` does neither. Special tokens do both.

    Args:
        tokenizer: any fast one.

    Returns:
        tuple: `begins` and `ends`, bool (vocabulary,).
    """
    size = len(tokenizer)
    begins, ends = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    prefix = model.continuing_subword_prefix if isinstance(model, models.WordPiece) else None
    vocabulary = tokenizer.get_vocab()
    alphabet = _byte_characters() if "Ġ" in vocabulary else {"▁": " "}
    for token, index in vocabulary.items():
        if prefix:
            begins[index] = not token.startswith(prefix)
        elif token:
            first, last = (alphabet.get(character, character) for character in (token[0], token[-1]))
            begins[index], ends[index] = not _of_a_word(first), not _of_a_word(last)
    special = torch.tensor(tokenizer.all_special_ids)
    begins[special] = ends[special] = True
    return begins, ends


def _of_a_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _byte_characters() -> dict[str, str]:
    """A byte-level vocabulary's character for each byte -> that byte in ASCII, or a letter for those beyond it (parts
    of one); the mapping is GPT-2's (Radford et al. 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    drawn = {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}
    return {character: chr(byte) if byte < 128 else "a" for character, byte in drawn.items()}


class Masking:
    """Chooses tokens of a batch and hides them (Devlin et al. 2019, section 3.1).

    Each token is chosen with the given probability, or each word is, whole; at least one of each row, as in BERT's own
    code. Of the chosen, 80 % become the mask token, 10 % a random one that is not special, 10 % stay. Special tokens
    are never chosen.

    As a collator of ready batches it draws from torch's global generator, nothing else.

    Args:
        tokenizer: has a mask token.
        probability: of being chosen.
        whole_words: choose words instead of tokens (see [`word_tables`]).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probability: float = 0.15, whole_words: bool = False):
        self.probability, self.mask_token_id = probability, tokenizer.mask_token_id
        self.special = torch.zeros(len(tokenizer), dtype=torch.bool)
        self.special[torch.tensor(tokenizer.all_special_ids)] = True
        self.ordinary = (~self.special).nonzero().squeeze(1)
        self.words = word_tables(tokenizer) if whole_words else None

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch with `input_ids` masked and `labels` set."""
        return self.apply(batch, torch.rand(3, *batch["input_ids"].shape))

    def apply(self, batch: dict[str, torch.Tensor], draws: torch.Tensor) -> dict[str, torch.Tensor]:
        """As a call, from given draws: a pure function.

        Args:
            batch: `input_ids` int64 (B, L), and what else the model takes.
            draws: uniform in [0, 1), (3, B, L): which are chosen, what becomes of them, the random tokens.
        """
        ids = batch["input_ids"]
        chosen = self.choose(ids, draws[0])
        labels = torch.where(chosen, ids, IGNORED)
        number = (draws[2] * len(self.ordinary)).long().clamp_(max=len(self.ordinary) - 1)
        hidden = torch.where(chosen & (draws[1] < MASK_SHARE), self.mask_token_id, ids)
        replaced = chosen & (draws[1] >= MASK_SHARE) & (draws[1] < MASK_SHARE + RANDOM_SHARE)
        hidden = torch.where(replaced, self.ordinary[number], hidden)
        return batch | {"input_ids": hidden, "labels": labels}

    def choose(self, ids: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """bool (B, L): the tokens to predict, from draws uniform in [0, 1), (B, L)."""
        if self.words is not None:
            begins, ends = self.words
            first = begins[ids]
            first[:, 1:] |= ends[ids[:, :-1]]
            first[:, 0] = True
            draws = draws.gather(1, first.long().cumsum(1) - 1)  # all tokens of a word share one draw
        draws = torch.where(self.special[ids], 1.0, draws)
        least = draws.amin(1, keepdim=True)
        return (draws < self.probability) | ((draws == least) & (least < 1))


class MaskedBlocks(torch.utils.data.Dataset):
    """Blocks as ready batches, masked: anew each time from torch's global generator, or always in the same way.

    Args:
        blocks: of tokens, special ones around each.
        masking: how.
        seed: the masks of a block are a pure function of this and of its position, whatever the batch; None for
            masks from the global generator.
    """

    def __init__(self, blocks: TokenBlocks, masking: Masking, seed: int | None = None):
        self.blocks, self.masking, self.seed = blocks, masking, seed
        self.name, self.corpus = blocks.name, blocks.corpus
        self.fingerprint = f"{blocks.fingerprint}/{masking.probability}/{masking.words is not None}"

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """A batch: `input_ids` and `labels` int64 (B, block_size)."""
        batch = self.blocks.__getitems__(indices)
        if self.seed is None:
            return self.masking(batch)
        size = self.blocks.block_size
        seeds = [mix(self.seed, EVALUATION, index) for index in indices]
        draws = [torch.rand(3, size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return self.masking.apply(batch, torch.stack(draws, 1))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}


def config_settings(tokenizer: PreTrainedTokenizerBase, args: MaskedLMArguments) -> dict[str, Any]:
    """Options of a config from scratch: as many positions as a block has tokens, and the special tokens' ids."""
    roles = ("cls_token_id", "sep_token_id", "mask_token_id")
    return {"max_position_embeddings": args.block_size} | {role: getattr(tokenizer, role) for role in roles}


def masked_blocks(
    texts: TextSplits, tokenizer: PreTrainedTokenizerBase, args: MaskedLMArguments, data: TextDataArguments, model
) -> dict[str, MaskedBlocks]:
    """The blocks of each split; those held out are masked in the same way whenever they are looked at.

    Documents follow one another, a separator between them, and blocks cross their borders (RoBERTa's FULL-SENTENCES,
    Liu et al. 2019, section 4.2).

    Raises:
        BadInput: a split shorter than a block, or a block longer than the model's positions.
    """
    positions = usable_positions(model)
    if positions is not None and args.block_size > positions:
        stored = model.config.max_position_embeddings
        raise BadInput(
            f"--block_size {args.block_size} is more than the model's {positions} positions: lower it, or, from "
            f"scratch, pass --config_overrides '{{max_position_embeddings: {args.block_size + stored - positions}}}'"
        )
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    around = None if first is None or last is None else (first, last)
    masking = Masking(tokenizer, args.mlm_probability, args.whole_word_masking)
    blocks = {}
    for split, dataset in texts.splits.items():
        if args.text_column != "text":
            dataset = dataset.rename_column(args.text_column, "text")
        corpus = tokenize_corpus(dataset, tokenizer, cache_dir=data.cache_dir, name=texts.name)
        size = args.block_size
        if split != "train":  # a short held-out text is one shorter block
            size = min(size, len(corpus.tokens) + (2 if around else 0))
        cut = TokenBlocks(corpus, size, isolate=False, around=around, split=split)
        blocks[split] = MaskedBlocks(cut, masking, None if split == "train" else 0)
    return blocks


def masked_loss(
    outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy of the chosen tokens, in nats a token.

    transformers' own loss of BERT is a mean over each batch, which its Trainer takes for a share of the whole step:
    with gradient accumulation, and on several processes, the gradient is too large by that factor. This is a share.

    Args:
        outputs: of the model, with `logits` (B, L, vocabulary).
        labels: (B, L), -100 where nothing is predicted.
        num_items_in_batch: tokens to predict in the whole step; by default in this batch.
        label_smoothing: of the targets (Szegedy et al. 2016).
    """
    chosen = labels != IGNORED
    logits = outputs["logits"][chosen].float()
    total = cross_entropy(logits, labels[chosen], reduction="sum", label_smoothing=label_smoothing)
    return total / (chosen.sum() if num_items_in_batch is None else num_items_in_batch)


class MaskedAccuracy:
    """`compute_metrics` of a Trainer with `batch_eval_metrics`: counts are summed, no logits are kept."""

    def __init__(self) -> None:
        self.right = self.all = 0

    @staticmethod
    def count(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """int64 (B, 2): right ones, and all that were to predict, of each row (`preprocess_logits_for_metrics`)."""
        chosen = labels != IGNORED
        return torch.stack([((logits.argmax(-1) == labels) & chosen).sum(1), chosen.sum(1)], 1)

    def __call__(self, prediction, compute_result: bool) -> dict[str, float]:
        counts = torch.as_tensor(prediction.predictions).sum(0).tolist()
        self.right, self.all = self.right + counts[0], self.all + counts[1]
        if not compute_result:
            return {}
        found = {"masked_accuracy": self.right / self.all}
        self.right = self.all = 0
        return found


def masked_trainer(model, tokenizer, args, blocks: dict[str, MaskedBlocks], **options: Any) -> Trainer:
    """A plain transformers `Trainer` on ready, masked batches.

    Args:
        model, tokenizer, args: as for `Trainer`.
        blocks: `train`, and `validation` where it is evaluated.
        options: further ones of `Trainer`.

    Raises:
        BadInput: evaluations are asked for, and there is no validation split.
    """
    args.remove_unused_columns = False  # batches come ready
    args.batch_eval_metrics = True
    validation = blocks.get("validation")
    if validation is None and args.eval_strategy != "no":
        raise BadInput("there is no validation split to evaluate on: set --validation_fraction, or --eval_strategy no")
    return Trainer(
        model,
        args,
        data_collator=as_batch,
        train_dataset=blocks["train"],
        eval_dataset=validation,
        processing_class=tokenizer,
        compute_loss_func=partial(masked_loss, label_smoothing=args.label_smoothing_factor),
        compute_metrics=MaskedAccuracy(),
        preprocess_logits_for_metrics=MaskedAccuracy.count,
        **options,
    )


@torch.no_grad()
def evaluate_masked(
    model, blocks: MaskedBlocks | None, batch_size: int = 32, pseudo_perplexity_blocks: int = 4
) -> dict[str, float]:
    """Accuracy and cross-entropy on the masked tokens of all blocks, and pseudo-perplexity on some.

    Args:
        model: in evaluation mode.
        blocks: the split, masked in the same way each time.
        batch_size: blocks at a time.
        pseudo_perplexity_blocks: see [`pseudo_perplexity`]; 0 leaves it out.

    Returns:
        dict: `masked_accuracy` in [0, 1]; `loss` in nats a masked token; `pseudo_perplexity`; `masked_tokens`, how
        many were predicted for the first two.

    Raises:
        BadInput: there is no split.
    """
    if blocks is None:
        raise BadInput("the run has neither a test nor a validation split: there is nothing to evaluate")
    total, right, count = 0.0, 0, 0
    with full_float32():
        for begin in range(0, len(blocks), batch_size):
            batch = blocks.__getitems__(range(begin, min(begin + batch_size, len(blocks))))
            batch = {name: value.to(model.device) for name, value in batch.items()}
            labels = batch.pop("labels")
            outputs = model(**batch)
            total += masked_loss(outputs, labels, 1).item()
            found, all_ = MaskedAccuracy.count(outputs["logits"], labels).sum(0).tolist()
            right, count = right + found, count + all_
        figures = {"masked_accuracy": right / count, "loss": total / count}
        if pseudo_perplexity_blocks:
            figures["pseudo_perplexity"] = pseudo_perplexity(
                model, blocks.blocks, blocks.masking, pseudo_perplexity_blocks, batch_size
            )
    return figures | {"masked_tokens": count}


@torch.no_grad()
def pseudo_perplexity(model, blocks: TokenBlocks, masking: Masking, count: int = 4, batch_size: int = 32) -> float:
    """exp of the mean negative log-probability of each token, masked alone, all others in sight (Salazar et al. 2020,
    equations 1 and 3), without the special tokens.

    Args:
        model: in evaluation mode.
        blocks: of which `count`, evenly spread, are scored.
        masking: knows the mask token and the special ones.
        count: blocks; each costs a pass of the model a token.
        batch_size: passes at a time.
    """
    rows = np.unique(np.linspace(0, len(blocks) - 1, min(count, len(blocks))).round().astype(int))
    total, scored = 0.0, 0
    for ids in blocks.__getitems__(rows)["input_ids"]:
        places = (~masking.special[ids]).nonzero().squeeze(1)
        for some in places.split(batch_size):
            row = torch.arange(len(some))
            inputs = ids.repeat(len(some), 1)
            inputs[row, some] = masking.mask_token_id
            logits = model(input_ids=inputs.to(model.device))["logits"][row, some].float()
            total += cross_entropy(logits, ids[some].to(model.device), reduction="sum").item()
            scored += len(some)
    return math.exp(min(total / scored, 700.0))


@torch.no_grad()
def fill_masks(model, tokenizer, prompt: str, top_k: int = 5) -> list[dict[str, str]]:
    """The likeliest tokens at each mask of a text.

    Args:
        model, tokenizer: the model, in evaluation mode.
        prompt: text with `[MASK]` or the tokenizer's own mask token, once or more.
        top_k: tokens for each.

    Returns:
        list: a row for each mask: `prompt`; `predictions`, such as `word (41 %), token (9 %)`; `text`, with the
        likeliest of this mask alone.

    Raises:
        BadInput: there is no mask in the prompt, or it is longer than the model's positions.
    """
    mask = tokenizer.mask_token
    prompt = prompt.replace("[MASK]", mask)
    # In these tokenizers a space belongs to the word that it stands before, so it is hidden with it.
    space = " " if {"Ġ", "▁"} & tokenizer.get_vocab().keys() else ""
    ids = tokenizer(prompt.replace(space + mask, mask), return_tensors="pt")["input_ids"]
    places = (ids[0] == tokenizer.mask_token_id).nonzero().squeeze(1).tolist()
    if not places:
        raise BadInput(f'--prompt {prompt!r} has no mask to fill: write "The {mask} statement", say')
    positions = usable_positions(model)
    if positions is not None and ids.shape[1] > positions:
        raise BadInput(f"--prompt has {ids.shape[1]} tokens, but the model has {positions} positions: shorten it")
    logits = model(input_ids=ids.to(model.device))["logits"][0].float().cpu()
    parts, rows = prompt.split(mask), []
    for number, place in enumerate(places):
        words, shares = _likeliest(logits[place], tokenizer, top_k)
        before, after = mask.join(parts[: number + 1]), mask.join(parts[number + 1 :])
        filled = before.removesuffix(space) + words[0] + after
        rows.append({"prompt": prompt, "predictions": _listed(words, shares), "text": filled})
    return rows


def _likeliest(logits: torch.Tensor, tokenizer, top_k: int) -> tuple[list[str], list[float]]:
    shares, tokens = logits.softmax(-1).topk(min(top_k, len(logits)))
    return [tokenizer.decode([token]) for token in tokens.tolist()], shares.tolist()


def _listed(words: list[str], shares: list[float]) -> str:
    return ", ".join(f"{_shown(word)} ({share:.0%})" for word, share in zip(words, shares, strict=True))


def _shown(word: str) -> str:
    return word.strip() or repr(word)


@torch.no_grad()
def mask_examples(model, tokenizer, blocks: MaskedBlocks, count: int = 4, width: int = 12) -> list[dict[str, str]]:
    """Held-out text with one token hidden, what it was, and what the model takes it for.

    Args:
        model, tokenizer: the model, in evaluation mode.
        blocks: the split; of `count`, evenly spread, the token nearest to the middle that spells letters is hidden.
        count: rows.
        width: tokens shown on either side; the model sees the whole block.
    """
    rows = []
    for index in np.unique(np.linspace(0, len(blocks) - 1, min(count, len(blocks))).round().astype(int)):
        ids = blocks.blocks.__getitems__([index])["input_ids"][0]
        middle = len(ids) // 2
        near = sorted(range(1, len(ids) - 1), key=lambda place: abs(place - middle))
        usual = [place for place in near if not blocks.masking.special[ids[place]]]
        place = next((p for p in usual if tokenizer.decode([int(ids[p])]).strip().isalpha()), middle)
        hidden = ids.clone()
        hidden[place] = blocks.masking.mask_token_id
        logits = model(input_ids=hidden[None].to(model.device))["logits"][0, place].float().cpu()
        before = tokenizer.decode(ids[max(0, place - width) : place], skip_special_tokens=True)
        after = tokenizer.decode(ids[place + 1 : place + 1 + width], skip_special_tokens=True)
        truth = tokenizer.decode([int(ids[place])])
        space = " " if truth.startswith(" ") else ""
        rows.append(
            {
                "text": f"{before}{space}{tokenizer.mask_token}{after}",
                "predictions": _listed(*_likeliest(logits, tokenizer, 3)),
                "truth": _shown(truth),
            }
        )
    return rows
