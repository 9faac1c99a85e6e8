"""Reward models on TRL's RewardTrainer: pairs checked before it sees them, what it drops counted, their figures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import trl
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..data.stdlib import preferences
from ..data.text import TextDataArguments, TextSplits, load_text
from ..errors import BadInput
from ..precision import full_float32
from ..progress import say
from .arguments import ModelArguments, TextDefaults
from .model import usable_positions
from .sft import few_bars, with_chat_template
from .tokenizer import digest, make_tokenizer, train_tokenizer

# The normal distribution's 97.5 % quantile: of a 95 % interval.
Z95 = 1.959963984540054


def _unused(default: Any = None):
    """A field of TRL's config that would do nothing here: no option of the recipe."""
    return field(default=default, init=False)


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
    model_init_kwargs: Any = _unused()
    trust_remote_code: bool = _unused(False)
    pad_token: str | None = _unused()

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


class PairCheck:
    """Finds pairs from which nothing can be learned, or that TRL would stop at.

    Args:
        pair_args: names the columns.
        tokenizer: with the chat template; each distinct sequence of roles is rendered once.
    """

    def __init__(self, pair_args: PairArguments, tokenizer: PreTrainedTokenizerBase):
        self.names, self.tokenizer = pair_args, tokenizer
        self.kind: type | None = None  # str or list, as in the first good pair: TRL takes all for the same
        self.refusals: dict[tuple[str, ...], str | None] = {}
        self.reasons: dict[int, str] = {}

    def __call__(self, split: Dataset) -> np.ndarray:
        """bool (N,): True for pairs that can be used."""
        self.reasons, number = {}, 0
        for batch in split.iter(1000):
            for values in zip(*batch.values(), strict=True):
                reason = self._wrong(dict(zip(batch, values, strict=True)))
                if reason is not None:
                    self.reasons[number] = reason
                number += 1
        good = np.ones(len(split), bool)
        good[list(self.reasons)] = False
        return good

    def why(self, split: Dataset, row: int) -> str:
        """The reason why a pair of the split that was checked last can't be used."""
        return self.reasons[row]

    def _wrong(self, row: dict[str, Any]) -> str | None:
        """What is wrong with a pair, or None."""
        margin = row.pop(self.names.margin_column, 0.0)
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
            return f"column {self.names.margin_column} must hold numbers"
        for column, value in row.items():
            if reason := wrong_value(value):
                return f"column {column} {reason}"
        kinds = {type(value) for value in row.values()}
        if len(kinds) > 1:
            return f"of {', '.join(row)} some are text, others lists of messages: give all as the same"
        (kind,) = kinds
        if self.kind not in (None, kind):
            said = {str: "text", list: "lists of messages"}
            return f"it holds {said[kind]}, the rows before {said[self.kind]}"
        chosen, rejected = row[self.names.chosen_column], row[self.names.rejected_column]
        if chosen == rejected:
            return f"{self.names.chosen_column} and {self.names.rejected_column} are equal, so neither is better"
        if kind is list:
            for half in (chosen, rejected):
                if refusal := self._refusal([*row.get(self.names.prompt_column, []), *half]):
                    return refusal
        self.kind = kind
        return None

    def _refusal(self, messages: list[dict[str, str]]) -> str | None:
        """Why the chat template can't render these messages, or None."""
        if not self.tokenizer.chat_template:
            raise BadInput("the tokenizer has no chat template: pass --chat_template_path (`chatml` is one)")
        roles = tuple(message["role"] for message in messages)
        if roles not in self.refusals:
            try:
                self.tokenizer.apply_chat_template(messages, tokenize=False)
                self.refusals[roles] = None
            except Exception as error:  # whatever a template's own code raises
                why = " ".join(str(error).split())[:200]
                self.refusals[roles] = f"the chat template can't render the roles {', '.join(roles)}: {why}"
        return self.refusals[roles]


def wrong_value(value: Any) -> str | None:
    """What makes a value neither text nor a list of messages `{role, content}`, or None."""
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return "is empty"
    if isinstance(value, str):
        return None
    if not isinstance(value, list):
        return "must hold text, or a list of messages {role, content}"
    for place, message in enumerate(value):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            return f"must hold messages {{role, content}}; the one at {place} is none"
        for part in ("role", "content"):
            if not isinstance(message[part], str) or not message[part].strip():
                return f"has a message at {place} whose {part} is empty, or no text"
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


# ---- after training ----


@torch.no_grad()
def rewards_of(model, sequences: Sequence[list[int]]) -> torch.Tensor:
    """float64 (N,): the model's scores of token ids, all in one batch, padded on the right."""
    longest = max(map(len, sequences))
    pad = model.config.get_text_config().pad_token_id
    ids = torch.full((len(sequences), longest), pad)
    attended = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        attended[row, : len(sequence)] = 1
    logits = model(input_ids=ids.to(model.device), attention_mask=attended.to(model.device)).logits
    return logits.squeeze(-1).double().cpu()


def wilson_interval(successes: float, trials: int, z: float = Z95) -> tuple[float, float]:
    """(low, high) of a proportion, 95 % by default (Wilson 1927, equation 4).

    Args:
        successes: in [0, trials]; a half counts as one.
        trials: at least 1.
        z: quantile of the normal distribution.
    """
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def preference_metrics(chosen: torch.Tensor, rejected: torch.Tensor) -> dict[str, float]:
    """How well rewards order pairs.

    Args:
        chosen, rejected: (N,) rewards of the better and of the worse halves.

    Returns:
        dict: `accuracy`, the share of pairs whose better half has the higher reward, a tie counting half;
        `accuracy_low` and `accuracy_high`, its 95 % interval ([`wilson_interval`]); `ties`, pairs with equal rewards;
        `margin`, the mean difference; `loss`, the mean -log sigmoid of it (Bradley & Terry 1952); `brier`, the mean
        squared error of its sigmoid as the probability that the better half wins; `pairs`.
    """
    margins = chosen.double() - rejected.double()
    ties = int((margins == 0).sum())
    wins = int((margins > 0).sum()) + ties / 2
    low, high = wilson_interval(wins, len(margins))
    return {
        "accuracy": wins / len(margins),
        "accuracy_low": low,
        "accuracy_high": high,
        "ties": ties,
        "margin": margins.mean().item(),
        "loss": -torch.nn.functional.logsigmoid(margins).mean().item(),
        "brier": (1 - margins.sigmoid()).square().mean().item(),
        "pairs": len(margins),
    }


def evaluate_pairs(
    model,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset | None,
    batch_size: int = 32,
    max_length: int | None = None,
) -> dict[str, float]:
    """[`preference_metrics`] of a split, and `dropped`, its pairs that are longer than `max_length`, not among them.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        rows: of [`load_pairs`].
        batch_size: pairs at a time; those of like length go together, the halves of one always do.
        max_length: tokens of a half, at most.

    Raises:
        BadInput: there is no split, no pair in it is short enough, or one is longer than the model takes.
    """
    if rows is None:
        raise BadInput("the run has neither a test nor a validation split: there is nothing to evaluate")
    encoded = encode_pairs(rows, tokenizer)
    pairs = within(encoded, max_length)
    if len(pairs) == 0:
        raise BadInput(f"no pair to evaluate has at most --max_length {max_length} tokens")
    check_lengths(pairs, model, "held-out")
    order = np.argsort(lengths(pairs), kind="stable")
    chosen, rejected = [], []
    with full_float32():
        for begin in range(0, len(order), batch_size):
            batch = pairs[order[begin : begin + batch_size]]
            scores = rewards_of(model, [*batch["chosen_ids"], *batch["rejected_ids"]])
            better, worse = scores.chunk(2)
            chosen.append(better)
            rejected.append(worse)
    return preference_metrics(torch.cat(chosen), torch.cat(rejected)) | {"dropped": len(encoded) - len(pairs)}


def score(model, tokenizer: PreTrainedTokenizerBase, prompt: str | list | None, response: str | list) -> float:
    """The reward of a response.

    Args:
        model, tokenizer: the model, in evaluation mode.
        prompt: text or messages; None or empty where the response is a whole transcript.
        response: text or messages, as the prompt.

    Raises:
        BadInput: it is longer than the model takes, or empty.
    """
    if not response or (isinstance(response, str) and not response.strip()):
        raise BadInput("--response is empty: give the text to score")
    (ids,) = encode(tokenizer, [join(prompt, response)])
    positions = usable_positions(model)
    if positions is not None and len(ids) > positions:
        raise BadInput(f"prompt and response have {len(ids)} tokens, more than the model's {positions} positions")
    with full_float32():
        return rewards_of(model, [ids]).item()


def scored(model, tokenizer, prompt: str, response: str, conversational: bool) -> dict[str, str]:
    """Prompt, response and [`score`] as a row; as the turns of a chat where the model was trained on chats."""
    given, made = prompt, response
    if conversational:
        given = [{"role": "user", "content": prompt}] if prompt else []
        made = [{"role": "assistant", "content": response}] if response else []
    return {"prompt": prompt, "response": response, "reward": f"{score(model, tokenizer, given, made):.4f}"}


def describe_pairs(texts: TextSplits, dropped: dict[str, int]) -> dict[str, Any]:
    """What run.json says of pairs besides their name: whether they are chats, and how many TRL left out.

    Args:
        texts: of [`load_pairs`].
        dropped: of [`reward_trainer`].
    """
    return {"conversational": isinstance(texts["train"][0]["chosen"], list), "dropped_for_length": dropped}


def score_examples(model, tokenizer: PreTrainedTokenizerBase, rows: Dataset, count: int = 3) -> list[dict[str, str]]:
    """The first pairs of a split with the rewards of their halves.

    Args:
        model, tokenizer: the model, in evaluation mode.
        rows: of [`load_pairs`].
        count: pairs, of those that are short enough for the model.
    """
    shown: list[dict[str, str]] = []
    positions = usable_positions(model) or math.inf
    for row in rows:
        whole = {half: join(row.get("prompt"), row[half]) for half in ("chosen", "rejected")}
        if len(shown) == count:
            break
        if all(len(encode(tokenizer, [value])[0]) <= positions for value in whole.values()):
            made = {half: f"{score(model, tokenizer, row.get('prompt'), row[half]):+.2f}" for half in whole}
            prompt = {"prompt": _tail(row["prompt"])} if row.get("prompt") else {}
            halves = {half: f"{made[half]}  {_tail(row[half])}" for half in whole}
            shown.append(prompt | halves)
    return shown


def _tail(value: str | list[dict[str, str]], width: int = 300) -> str:
    """The end of a text, where the halves of a transcript differ."""
    text = value if isinstance(value, str) else value[-1]["content"]
    return text.strip() if len(text) <= width else f"… {text[-width:].strip()}"
