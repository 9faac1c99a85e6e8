"""Chats: the template that renders them, and what makes a row of messages useless."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..errors import BadInput
from .tokenizer import CHAT_TEMPLATE, SPECIALS, load_tokenizer


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


class RowCheck:
    """Finds rows of texts or chats that a trainer would stop at halfway, or silently learn nothing from.

    A recipe says in `wrong` what else makes its rows useless. Each distinct sequence of roles is rendered once: a chat
    template can refuse a role, or an order of them.

    Args:
        tokenizer: with the chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.kind: type | None = None  # str or list, as in the first good row: TRL takes all rows for the same
        self.refusals: dict[tuple[str, ...], str | None] = {}
        self.reasons: dict[int, str] = {}

    def __call__(self, split: Dataset) -> np.ndarray:
        """bool (N,): True for rows that can be used."""
        self.reasons = {}
        rows = (row for batch in split.iter(1000) for row in zip(*batch.values(), strict=True))
        for number, row in enumerate(rows):
            reason = self.wrong(dict(zip(split.column_names, row, strict=True)))
            if reason is not None:
                self.reasons[number] = reason
        good = np.ones(len(split), bool)
        good[list(self.reasons)] = False
        return good

    def why(self, split: Dataset, row: int) -> str:
        """The reason why a row of the split that was checked last can't be used."""
        return self.reasons[row]

    def wrong(self, row: dict[str, Any]) -> str | None:
        """What is wrong with a row, or None."""
        raise NotImplementedError

    def wrong_kind(self, values: dict[str, Any]) -> str | None:
        """What is wrong with the types of a row's checked values: all texts or all chats, as in the rows before."""
        kinds = {type(value) for value in values.values()}
        if len(kinds) > 1:
            return f"of {', '.join(values)} some are text, others lists of messages: give all as the same"
        (kind,) = kinds
        if self.kind not in (None, kind):
            said = {str: "text", list: "lists of messages"}
            return f"{' and '.join(values)} hold {said[kind]}, the rows before {said[self.kind]}"
        return None

    def refusal(self, messages: list[dict[str, str]]) -> str | None:
        """Why the chat template can't render these messages, or None.

        Raises:
            BadInput: there is no chat template.
        """
        if not self.tokenizer.chat_template:
            raise BadInput("the tokenizer has no chat template: pass --chat_template_path (`chatml` is one)")
        roles = tuple(message["role"] for message in messages)
        if roles not in self.refusals:
            self.refusals[roles] = None
            try:
                self.tokenizer.apply_chat_template(messages, tokenize=False)
            except Exception as error:  # whatever a template's own code raises
                why = " ".join(str(error).split())[:200]
                listed = ", ".join(dict.fromkeys(roles))
                self.refusals[roles] = f"the chat template can't render the roles {listed}: {why}"
        return self.refusals[roles]


def wrong_value(value: Any, messages_only: bool = False) -> str | None:
    """What makes a value neither text (unless `messages_only`) nor a list of messages `{role, content}`, or None."""
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return "is empty"
    if isinstance(value, str) and not messages_only:
        return None
    if not isinstance(value, list):
        wanted = "a list of messages" if messages_only else "text or a list of messages"
        return f"must hold {wanted} {{role, content}}, not {_named(value)}"
    for place, message in enumerate(value):
        if not isinstance(message, dict):
            return f"must hold messages {{role, content}}, but the one at {place} is {_named(message)}"
        for part in ("role", "content"):
            if message.get(part) is None:
                return f"has a message without {part} at {place}, only {', '.join(k for k in message if message[k])}"
            if not isinstance(message[part], str):
                return f"has a message at {place} whose {part} is {_named(message[part])}: it must be text"
        if not message["content"].strip() and message["role"] != "system":  # an empty system prompt is harmless
            return f"has an empty message at {place} (of {message['role']})"
    return None


def _named(value: Any) -> str:
    """What kind of thing a value is, in a user's words."""
    known = {str: "text", list: "a list", dict: "an object", bool: "true or false", type(None): "nothing"}
    return known.get(type(value), f"the number {value}")
