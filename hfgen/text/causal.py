"""Causal language models (GPT): blocks of packed documents, their loss, and what it is in bits a character."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase, Trainer

from ..data.text import TextDataArguments, TextSplits, load_text
from ..errors import BadInput
from ..precision import full_float32
from .stream import StreamBlocks, load_stream
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
    check_positions(args, model)
    isolate = args.packing == "isolated" and takes_positions(model)
    blocks = {}
    for split, dataset in texts.splits.items():
        if args.text_column != "text":
            dataset = dataset.rename_column(args.text_column, "text")
        corpus = tokenize_corpus(dataset, tokenizer, cache_dir=data.cache_dir, name=texts.name)
        # A short held-out text is one shorter block.
        size = args.block_size if split == "train" else min(args.block_size, len(corpus.tokens))
        blocks[split] = TokenBlocks(corpus, size, isolate, split=split)
    return blocks


def check_positions(args: CausalLMArguments, model) -> None:
    """Refuses blocks longer than the model's positions."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and args.block_size > positions:
        raise BadInput(f"--block_size {args.block_size} is more than the model's {positions} positions: lower it")


def load_causal_data(
    data: TextDataArguments, args: CausalLMArguments, embedded, make_tokenizer, make_model, seed: int
) -> tuple[TextSplits, PreTrainedTokenizerBase, Any, dict[str, Any]]:
    """Text, tokenizer, model and blocks, prepared or streamed.

    Args:
        data, args: the recipe's options.
        embedded: the columns of `stdlib`.
        make_tokenizer: training split -> tokenizer.
        make_model: tokenizer -> model.
        seed: of a stream's order.

    Returns:
        the splits, the tokenizer, the model, and blocks by split.

    Raises:
        BadInput: whatever is wrong with the data or with what was asked of it.
    """
    if not data.streaming:
        texts = load_text(data, [args.text_column], embedded)
        tokenizer = make_tokenizer(texts["train"])
        model = make_model(tokenizer)
        return texts, tokenizer, model, causal_blocks(texts, tokenizer, args, data, model)
    streams, texts = load_stream(data, args.text_column)
    tokenizer = make_tokenizer(None)
    model = make_model(tokenizer)
    blocks: dict[str, Any] = causal_blocks(texts, tokenizer, args, data, model)
    blocks["train"] = StreamBlocks(
        streams,
        args.text_column,
        tokenizer,
        args.block_size,
        seed=seed,
        shuffle_buffer_size=data.shuffle_buffer_size,
        weights=data.dataset_weights,
        stopping_strategy=data.stopping_strategy,
        isolate=args.packing == "isolated" and takes_positions(model),
        name=texts.name,
    )
    return texts, tokenizer, model, blocks


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
    if isinstance(blocks["train"], StreamBlocks) and args.max_steps <= 0:
        raise BadInput("a streamed dataset has no known length: set --max_steps")
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
