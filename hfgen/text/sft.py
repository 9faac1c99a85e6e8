"""Supervised fine-tuning on TRL's SFTTrainer: rows checked before it sees them, prompts and answers, their figures."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
import trl
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.data_utils import common_prefix_length

from ..data.stdlib import questions
from ..data.text import TextDataArguments, TextSplits, load_text
from ..errors import BadInput, speaks
from ..precision import full_float32
from ..progress import say
from .arguments import ModelArguments, TextDefaults, TransferArguments
from .generation import continue_texts
from .tokenizer import CHAT_TEMPLATE, SPECIALS, load_tokenizer, make_tokenizer, train_tokenizer

IGNORED = -100  # the label of tokens that are given, not learned
ASKED = "What does os.path.join do?"  # where no --prompt is given
# Below so many rows preparing a split takes a few seconds: a bar for each of TRL's passes would only be noise.
FEW_ROWS = 20_000


def _unused(default: Any = None):
    """A field of TRL's config that would do nothing here: no option of the recipe."""
    return field(default=default, init=False)


@dataclass
class SFTArguments(TextDefaults, trl.SFTConfig):
    """trl.SFTConfig, with [`TextDefaults`], and without what would do nothing.

    Raises:
        BadInput: a value out of its range, or options that contradict each other.
    """

    _argument_group_name = "supervised fine-tuning"

    assistant_only_loss: bool | None = field(
        default=None,
        metadata={
            "help": "Whole chats (messages): learn the assistant's words alone; default: where the chat template "
            "marks them ({%% generation %%}), or TRL knows one that does."
        },
    )
    chat_template_path: str | None = field(
        default=None,
        metadata={
            "help": "Another chat template: a Jinja file, a tokenizer's folder or Hub id (its special tokens come "
            "with it: see --resize_embeddings), or `chatml`."
        },
    )
    packing: bool = field(
        default=False,
        metadata={
            "help": "Put several rows into one sequence of --max_length instead of padding them. They do not see each "
            "other, except with --packing_strategy wrapped."
        },
    )
    # Said elsewhere (the model's options, the data's columns), or for what this recipe does not do.
    model_init_kwargs: Any = _unused()
    trust_remote_code: bool = _unused(False)
    dataset_text_field: str = _unused("text")
    dataset_kwargs: Any = _unused()
    truncation_mode: str = _unused("keep_start")
    pad_token: str | None = _unused()

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise BadInput(f"--max_length {self.max_length}: must be at least 2")
        self.template_source, self.chat_template_path = self.chat_template_path, None  # given to the tokenizer at once
        super().__post_init__()


@dataclass
class ChatArguments:
    """Which columns hold what, and whether plain text is put into a chat."""

    _argument_group_name = "prompts and answers"

    prompt_column: str = field(default="prompt", metadata={"help": "Column of prompts: text, or lists of messages."})
    completion_column: str = field(
        default="completion", metadata={"help": "Column of answers: text, or lists of messages."}
    )
    messages_column: str = field(
        default="messages",
        metadata={"help": "Column of whole chats, lists of {role, content}; used where prompt or completion lacks."},
    )
    chat: bool | None = field(
        default=None,
        metadata={
            "help": "Render plain prompts and answers as a turn of a chat; default: where the tokenizer has a chat "
            "template. Otherwise the answer follows the prompt as it stands."
        },
    )

    def choose(self, names: list[str]) -> list[str]:
        """The columns of a dataset that are used.

        Raises:
            BadInput: they are not there; lists those that are.
        """
        for wanted in ([self.prompt_column, self.completion_column], [self.messages_column]):
            if set(wanted) <= set(names):
                return wanted
        missing = self.completion_column if self.prompt_column in names else self.prompt_column
        raise BadInput(
            f"the dataset has no column {missing} and no column {self.messages_column}, only {', '.join(names)}: name "
            "yours with --prompt_column and --completion_column, or --messages_column"
        )

    def renders(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether plain text becomes a chat."""
        return bool(tokenizer.chat_template) if self.chat is None else self.chat


@dataclass
class RowLimit:
    """What of TRL's options an evaluation needs from the run's record."""

    max_length: int | None = None


def given_tokenizer(
    model_args: ModelArguments, args: SFTArguments, transfer: TransferArguments
) -> PreTrainedTokenizerBase | None:
    """The tokenizer that is there before any data is read, with the chat template that was asked for.

    Returns:
        The tokenizer, or None where a new one is trained on the data.

    Raises:
        BadInput: no such tokenizer or template, or a template with new tokens, whose embeddings LoRA would not train.
    """
    if model_args.tokenizer_name or model_args.model_name_or_path:
        tokenizer = make_tokenizer(model_args, "chat", None)
        before = len(tokenizer)
        with_chat_template(tokenizer, args.template_source)
        if transfer.lora_r and len(tokenizer) > before:
            new = ", ".join(tokenizer.convert_ids_to_tokens(range(before, len(tokenizer))))
            raise BadInput(
                f"--chat_template_path {args.template_source} adds {new}, whose embeddings --lora_r does not train: "
                "train the whole model, or give a Jinja file that does with the tokenizer's own tokens"
            )
        return tokenizer
    if args.template_source is not None:
        raise BadInput("--chat_template_path is for a tokenizer that is given; a new one has its own (ChatML)")
    return None


def with_chat_template(tokenizer: PreTrainedTokenizerBase, source: str | None) -> PreTrainedTokenizerBase:
    """Gives a tokenizer another chat template.

    Args:
        tokenizer: is changed.
        source: a Jinja file; a tokenizer's folder or Hub id, whose special tokens come along; `chatml`; None changes
            nothing.

    Raises:
        BadInput: there is no template.
    """
    if source is None:
        return tokenizer
    path = Path(source).expanduser()
    if source == "chatml":
        specials = SPECIALS["chat"]
        _add_tokens(tokenizer, list(specials.extra), specials.roles["eos_token"])
        tokenizer.chat_template = CHAT_TEMPLATE
    elif path.is_file():
        try:
            tokenizer.chat_template = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"--chat_template_path {source} can't be read: {error}") from error
    else:
        other = load_tokenizer(source)
        if not other.chat_template:
            raise BadInput(f"--chat_template_path {source}: this tokenizer has no chat template")
        _add_tokens(tokenizer, other.all_special_tokens, other.eos_token)
        tokenizer.chat_template = other.chat_template
    return tokenizer


def _add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[str], end_of_turn: str) -> None:
    known = tokenizer.get_vocab()
    extra = [token for token in dict.fromkeys([*tokens, end_of_turn]) if token not in known]
    tokenizer.add_special_tokens({"extra_special_tokens": extra}, replace_extra_special_tokens=False)
    tokenizer.eos_token = end_of_turn


def load_chats(data_args: TextDataArguments, chat_args: ChatArguments, tokenizer=None) -> TextSplits:
    """The splits, checked row by row, in TRL's columns: `prompt` and `completion`, or `messages`.

    Args:
        data_args: where they are; `stdlib` is [`hfgen.data.stdlib.questions`].
        chat_args: see [`ChatArguments`].
        tokenizer: the one that renders them; None stands for a new one (ChatML).

    Raises:
        BadInput: a missing column, or a row that can't be used; names it.
    """
    if tokenizer is None:
        tokenizer = train_tokenizer(iter(()), "char", 0, "chat")  # of no text: its template is what is needed
    chat = chat_args.renders(tokenizer)
    if chat and not tokenizer.chat_template:
        raise BadInput("--chat true: the tokenizer has no chat template; pass --chat_template_path")
    check = RowCheck(chat_args, tokenizer)
    texts = load_text(data_args, chat_args.choose, questions, check)
    names = {chat_args.prompt_column: "prompt", chat_args.completion_column: "completion"}
    names[chat_args.messages_column] = "messages"
    for split, rows in texts.splits.items():
        rows = rows.rename_columns({old: new for old, new in names.items() if old in rows.column_names})
        if chat and "prompt" in rows.column_names and check.kind is str:
            with few_bars(len(rows)):
                rows = rows.map(as_chat, batched=True, desc="As chats", features=_CHATS)
        texts.splits[split] = rows
    return texts


_MESSAGES = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
_CHATS = datasets.Features({"prompt": _MESSAGES, "completion": _MESSAGES})


def as_chat(batch: dict[str, list[str]]) -> dict[str, list[list[dict[str, str]]]]:
    """Plain prompts and completions as a turn of a chat each."""
    return {
        "prompt": [[{"role": "user", "content": text}] for text in batch["prompt"]],
        "completion": [[{"role": "assistant", "content": text}] for text in batch["completion"]],
    }


class RowCheck:
    """Finds rows that TRL would stop at halfway, or silently learn nothing from.

    Each distinct sequence of roles is rendered once: a chat template can refuse a role, or an order of them.

    Args:
        chat_args: see [`ChatArguments`].
        tokenizer: with the chat template.

    Raises:
        BadInput: (when called) the rows are chats, and the options or the tokenizer are not for chats.
    """

    def __init__(self, chat_args: ChatArguments, tokenizer: PreTrainedTokenizerBase):
        self.chat_args, self.tokenizer = chat_args, tokenizer
        self.kind: type | None = None  # str or list, as in the first good row: TRL takes all rows for the same
        self.refusals: dict[tuple[str, ...], str | None] = {}
        self.reasons: dict[int, str] = {}

    def __call__(self, split: Dataset) -> np.ndarray:
        """bool (N,): True for rows that can be used."""
        self.reasons = {}
        rows = (row for batch in split.iter(1000) for row in zip(*batch.values(), strict=True))
        for number, row in enumerate(rows):
            reason = self._wrong(dict(zip(split.column_names, row, strict=True)))
            if reason is not None:
                self.reasons[number] = reason
        good = np.ones(len(split), bool)
        good[list(self.reasons)] = False
        return good

    def why(self, split: Dataset, row: int) -> str:
        """The reason why a row of the split that was checked last can't be used."""
        return self.reasons[row]

    def _wrong(self, row: dict[str, Any]) -> str | None:
        """What is wrong with a row, or None."""
        for column, value in row.items():
            reason = self._wrong_value(value, whole=column == self.chat_args.messages_column)
            if reason is not None:
                return f"column {column} {reason}"
        kinds = {column: type(value) for column, value in row.items()}
        if len(set(kinds.values())) > 1:
            return "one of " + " and ".join(kinds) + " is text, the other a list of messages: give both as the same"
        kind = next(iter(kinds.values()))
        if self.kind not in (None, kind):
            said = {str: "text", list: "lists of messages"}
            return f"{' and '.join(kinds)} hold {said[kind]}, the rows before {said[self.kind]}"
        if kind is list:
            if not self.tokenizer.chat_template:
                raise BadInput("the tokenizer has no chat template: pass --chat_template_path (`chatml` is one)")
            if self.chat_args.chat is False:
                raise BadInput("--chat false is for plain text, but the dataset holds lists of messages")
            messages = [message for value in row.values() for message in value]
            roles = tuple(message["role"] for message in messages)
            if roles not in self.refusals:
                self.refusals[roles] = self._refusal(messages, alone=len(row) == 1)
            if self.refusals[roles] is not None:
                return self.refusals[roles]
        self.kind = kind
        return None

    def _wrong_value(self, value: Any, whole: bool) -> str | None:
        if value is None or value == [] or (isinstance(value, str) and not value.strip()):
            return "is empty"
        if isinstance(value, str) and not whole:
            return None
        if not isinstance(value, list):
            wanted = "a list of messages" if whole else "text or a list of messages"
            return f"must hold {wanted} {{role, content}}, not {_named(value)}"
        for place, message in enumerate(value):
            if not isinstance(message, dict):
                return f"must hold messages {{role, content}}, but the one at {place} is {_named(message)}"
            for part in ("role", "content"):
                if message.get(part) is None:
                    return (
                        f"has a message without {part} at {place}, only {', '.join(k for k in message if message[k])}"
                    )
                if not isinstance(message[part], str):
                    return f"has a message at {place} whose {part} is {_named(message[part])}: it must be text"
            if not message["content"].strip() and message["role"] != "system":  # an empty system prompt is harmless
                return f"has an empty message at {place} (of {message['role']})"
        return None

    def _refusal(self, messages: list[dict[str, str]], alone: bool) -> str | None:
        """Why no row with these roles can be learned from, or None."""
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        marks = has_generation_markers(self.tokenizer.chat_template)
        if alone and marks and all(message["role"] != "assistant" for message in messages):
            return f"no message is the assistant's, only of {roles}: nothing could be learned"
        try:
            self.tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception as error:  # whatever a template's own code raises
            return f"the chat template can't render the roles {roles}: {' '.join(str(error).split())[:200]}"
        return None


def _named(value: Any) -> str:
    """What kind of thing a value is, in a user's words."""
    known = {str: "text", list: "a list", dict: "an object", bool: "true or false", type(None): "nothing"}
    return known.get(type(value), f"the number {value}")


@contextlib.contextmanager
def few_bars(rows: int) -> Iterator[None]:
    """Inside, the datasets library shows its progress bars only for many rows."""
    hide = rows < FEW_ROWS and not datasets.are_progress_bars_disabled()
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()


def learns_assistant_alone(args: SFTArguments, tokenizer: PreTrainedTokenizerBase, columns: list[str]) -> bool:
    """Whether the loss of whole chats is on the assistant's words alone, where `args` leaves it open.

    Raises:
        BadInput: it was asked for, but the chat template can't tell which they are.
    """
    if "messages" not in columns or args.assistant_only_loss is False:
        return bool(args.assistant_only_loss)
    try:
        marked = has_generation_markers(tokenizer.chat_template) or get_training_chat_template(tokenizer) is not None
    except ValueError:  # TRL has no marked version of it
        marked = False
    if not marked and args.assistant_only_loss:
        raise BadInput(
            "--assistant_only_loss true: the chat template does not mark the assistant's words ({% generation %}); "
            "give one that does with --chat_template_path, or prompt and completion columns"
        )
    if not marked and speaks():
        print("hfgen: the chat template does not mark the assistant's words: the loss is on every token", flush=True)
    return marked


def sft_trainer(model, tokenizer, args: SFTArguments, texts: TextSplits, **options: Any) -> trl.SFTTrainer:
    """TRL's `SFTTrainer` on checked rows.

    Args:
        model: with its adapters, if any (see [`hfgen.text.with_adapters`]).
        tokenizer, args: as for `SFTTrainer`.
        texts: of [`load_chats`].
        options: further ones of `SFTTrainer`.

    Raises:
        BadInput: options that TRL refuses; adapters on a model from scratch; rows that leave nothing to learn or are
            longer than the model; packing with a model in which packed rows would see each other.
    """
    validation = texts.splits.get("validation")
    if validation is None and args.eval_strategy != "no":
        raise BadInput("there is no validation split to evaluate on: set --validation_fraction, or --eval_strategy no")
    if isinstance(model, PeftModel) and not model.config.name_or_path:
        raise BadInput("--lora_r adapts a pretrained model, this one is new: set --model_name_or_path, or --lora_r 0")
    if tokenizer.eos_token is None and args.eos_token is None:
        raise BadInput("the tokenizer has no end-of-sequence token, so no answer would end: name one with --eos_token")
    args.assistant_only_loss = learns_assistant_alone(args, tokenizer, texts["train"].column_names)
    args.prediction_loss_only = True
    with few_bars(len(texts["train"])):
        try:
            trainer = trl.SFTTrainer(
                model,
                args,
                train_dataset=texts["train"],
                eval_dataset=validation,
                processing_class=tokenizer,
                **options,
            )
        except (ValueError, ImportError) as error:
            raise BadInput(f"TRL's SFTTrainer refuses: {' '.join(str(error).split())[:400]}") from error
    trainer.train_dataset = _learnable(trainer, trainer.train_dataset, "train", len(texts["train"]))
    if trainer.eval_dataset is not None:
        trainer.eval_dataset = _learnable(trainer, trainer.eval_dataset, "validation", len(validation))
    if trainer.padding_free and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        check_isolation(trainer)
    return trainer


def _learnable(trainer: trl.SFTTrainer, rows: Dataset, split: str, before: int) -> Dataset:
    """What TRL prepared of a split, without its texts; says how many rows were cut or left out.

    Raises:
        BadInput: no row is left, or the longest does not fit the model.
    """
    limit, model = trainer.args.max_length, trainer.model
    lengths = np.asarray(pc.list_value_length(rows.with_format("arrow")[:]["input_ids"]).combine_chunks())
    if "seq_lengths" in rows.column_names:
        lengths = np.asarray(rows.with_format("arrow")[:]["seq_lengths"].combine_chunks().flatten())
    elif (dropped := before - len(rows)) and not trainer.args.packing:
        say(
            trainer.accelerator,
            f"hfgen: {dropped} of {before} {split} rows were left out: their prompts alone fill --max_length {limit}",
        )
    if len(lengths) == 0:
        raise BadInput(f"no row of the {split} split has an answer within --max_length {limit}: raise it")
    if limit is not None and (cut := int((lengths >= limit).sum())) and not trainer.args.packing_strategy == "wrapped":
        say(trainer.accelerator, f"hfgen: {cut} of {before} {split} rows reach --max_length {limit} and end there")
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and lengths.max() > positions:
        raise BadInput(
            f"a row of the {split} split has {lengths.max()} tokens, more than the model's {positions} positions: set "
            f"--max_length {positions}"
        )
    return rows.select_columns([name for name in rows.column_names if name in ("input_ids", "labels", "seq_lengths")])


@torch.no_grad()
def check_isolation(trainer: trl.SFTTrainer) -> None:
    """Tries out whether rows that are packed into one sequence see each other.

    TRL promises that they do not for flash attention. Other attentions keep them apart where the architecture hands
    positions on to transformers' masks (`find_packed_sequence_indices`), and some architectures do not. So another
    first row must not change what the model says after the second one.

    Raises:
        BadInput: it does.
    """
    model, pad = trainer.model, trainer.processing_class.pad_token_id
    tokens = 12 * [token for token in range(min(len(trainer.processing_class), 13)) if token != pad]
    first, instead, second = tokens[:4], tokens[4:8], tokens[8:12]

    def outputs(*rows: list[int]) -> torch.Tensor:
        batch = trainer.data_collator([{"input_ids": sum(rows, []), "seq_lengths": [len(row) for row in rows]}])
        batch.pop("labels")
        batch = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        return model(**batch, use_cache=False).logits[0, -len(second) :].float()

    training = model.training
    model.eval()
    try:
        with trainer.compute_loss_context_manager():
            apart = (outputs(first, second) - outputs(instead, second)).abs().max()
            joined = (outputs(first + second) - outputs(instead + second)).abs().max()
    except (ValueError, TypeError) as error:
        raise BadInput(f"--packing true: {' '.join(str(error).split())[:300]} (leave it out)") from error
    finally:
        model.train(training)
    if apart > 0.05 * joined:  # masked out exactly, or up to rounding
        raise BadInput(
            f"--packing true: in {model.config.model_type} with {model.config._attn_implementation} attention, rows "
            "packed into one sequence would see each other: leave it out, or use another model or "
            "--attn_implementation flash_attention_2"
        )


# ---- after training ----


def encode(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
) -> tuple[list[int], list[int]]:
    """(input_ids, labels) of a row, for its evaluation: the label of what is given is -100, as TRL sets it.

    Scored is the answer up to its end-of-sequence token, that one included; what a chat template writes after it (a
    line break, mostly) is not, for no answer goes on there. Of whole chats all that the assistant says is scored where
    the chat template marks it, else the assistant's last message.

    Args:
        row: `prompt` and `completion`, or `messages`.
        tokenizer: that of the model.
        max_length: tokens kept, from the start.
    """
    render = partial(tokenizer.apply_chat_template, tokenize=True, return_dict=True)
    if "messages" in row and has_generation_markers(tokenizer.chat_template):
        encoded = render(row["messages"], return_assistant_tokens_mask=True)
        ids, scored = encoded["input_ids"], encoded["assistant_masks"]
        labels = [token if one else IGNORED for token, one in zip(ids, scored, strict=True)]
        return ids[:max_length], labels[:max_length]
    prompt, completion = prompt_and_answer(row)
    if isinstance(prompt, str):
        end = tokenizer.eos_token or ""
        given = tokenizer(prompt)["input_ids"]
        ids = tokenizer(prompt + completion + ("" if completion.endswith(end) else end))["input_ids"]
    else:
        given = render(prompt, add_generation_prompt=True)["input_ids"]
        ids = render(prompt + completion)["input_ids"]
    begin, end = common_prefix_length(given, ids), len(ids)
    if tokenizer.eos_token_id in ids[begin:]:
        end -= ids[::-1].index(tokenizer.eos_token_id)
    labels = [token if begin <= place < end else IGNORED for place, token in enumerate(ids)]
    return ids[:max_length], labels[:max_length]


def prompt_and_answer(row: dict[str, Any]) -> tuple[Any, Any]:
    """(prompt, completion) of a row, each a text or a list of messages; of a whole chat its last answer."""
    if "messages" not in row:
        return row["prompt"], row["completion"]
    messages = row["messages"]
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=len(messages) - 1)
    return messages[:last], messages[last : last + 1]


@torch.no_grad()
def evaluate_completions(
    model, tokenizer: PreTrainedTokenizerBase, rows: Dataset | None, batch_size: int = 8, max_length: int | None = None
) -> dict[str, float]:
    """How well a model predicts the answers, given the prompts.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        rows: of [`load_chats`], held out.
        batch_size: rows at a time; those of like length go together.
        max_length: tokens of a row that are kept.

    Returns:
        dict: `completion_loss`, the mean negative log-likelihood in nats of a scored token (see [`encode`]);
        `perplexity`, exp of it; `token_accuracy`, the share of them that are the likeliest; `completion_tokens`.

    Raises:
        BadInput: there are no rows, or no token that could be scored.
    """
    if rows is None:
        raise BadInput("the run has neither a test nor a validation split: there is nothing to evaluate")
    encoded = sorted((encode(row, tokenizer, max_length) for row in rows), key=lambda pair: len(pair[0]))
    nats, right, count = 0.0, 0, 0
    with full_float32():
        for begin in range(0, len(encoded), batch_size):
            ids, labels = zip(*encoded[begin : begin + batch_size], strict=True)
            ids, attended = _padded(ids, tokenizer.pad_token_id, model.device)
            labels, _ = _padded(labels, IGNORED, model.device)
            predicted = model(input_ids=ids, attention_mask=attended, use_cache=False).logits[:, :-1]
            scored = labels[:, 1:] != IGNORED
            predicted, wanted = predicted[scored].float(), labels[:, 1:][scored]
            nats += torch.nn.functional.cross_entropy(predicted, wanted, reduction="sum").item()
            right += (predicted.argmax(-1) == wanted).sum().item()
            count += len(wanted)
    if count == 0:
        raise BadInput(f"no row has an answer within --max_length {max_length}: there is nothing to evaluate")
    loss = nats / count
    return {
        "completion_loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "token_accuracy": right / count,
        "completion_tokens": count,
    }


def _padded(rows, value: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """(int64 (B, longest), its mask), padded on the right."""
    longest = max(map(len, rows))
    padded = torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return padded, mask


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict[str, str]], chat: bool = True) -> str:
    """What the model is given before its answer, as in training.

    Args:
        tokenizer: its tokenizer.
        prompt: a text, or a list of messages.
        chat: a text is what the user says in a chat.
    """
    if isinstance(prompt, str):
        if not chat:  # with the special token that the tokenizer puts before a text
            first = tokenizer(prompt)["input_ids"][:1]
            begins = first == [tokenizer.bos_token_id] and not prompt.startswith(tokenizer.bos_token)
            return tokenizer.bos_token + prompt if begins else prompt
        prompt = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)


def sample_answers(model, tokenizer, rows: Dataset, count: int = 4, **sampling: Any) -> list[dict[str, str]]:
    """The model's likeliest answers to some prompts of a split, beside the true ones.

    Args:
        model, tokenizer: the model, in evaluation mode.
        rows: of [`load_chats`]: what is plain text in them is not rendered as a chat.
        count: prompts, evenly spread over the split.
        sampling: see [`hfgen.text.continue_texts`].
    """
    places = sorted({(2 * i + 1) * len(rows) // (2 * count) for i in range(count)})
    pairs = [prompt_and_answer(row) for row in rows.select(places)]
    prompts = [render_prompt(tokenizer, prompt, chat=False) for prompt, _ in pairs]
    made = continue_texts(model, tokenizer, prompts, **({"temperature": 0.0} | sampling))
    return [
        {"prompt": _last_text(prompt), "answer": answer.strip(), "reference": _last_text(reference)}
        for (prompt, reference), answer in zip(pairs, made, strict=True)
    ]


def _last_text(value: str | list[dict[str, str]]) -> str:
    return value if isinstance(value, str) else (value[-1]["content"] if value else "")
