"""Reward models on TRL's RewardTrainer: pairs checked and encoded before it sees them, what is too long counted."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import trl
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..data.stdlib import preferences
from ..data.text import TextDataArguments, TextSplits, load_text
from ..errors import BadInput
from ..progress import few_bars, say
from .arguments import ModelArguments, TextDefaults, unused
from .chat import RowCheck, with_chat_template, wrong_value
from .model import usable_positions
from .tokenizer import digest, make_tokenizer, train_tokenizer


@dataclass
class RewardArguments(TextDefaults, trl.RewardConfig):
    """trl.RewardConfig, with [`TextDefaults`], and without what would do nothing.

    Raises:
        BadInput: a value out of its range, or options that contradict each other.
    """

    _argument_group_name = "reward model"

    max_length: int | None = field(
        default=512,
        metadata={"help": "Pairs with a longer half, in tokens, are left out; their number is said and recorded."},
    )
    chat_template_path: str | None = field(
        default=None,
        metadata={"help": "Another chat template: a Jinja file, a tokenizer's folder or Hub id, or `chatml`."},
    )
    # Said elsewhere: the model's options.
    model_init_kwargs: Any = unused()
    trust_remote_code: bool = unused(False)
    pad_token: str | None = unused()

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise BadInput(f"--max_length {self.max_length}: must be at least 2")
        self.template_source, self.chat_template_path = self.chat_template_path, None  # given to the tokenizer at once
        super().__post_init__()


@dataclass
class PairArguments:
    """Which columns hold what.

    A prompt in text and its response are put together as they stand; where there is no white space between them, with
    a line break.
    """

    _argument_group_name = "preference pairs"

    prompt_column: str = field(
        default="prompt",
        metadata={
            "help": "Column of prompts, text or lists of messages; `prompt` may lack: then both halves are whole."
        },
    )
    chosen_column: str = field(
        default="chosen", metadata={"help": "Column of the better halves: text, or lists of messages."}
    )
    rejected_column: str = field(
        default="rejected", metadata={"help": "Column of the worse halves: text, or lists of messages."}
    )
    margin_column: str | None = field(
        default=None,
        metadata={"help": "Column of numbers by which the better half should win (Touvron et al. 2023, equation 2)."},
    )

    def choose(self, names: list[str]) -> list[str]:
        """The columns of a dataset that are used, those of it that are named here."""
        prompt = [] if self.prompt_column == "prompt" and "prompt" not in names else [self.prompt_column]
        margin = [] if self.margin_column is None else [self.margin_column]
        return [*prompt, self.chosen_column, self.rejected_column, *margin]


@dataclass
class PairLimit:
    """What of TRL's options an evaluation needs from the run's record."""

    max_length: int | None = None


def given_tokenizer(model_args: ModelArguments, args: RewardArguments) -> PreTrainedTokenizerBase | None:
    """The tokenizer that is there before any data is read, or None where a new one is trained on the data.

    Raises:
        BadInput: there is no such tokenizer, chat template or end-of-sequence token.
    """
    if not (model_args.tokenizer_name or model_args.model_name_or_path):
        if args.template_source is not None:
            raise BadInput("--chat_template_path is for a tokenizer that is given; a new one has its own (ChatML)")
        return None
    tokenizer = with_chat_template(make_tokenizer(model_args, "chat", None), args.template_source)
    if args.eos_token is not None:
        if args.eos_token not in tokenizer.get_vocab():
            raise BadInput(f"--eos_token {args.eos_token} is not in the tokenizer's vocabulary")
        tokenizer.eos_token = args.eos_token
    return tokenizer


def new_tokenizer(model_args: ModelArguments, train: Dataset, cache_dir: str | None) -> PreTrainedTokenizerBase:
    """A tokenizer trained on pairs of [`load_pairs`], with a chat template."""
    columns = tuple(column for column in ("prompt", "chosen", "rejected") if column in train.column_names)
    return make_tokenizer(model_args, "chat", train, columns, cache_dir)


def config_settings(args: RewardArguments) -> dict[str, Any]:
    """Options of a config: one score, and from scratch as many positions as a sequence has tokens, at most."""
    settings: dict[str, Any] = {"num_labels": 1}
    if args.max_length is not None:
        settings["max_position_embeddings"] = args.max_length
    return settings


def load_pairs(
    data_args: TextDataArguments, pair_args: PairArguments, tokenizer: PreTrainedTokenizerBase | None = None
) -> TextSplits:
    """The splits, checked pair by pair, in TRL's columns: `prompt` (where there is one), `chosen`, `rejected`.

    Args:
        data_args: where they are; `stdlib` is [`hfgen.data.stdlib.preferences`].
        pair_args: see [`PairArguments`].
        tokenizer: renders chats; None stands for a new one (ChatML).

    Raises:
        BadInput: a missing column, or a pair that can't be used, such as one with equal halves; names it.
    """
    if tokenizer is None:
        tokenizer = train_tokenizer(iter(()), "char", 0, "chat")  # of no text: its template is what is needed
    texts = load_text(data_args, pair_args.choose, preferences, PairCheck(pair_args, tokenizer))
    names = {
        pair_args.prompt_column: "prompt",
        pair_args.chosen_column: "chosen",
        pair_args.rejected_column: "rejected",
        pair_args.margin_column: "margin",
    }
    for split, rows in texts.splits.items():
        texts.splits[split] = rows.rename_columns({column: names[column] for column in rows.column_names})
    return texts


class PairCheck(RowCheck):
    """Finds pairs from which nothing can be learned, or that TRL would stop at.

    Args:
        pair_args: names the columns.
        tokenizer: with the chat template.
    """

    def __init__(self, pair_args: PairArguments, tokenizer: PreTrainedTokenizerBase):
        super().__init__(tokenizer)
        self.names = pair_args

    def wrong(self, row: dict[str, Any]) -> str | None:
        margin = row.pop(self.names.margin_column, 0.0)
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
            return f"column {self.names.margin_column} must hold numbers"
        for column, value in row.items():
            if reason := wrong_value(value):
                return f"column {column} {reason}"
        if reason := self.wrong_kind(row):
            return reason
        chosen, rejected = row[self.names.chosen_column], row[self.names.rejected_column]
        if chosen == rejected:
            return f"{self.names.chosen_column} and {self.names.rejected_column} are equal, so neither is better"
        if isinstance(chosen, list):
            for half in (chosen, rejected):
                if reason := self.refusal([*row.get(self.names.prompt_column, []), *half]):
                    return reason
        self.kind = type(chosen)
        return None


def join(prompt: str | list | None, response: str | list) -> str | list:
    """A prompt and its response as one text, or as one list of messages."""
    if not prompt:
        return response
    if isinstance(prompt, str) and not prompt[-1].isspace() and not response[0].isspace():
        return f"{prompt}\n{response}"
    return prompt + response


def encode(tokenizer: PreTrainedTokenizerBase, values: Sequence[str | list]) -> list[list[int]]:
    """Token ids of texts or chats, special tokens included, ended by the end-of-sequence token as TRL ends texts.

    A tokenizer that has none (BERT's) ends a text in its own way.
    """
    if isinstance(values[0], list):
        return [tokenizer.apply_chat_template(v, tokenize=True, return_dict=True)["input_ids"] for v in values]
    # A tokenizer warns of texts longer than its model; those are left out later.
    limit, tokenizer.model_max_length = tokenizer.model_max_length, int(1e30)
    try:
        encoded = tokenizer(list(values), return_attention_mask=False)["input_ids"]
    finally:
        tokenizer.model_max_length = limit
    end = tokenizer.eos_token_id
    return [ids if end is None or ids[-1] == end else [*ids, end] for ids in encoded]


def encode_pairs(rows: Dataset, tokenizer: PreTrainedTokenizerBase, num_proc: int | None = None) -> Dataset:
    """The pairs as TRL prepares them, columns `chosen_ids` and `rejected_ids` (and `margin`).

    TRL takes them as they are then; its own preparation fails on a tokenizer without an end-of-sequence token, and
    goes row by row.
    """

    def prepare(batch: dict[str, list]) -> dict[str, list]:
        prompts = batch.get("prompt", [None] * len(batch["chosen"]))
        return {
            f"{half}_ids": encode(tokenizer, [join(p, r) for p, r in zip(prompts, batch[half], strict=True)])
            for half in ("chosen", "rejected")
        }

    # Named after what it depends on: pickles of tokenizers differ from run to run.
    parts = ("pairs 1", rows._fingerprint, digest(tokenizer), tokenizer.chat_template, tokenizer.eos_token)
    name = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    unused = [column for column in rows.column_names if column != "margin"]
    with few_bars(len(rows)):
        return rows.map(
            prepare, batched=True, remove_columns=unused, num_proc=num_proc, new_fingerprint=name, desc="Tokenising"
        )


def within(pairs: Dataset, max_length: int | None) -> Dataset:
    """The encoded pairs of which both halves have at most `max_length` tokens: those that TRL keeps."""
    if max_length is None:
        return pairs
    longest = lengths(pairs)
    return pairs if (longest <= max_length).all() else pairs.select(np.flatnonzero(longest <= max_length))


def lengths(pairs: Dataset) -> np.ndarray:
    """int64 (N,): the tokens of the longer half of each pair."""
    halves = [[len(ids) for ids in pairs[f"{half}_ids"]] for half in ("chosen", "rejected")]
    return np.maximum(*(np.asarray(half, np.int64) for half in halves))


def reward_trainer(
    model, tokenizer: PreTrainedTokenizerBase, args: RewardArguments, texts: TextSplits, **options: Any
) -> tuple[trl.RewardTrainer, dict[str, int]]:
    """TRL's `RewardTrainer` on checked, encoded pairs.

    Args:
        model: a sequence classifier with one label, with its adapters, if any.
        tokenizer, args: as for `RewardTrainer`.
        texts: of [`load_pairs`].
        options: further ones of `RewardTrainer`.

    Returns:
        tuple: the trainer; how many pairs of each split it left out for their length (of the splits that lost some).

    Raises:
        BadInput: options that TRL refuses; no pair is left, or one is longer than the model takes.
    """
    validation = texts.splits.get("validation")
    if validation is None and args.eval_strategy != "no":
        raise BadInput("there is no validation split to evaluate on: set --validation_fraction, or --eval_strategy no")
    args.prediction_loss_only = True
    with args.main_process_first(desc="tokenising"):
        encoded = {split: encode_pairs(rows, tokenizer, args.dataset_num_proc) for split, rows in texts.splits.items()}
    try:
        with few_bars(len(encoded["train"])):
            trainer = trl.RewardTrainer(
                model,
                args,
                train_dataset=encoded["train"],
                eval_dataset=encoded.get("validation"),
                processing_class=tokenizer,
                **options,
            )
    except (ValueError, ImportError) as error:
        raise BadInput(f"TRL's RewardTrainer refuses: {' '.join(str(error).split())[:400]}") from error
    kept = {split: within(pairs, args.max_length) for split, pairs in encoded.items()}
    kept |= {"train": trainer.train_dataset} | ({} if validation is None else {"validation": trainer.eval_dataset})
    dropped = {split: len(encoded[split]) - len(pairs) for split, pairs in kept.items()}
    for split, pairs in kept.items():
        of = f"of {len(encoded[split])} pairs of the {split} split"
        if dropped[split]:
            say(trainer.accelerator, f"hfgen: {dropped[split]} {of} are longer than --max_length {args.max_length}")
        if len(pairs) == 0:
            raise BadInput(f"none {of} has at most --max_length {args.max_length} tokens: raise it")
        check_lengths(pairs, trainer.model, split)
    # TRL's filter is named after all arguments, --resume_from_checkpoint too: not the same in a run that is resumed.
    trainer.train_dataset.fingerprint = f"{encoded['train']._fingerprint}/{args.max_length}"
    trainer.train_dataset.name = texts.name
    return trainer, {split: count for split, count in dropped.items() if count}


def check_lengths(pairs: Dataset, model, split: str) -> None:
    """Refuses pairs that are longer than the model takes.

    Raises:
        BadInput: there is one.
    """
    positions, longest = usable_positions(model), int(lengths(pairs).max())
    if positions is not None and longest > positions:
        raise BadInput(
            f"a pair of the {split} split has {longest} tokens, more than the model's {positions} positions: set "
            f"--max_length {positions}"
        )


def describe_pairs(texts: TextSplits, dropped: dict[str, int]) -> dict[str, Any]:
    """What run.json says of pairs besides their name: whether they are chats, and how many TRL left out.

    Args:
        texts: of [`load_pairs`].
        dropped: of [`reward_trainer`].
    """
    return {"conversational": isinstance(texts["train"][0]["chosen"], list), "dropped_for_length": dropped}
