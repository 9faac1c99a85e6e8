"""Answers to prompts: which tokens are scored, how well a model predicts them, what it answers itself."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import has_generation_markers
from trl.data_utils import common_prefix_length

from ..errors import BadInput
from ..precision import full_float32
from .generation import continue_texts

IGNORED = -100  # the label of tokens that are given, not learned


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
def evaluate_answers(
    model, tokenizer: PreTrainedTokenizerBase, rows: Dataset | None, batch_size: int = 8, max_length: int | None = None
) -> dict[str, float]:
    """How well a model predicts the answers, given the prompts.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        rows: of [`hfgen.text.sft.load_chats`], held out.
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
        rows: of [`hfgen.text.sft.load_chats`]: what is plain text in them is not rendered as a chat.
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
