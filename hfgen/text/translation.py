"""Supervised sequence-to-sequence (translation): pairs of texts, their loss, BLEU and chrF of what is generated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerBase, Seq2SeqTrainer

from ..data.text import TextSplits
from ..errors import BadInput
from ..precision import full_float32
from ..seeding import mix, seed_globals
from .arguments import ModelArguments, TransferArguments
from .fit import trainer_options
from .model import build_model
from .pairs import IGNORED, TokenPairs
from .tokens import as_batch

# Rows of a run's page, evenly spread over the split.
ROWS_SHOWN = 10


@dataclass
class TranslationArguments:
    """What is translated into what, and how it is generated and measured.

    Raises:
        BadInput: a value out of its range, or options that contradict each other.
    """

    _argument_group_name = "translation"

    source_column: str = field(default="source", metadata={"help": "Column of the texts that are translated."})
    target_column: str = field(default="target", metadata={"help": "Column of their translations."})
    source_lang: str | None = field(
        default=None,
        metadata={
            "help": "Language translated from: its key where the dataset has a column `translation` of "
            "{en: …, de: …}, and its code for a multilingual tokenizer (mBART, M2M-100, NLLB)."
        },
    )
    target_lang: str | None = field(
        default=None, metadata={"help": "Language translated into, likewise; BLEU, too, splits words by it."}
    )
    source_prefix: str = field(default="", metadata={"help": "Put before each source: 'translate to German: ' (T5)."})
    max_source_length: int = field(
        default=128, metadata={"help": "Tokens of a source at most; longer ones are counted and cut."}
    )
    max_target_length: int = field(
        default=128, metadata={"help": "Tokens of a target at most, trained on or generated; likewise."}
    )
    num_beams: int = field(default=1, metadata={"help": "Beams of the search that generates; 1 is greedy."})
    bleu_tokenize: str | None = field(
        default=None,
        metadata={"help": "How BLEU splits words: 13a, intl, zh, ja-mecab, char, …; by target_lang if not given."},
    )
    group_by_length: bool = field(
        default=True, metadata={"help": "Batches of rows of about the same length: less padding, more rows a second."}
    )

    def __post_init__(self) -> None:
        for name in ("max_source_length", "max_target_length"):
            if getattr(self, name) < 2:
                raise BadInput(f"--{name} {getattr(self, name)}: must be at least 2")
        if self.num_beams < 1:
            raise BadInput(f"--num_beams {self.num_beams}: must be at least 1")
        if self.source_column == self.target_column:
            raise BadInput(f"--source_column and --target_column are both {self.source_column}: name two columns")

    @property
    def columns(self) -> tuple[str, str]:
        """(source, target), after [`as_pairs`]."""
        return self.source_column, self.target_column


def build_translator(
    args: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    translation: TranslationArguments,
    transfer: TransferArguments | None = None,
):
    """An encoder-decoder, from scratch or pretrained, and its generation settings; sets the tokenizer's languages.

    From scratch the default architecture is T5's, whose relative positions and normalisation before each sublayer
    learn quickest at small size (800 steps: chrF 84 to 85; BART and Marian 34 to 50, `benchmarks/RESULTS.md`).

    Raises:
        BadInput: as [`build_model`]; lengths beyond the model's positions; a multilingual tokenizer without languages.
    """
    longest = max(translation.max_source_length, translation.max_target_length)
    scratch = args.model_name_or_path is None
    start = tokenizer.pad_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    settings = {"max_position_embeddings": longest, "decoder_start_token_id": start}
    settings["forced_eos_token_id"] = tokenizer.eos_token_id
    model = build_model(args, AutoModelForSeq2SeqLM, tokenizer, "t5", transfer, **settings)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        option = max(("max_source_length", "max_target_length"), key=lambda name: getattr(translation, name))
        raise BadInput(f"--{option} {longest} is more than the model's {positions} positions: lower it")
    if scratch:  # T5's config has no such option, but its forward pass reads it
        model.config.decoder_start_token_id = start
    language = set_languages(tokenizer, translation)
    if language is not None and tokenizer(text_target="a")["input_ids"][0] == language:
        model.generation_config.forced_bos_token_id = language  # mBART-50, M2M-100, NLLB: it is the first label
    elif language is not None:
        model.config.decoder_start_token_id = language  # mBART: it is the decoder's first input
    if getattr(model.config, "decoder_start_token_id", None) is None:
        raise BadInput(f"{args.model_name_or_path}: its config has no decoder_start_token_id, so it can't be trained")
    generation = model.generation_config
    for name in ("decoder_start_token_id", "pad_token_id", "eos_token_id", "bos_token_id"):
        if scratch or getattr(generation, name) is None:
            setattr(generation, name, getattr(model.config, name, None))
    if scratch and getattr(model.config, "forced_eos_token_id", None) is not None:
        generation.forced_eos_token_id = model.config.forced_eos_token_id
    generation.max_length = translation.max_target_length + 1  # with the decoder's start token
    generation.num_beams = translation.num_beams
    return model


def set_languages(tokenizer: PreTrainedTokenizerBase, args: TranslationArguments) -> int | None:
    """Tells a multilingual tokenizer (mBART, M2M-100, NLLB) its languages.

    Returns:
        The token of the target language; None for other tokenizers.

    Raises:
        BadInput: a language is not given or not known.
    """
    if not hasattr(tokenizer, "src_lang"):
        return None
    for option in ("source_lang", "target_lang"):
        language = getattr(args, option)
        if language is None:
            raise BadInput(f"this tokenizer is multilingual: set --{option}, such as {tokenizer.src_lang}")
        try:
            token = (getattr(tokenizer, "get_lang_id", None) or tokenizer.convert_tokens_to_ids)(language)
        except KeyError:
            token = None
        if token is None or token == tokenizer.unk_token_id:
            raise BadInput(f"--{option} {language}: the tokenizer has no such language; one is {tokenizer.src_lang}")
    tokenizer.src_lang, tokenizer.tgt_lang = args.source_lang, args.target_lang
    return token


def sequence_loss(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0, count: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross-entropy in nats a token, with label smoothing (Szegedy et al. 2016, section 7).

    (1 - e) * -log p(label) + e * mean over the vocabulary of -log p, summed over labels that are not -100.

    Args:
        logits: (B, T, V).
        labels: int64 (B, T).
        smoothing: e, from 0 to 1.
        count: the sum is divided by it; the number of labels here if not given.
    """
    logits = logits.flatten(0, 1).float()
    total = F.cross_entropy(logits, labels.flatten(), reduction="sum", label_smoothing=smoothing, ignore_index=IGNORED)
    return total / ((labels != IGNORED).sum() if count is None else count)


def loss_function(smoothing: float) -> Callable[..., torch.Tensor]:
    """The trainer's `compute_loss_func`: [`sequence_loss`] over all tokens of a step, smoothed where it trains.

    The architectures' own losses are means over a micro-batch: Trainer takes them for means over the step (they accept
    `num_items_in_batch`, and ignore it), so that accumulated gradients come out too large by the number of steps.
    """

    def compute(outputs, labels, num_items_in_batch=None) -> torch.Tensor:
        return sequence_loss(outputs.logits, labels, smoothing if torch.is_grad_enabled() else 0.0, num_items_in_batch)

    return compute


def translation_trainer(
    model,
    tokenizer: PreTrainedTokenizerBase,
    args,
    transfer: TransferArguments,
    pairs: dict[str, TokenPairs],
    texts: TextSplits,
    translation: TranslationArguments,
) -> Seq2SeqTrainer:
    """A plain transformers `Seq2SeqTrainer` on ready batches.

    Args:
        model, tokenizer, args: as for `Seq2SeqTrainer`.
        transfer: what of the model moves.
        pairs: `train`, and `validation` where it is evaluated.
        texts: the same rows as text: the references.
        translation: how it is generated and measured.

    Raises:
        BadInput: nothing to evaluate on, or a tokenizer of BLEU that is not there.
    """
    args.remove_unused_columns = False  # batches come ready
    args.prediction_loss_only = not args.predict_with_generate
    args.generation_num_beams = args.generation_num_beams or translation.num_beams
    args.generation_max_length = args.generation_max_length or translation.max_target_length + 1
    bleu_metric(translation)
    if "validation" not in pairs and args.eval_strategy != "no":
        raise BadInput("there is no validation split to evaluate on: set --validation_fraction, or --eval_strategy no")

    def compute_metrics(prediction) -> dict[str, float]:
        outputs = decode(tokenizer, prediction.predictions)
        references = texts["validation"][translation.target_column]
        # Several processes fill up their last batch with the first rows again.
        return translation_scores(outputs[: len(references)], references, translation)[0]

    if translation.group_by_length:
        pairs["train"].grouped = args.train_batch_size * args.world_size
    trainer = Seq2SeqTrainer(
        model,
        args,
        data_collator=as_batch,
        train_dataset=pairs["train"],
        eval_dataset=pairs.get("validation"),
        processing_class=tokenizer,
        compute_loss_func=loss_function(args.label_smoothing_factor),
        compute_metrics=compute_metrics if args.predict_with_generate else None,
        **trainer_options(model, args, transfer),
    )
    trainer.label_smoother = None  # the loss function smooths; the loss of an evaluation is the plain one
    return trainer


def decode(tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray | torch.Tensor) -> list[str]:
    """Texts of generated tokens (B, T), -100 left out."""
    tokens = np.asarray(tokens)
    tokens = np.where(tokens == IGNORED, tokenizer.pad_token_id, tokens)
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def bleu_metric(args: TranslationArguments):
    """sacrebleu's BLEU as the options say.

    Raises:
        BadInput: it splits words by a package that is not installed, or does not know the way.
    """
    from sacrebleu.metrics import BLEU
    from sacrebleu.metrics.bleu import _TOKENIZERS

    if args.bleu_tokenize is not None and args.bleu_tokenize not in _TOKENIZERS:
        raise BadInput(f"--bleu_tokenize {args.bleu_tokenize}: sacrebleu knows {', '.join(_TOKENIZERS)}")
    try:
        return BLEU(tokenize=args.bleu_tokenize, trg_lang=args.target_lang or "")
    except (RuntimeError, ImportError) as error:
        raise BadInput(
            f"BLEU can't split words: {' '.join(str(error).split())[:200]}; or pass --bleu_tokenize char"
        ) from error


def translation_scores(
    outputs: list[str], references: list[str], args: TranslationArguments
) -> tuple[dict[str, float], dict[str, str]]:
    """chrF (Popović 2015) and BLEU (Papineni et al. 2002) of a corpus, by sacrebleu (Post 2018).

    Args:
        outputs, references: as many of each.
        args: how words are split.

    Returns:
        (`chrf` and `bleu`, both 0 to 100; their signatures by the same names).
    """
    from sacrebleu.metrics import CHRF

    metrics = {"chrf": CHRF(), "bleu": bleu_metric(args)}
    scores = {name: metric.corpus_score(outputs, [references]).score for name, metric in metrics.items()}
    return scores, {name: str(metric.get_signature()) for name, metric in metrics.items()}


@torch.no_grad()
def generate_rows(model, tokenizer, pairs: TokenPairs, batch_size: int = 64, **generation: Any) -> list[str]:
    """The translation of each row, in order; rows of like length are generated together.

    Args:
        model: in evaluation mode.
        pairs: the rows.
        batch_size: rows at a time.
        generation: options of `generate` that differ from the model's own.
    """
    outputs = [""] * len(pairs)
    order = np.argsort(-pairs.sources.lengths, kind="stable")
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        batch = pairs.__getitems__(rows)
        inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        for row, text in zip(rows, decode(tokenizer, model.generate(**inputs, **generation).cpu()), strict=True):
            outputs[row] = text
    return outputs


@torch.no_grad()
def mean_loss(model, pairs: TokenPairs, batch_size: int = 64) -> float:
    """Nats a token of the targets, each given those before it; the mean over all tokens."""
    total, count = 0.0, 0
    order = np.argsort(pairs.targets.lengths, kind="stable")
    for begin in range(0, len(order), batch_size):
        batch = {k: v.to(model.device) for k, v in pairs.__getitems__(order[begin : begin + batch_size]).items()}
        labels = batch.pop("labels")
        total += sequence_loss(model(**batch, use_cache=False).logits, labels, count=1).item()
        count += int((labels != IGNORED).sum())
    return total / count


def evaluate_translator(
    model,
    tokenizer: PreTrainedTokenizerBase,
    pairs: dict[str, TokenPairs],
    texts: TextSplits,
    args: TranslationArguments,
    batch_size: int = 64,
    num_beams: int = 0,
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Generates the held-out split and measures it against its references as they were written, whole.

    Args:
        model, tokenizer: the model, in evaluation mode.
        pairs, texts: the splits, as tokens and as text.
        args: how it is generated and measured.
        batch_size: rows at a time.
        num_beams: of the search; 0 takes those of `args`.

    Returns:
        (`chrf`, `bleu`, `loss` in nats a token, `rows`, `split`, sacrebleu's signatures; `source`, `output` and
        `reference` of some rows).

    Raises:
        BadInput: there is no split to measure on.
    """
    if (split := texts.held_out) is None:
        raise BadInput(
            "there is no test or validation split to evaluate on: set --validation_fraction or --test_split"
        )
    sources, references = (texts[split][column] for column in args.columns)
    with full_float32():
        beams = num_beams or args.num_beams
        outputs = generate_rows(model, tokenizer, pairs[split], batch_size, num_beams=beams)
        loss = mean_loss(model, pairs[split], batch_size)
    scores, signatures = translation_scores(outputs, references, args)
    figures = scores | {"loss": loss, "rows": len(outputs), "num_beams": beams, "split": split}
    figures |= {f"{name}_signature": signature for name, signature in signatures.items()}
    shown = np.linspace(0, len(outputs) - 1, min(ROWS_SHOWN, len(outputs))).round().astype(int)
    rows = [{"source": sources[i], "output": outputs[i], "reference": references[i]} for i in shown.tolist()]
    return figures, rows


@torch.no_grad()
def translate(
    model,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    args: TranslationArguments,
    num_samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """The likeliest translations of a text, or drawn ones.

    Args:
        model, tokenizer: the model, in evaluation mode.
        text: one source.
        args: its prefix, languages, lengths and beams.
        num_samples: how many translations: the best of the beams (as many at least), or draws.
        temperature: above 0 draws instead of searching.
        seed: of the draws.

    Raises:
        BadInput: there is no text, or it is too long.
    """
    if not text.strip():
        raise BadInput('there is nothing to translate: pass --prompt "a text"')
    set_languages(tokenizer, args)
    inputs = tokenizer(args.source_prefix + text, return_tensors="pt")
    if (length := inputs["input_ids"].shape[1]) > args.max_source_length:
        raise BadInput(f"--prompt has {length} tokens, the model learned up to {args.max_source_length}: shorten it")
    how = {"do_sample": False, "num_beams": max(args.num_beams, num_samples)}
    if temperature > 0:
        seed_globals(mix(seed, 0), model.device)
        how = {"do_sample": True, "num_beams": 1, "temperature": temperature, "top_k": 0}
    inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
    return decode(tokenizer, model.generate(**inputs, num_return_sequences=num_samples, **how).cpu())
