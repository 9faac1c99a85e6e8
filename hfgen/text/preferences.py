"""What a reward model says of responses, and how well it orders pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..errors import BadInput
from ..precision import full_float32
from .model import usable_positions
from .reward import check_lengths, encode, encode_pairs, join, lengths, within

# The normal distribution's 97.5 % quantile: of a 95 % interval.
Z95 = 1.959963984540054


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
        rows: of [`hfgen.text.reward.load_pairs`].
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


def score_examples(model, tokenizer: PreTrainedTokenizerBase, rows: Dataset, count: int = 3) -> list[dict[str, str]]:
    """The first pairs of a split with the rewards of their halves.

    Args:
        model, tokenizer: the model, in evaluation mode.
        rows: of [`hfgen.text.reward.load_pairs`].
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
