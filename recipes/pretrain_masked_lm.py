"""accelerate launch recipes/pretrain_masked_lm.py --config recipes/configs/pretrain_masked_lm/stdlib.yaml

Masked language model (BERT): text in, a model that fills in what is hidden; from scratch or from a pretrained one.

The same as `hfgen train pretrain_masked_lm --config stdlib`. On your own text: `--dataset_name ./my_folder`; whole
words: `--whole_word_masking true`; another architecture: `--model_type modernbert --config_overrides '{…}'`; on from a
model: `--model_name_or_path my/model`. The run folder loads with `AutoModelForMaskedLM.from_pretrained`.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForMaskedLM

from hfgen import text
from hfgen.config import parse_arguments
from hfgen.data.stdlib import topics
from hfgen.errors import guarded, leave
from hfgen.text import masked

GROUPS = (*text.ARGUMENTS, masked.MaskedLMArguments, text.TextTrainingArguments)


def main(argv: list[str] | None = None) -> None:
    *arguments, config = parse_arguments(GROUPS, argv, "pretrain_masked_lm")
    model_args, transfer, data_args, lm_args, args = arguments
    text.begin_run(args)
    texts = text.load_text(data_args, [lm_args.text_column], topics)
    tokenizer = text.make_tokenizer(model_args, "masked", texts["train"], (lm_args.text_column,), data_args.cache_dir)
    settings = masked.config_settings(tokenizer, lm_args)
    model = text.build_model(model_args, AutoModelForMaskedLM, tokenizer, "bert", transfer, **settings)
    blocks = masked.masked_blocks(texts, tokenizer, lm_args, data_args, model)
    model = text.with_adapters(model, transfer, None)
    trainer = masked.masked_trainer(model, tokenizer, args, blocks, **text.trainer_options(model, args, transfer))
    text.train_text(trainer, transfer)
    metrics, samples = {}, []
    if trainer.accelerator.is_main_process and texts.held_out:
        model, tokenizer = text.load_folder(args.output_dir, AutoModelForMaskedLM)
        few, size = lm_args.pseudo_perplexity_blocks, args.per_device_eval_batch_size
        measured = masked.evaluate_masked(model, blocks[texts.held_out], size, few)
        metrics = {f"{texts.held_out}_{name}": value for name, value in measured.items()}
        samples = masked.mask_examples(model, tokenizer, blocks[texts.held_out])
    text.finish_text_run(
        trainer,
        recipe="pretrain_masked_lm",
        config=config,
        argv=argv,
        arguments=tuple(arguments),
        metrics=metrics,
        dataset=text.describe(texts),
        auto_class="AutoModelForMaskedLM",
        pipeline_tag="fill-mask",
        samples=samples,
    )


def generate(run_dir: Path, *, seed: int = 0, output: Path, prompt: str = "The [MASK] statement", top_k: int = 5):
    """Writes the likeliest tokens at each `[MASK]` of a prompt; nothing is drawn, so every seed gives the same."""
    model, tokenizer = text.load_published(run_dir, AutoModelForMaskedLM)
    return text.write_samples(masked.fill_masks(model, tokenizer, prompt, top_k), output)


def evaluate(run_dir: Path, *, batch_size: int = 32) -> dict:
    """Masked accuracy, loss and pseudo-perplexity on the test split, or else the validation split."""
    kinds = (masked.MaskedLMArguments, text.TextDataArguments)
    lm_args, data_args = (text.saved_arguments(run_dir, kind) for kind in kinds)
    texts = text.load_text(data_args, [lm_args.text_column], topics)
    model, tokenizer = text.load_published(run_dir, AutoModelForMaskedLM)
    blocks = masked.masked_blocks(texts, tokenizer, lm_args, data_args, model).get(texts.held_out)
    figures = masked.evaluate_masked(model, blocks, batch_size, lm_args.pseudo_perplexity_blocks)
    return figures | {"split": texts.held_out}


if __name__ == "__main__":
    leave(guarded(main))
