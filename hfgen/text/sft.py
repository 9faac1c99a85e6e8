"""Supervised fine-tuning on TRL's SFTTrainer: its options, and rows that are checked before it sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
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

from ..data.stdlib import questions
from ..data.text import TextDataArguments, TextSplits, load_text
from ..errors import BadInput, speaks
from ..progress import few_bars, say
from .arguments import ModelArguments, TextDefaults, TransferArguments, unused
from .chat import RowCheck, with_chat_template, wrong_value
from .tokenizer import make_tokenizer, train_tokenizer

ASKED = "What does os.path.join do?"  # where no --prompt is given


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
    model_init_kwargs: Any = unused()
    trust_remote_code: bool = unused(False)
    dataset_text_field: str = unused("text")
    dataset_kwargs: Any = unused()
    truncation_mode: str = unused("keep_start")
    pad_token: str | None = unused()

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
    check = ChatCheck(chat_args, tokenizer)
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


class ChatCheck(RowCheck):
    """Finds rows that TRL would stop at halfway, or silently learn nothing from.

    Args:
        chat_args: see [`ChatArguments`].
        tokenizer: with the chat template.

    Raises:
        BadInput: (when called) the rows are chats, and the options or the tokenizer are not for chats.
    """

    def __init__(self, chat_args: ChatArguments, tokenizer: PreTrainedTokenizerBase):
        super().__init__(tokenizer)
        self.chat_args = chat_args

    def wrong(self, row: dict[str, Any]) -> str | None:
        for column, value in row.items():
            if reason := wrong_value(value, messages_only=column == self.chat_args.messages_column):
                return f"column {column} {reason}"
        if reason := self.wrong_kind(row):
            return reason
        kind = type(next(iter(row.values())))
        if kind is list:
            if self.chat_args.chat is False:
                raise BadInput("--chat false is for plain text, but the dataset holds lists of messages")
            messages = [message for value in row.values() for message in value]
            if reason := self.refusal(messages) or self._nothing_to_learn(messages, alone=len(row) == 1):
                return reason
        self.kind = kind
        return None

    def _nothing_to_learn(self, messages: list[dict[str, str]], alone: bool) -> str | None:
        marks = has_generation_markers(self.tokenizer.chat_template)
        if alone and marks and all(message["role"] != "assistant" for message in messages):
            roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
            return f"no message is the assistant's, only of {roles}: nothing could be learned"
        return None


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
