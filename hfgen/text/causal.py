"""Causal language models (GPT): blocks of packed documents, their loss, and what it is in bits a character."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase, Trainer

from ..data.text import TextDataArguments, TextSplits
from ..errors import BadInput
from ..precision import full_float32
from .tokens import TokenBlocks, TokenCorpus, as_batch, tokenize_corpus


@dataclass
class CausalLMArguments:
    """How text becomes training samples of a causal language model.

    Raises:
        BadInput: a value out of its range.
    """

    _argument_group_name = "causal language model"

    text_column: str = field(default="text", metadata={"help": "Column of text."})
    block_size: int = field(default=256, metadata={"help": "Tokens of a training sample."})
    packing: Literal["isolated", "joined"] = field(
        default="isolated",
        metadata={
            "help": "Documents that share a block do not see each other (isolated, where the architecture allows), or "
            "the later ones see the earlier ones (joined)."
        },
    )

    def __post_init__(self) -> None:
        if self.block_size < 2:
            raise BadInput(f"--block_size {self.block_size}: must be at least 2")


def causal_blocks(
    texts: TextSplits, tokenizer: PreTrainedTokenizerBase, args: CausalLMArguments, data: TextDataArguments, model
) -> dict[str, TokenBlocks]:
    """The blocks of each split.

    Raises:
        BadInput: a split shorter than a block, or a block longer than the model's positions.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and args.block_size > positions:
        raise BadInput(
            f"--block_size {args.block_size} is more than the model's {positions} positions: lower it"
            + (
                ""
                if data is None
                else f", or pass --config_overrides '{{max_position_embeddings: {args.block_size}}}'"
            )
        )
    isolate = args.packing == "isolated" and takes_positions(model)
    blocks = {}
    for split, dataset in texts.splits.items():
        if args.text_column != "text":
            dataset = dataset.rename_column(args.text_column, "text")
        corpus = tokenize_corpus(dataset, tokenizer, cache_dir=data.cache_dir, name=texts.name)
        if split == "train" or len(corpus.tokens) >= args.block_size:
            blocks[split] = TokenBlocks(corpus, args.block_size, isolate, split=split)
        else:  # a short held-out text is one shorter block
            blocks[split] = TokenBlocks(corpus, len(corpus.tokens), isolate, split=split)
    return blocks


def takes_positions(model) -> bool:
    """Whether a model is given positions, from which it tells packed documents apart."""
    import inspect

    return "position_ids" in inspect.signature(model.forward).parameters


def causal_trainer(model, tokenizer, args, blocks: dict[str, TokenBlocks], **options: Any) -> Trainer:
    """A plain transformers `Trainer` on ready batches.

    Args:
        model, tokenizer, args: as for `Trainer`.
        blocks: `train`, and `validation` where it is evaluated.
        options: further ones of `Trainer`.
    """
    args.remove_unused_columns = False  # batches come ready
    args.prediction_loss_only = True
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
        **options,
    )


def language_metrics(nats: float, corpus: TokenCorpus) -> dict[str, float]:
    """`loss` in nats a token, `perplexity`, and `bits_per_character`, by which tokenizers compare."""
    return {
        "loss": nats,
        "perplexity": math.exp(min(nats, 700.0)),
        "bits_per_character": nats / corpus.characters_per_token / math.log(2),
    }


@torch.no_grad()
def evaluate_causal(model, blocks: TokenBlocks, batch_size: int = 32) -> dict[str, float]:
    """The mean next-token cross-entropy over all blocks, each token but a block's first (Radford et al. 2019).

    Args:
        model: in evaluation mode.
        blocks: the split.
        batch_size: blocks at a time.

    Returns:
        dict: see [`language_metrics`], and `tokens`, how many were predicted.
    """
    total, count = 0.0, 0
    with full_float32():
        for begin in range(0, len(blocks), batch_size):
            batch = blocks.__getitems__(range(begin, min(begin + batch_size, len(blocks))))
            batch = {name: value.to(model.device) for name, value in batch.items()}
            predicted = batch["labels"][:, 1:].numel()
            total += model(**batch, use_cache=False).loss.item() * predicted
            count += predicted
    return language_metrics(total / count, blocks.corpus) | {"tokens": count}
