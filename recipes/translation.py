"""accelerate launch recipes/translation.py --config recipes/configs/translation/stdlib.yaml

Translation (supervised sequence-to-sequence): a text in, another one out; from scratch, or on from a pretrained model.

On your own pairs, from a model: `--dataset_name x.csv --source_column en --target_column de --model_name_or_path y`.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForSeq2SeqLM

from hfgen import text
from hfgen.config import parse_arguments
from hfgen.data.stdlib import unicode_names
from hfgen.errors import guarded, leave
from hfgen.text import translation as mt
from hfgen.text.pairs import load_pairs, make_pairs

GROUPS = (
    text.ModelArguments,
    text.TransferArguments,
    text.TextDataArguments,
    mt.TranslationArguments,
    text.Seq2SeqArguments,
)


def main(argv: list[str] | None = None) -> None:
    *arguments, config = parse_arguments(GROUPS, argv, "translation")
    model_args, transfer, data_args, pair_args, args = arguments
    text.begin_run(args)
    texts = load_pairs(data_args, pair_args, unicode_names)
    tokenizer = text.make_tokenizer(model_args, "seq2seq", texts["train"], pair_args.columns, data_args.cache_dir)
    model = mt.build_translator(model_args, tokenizer, pair_args, transfer)
    pairs = make_pairs(texts, tokenizer, pair_args, data_args, model)
    model = text.with_adapters(model, transfer, "SEQ_2_SEQ_LM")
    trainer = mt.translation_trainer(model, tokenizer, args, transfer, pairs, texts, pair_args)
    text.train_text(trainer, transfer)
    metrics, samples = {}, []
    if trainer.accelerator.is_main_process and texts.held_out:
        model, tokenizer = text.load_folder(args.output_dir, AutoModelForSeq2SeqLM)
        measured, samples = mt.evaluate_translator(model, tokenizer, pairs, texts, pair_args)
        metrics = {f"{texts.held_out}_{name}": value for name, value in measured.items() if name != "split"}
    text.finish_text_run(
        trainer,
        recipe="translation",
        config=config,
        argv=argv,
        arguments=tuple(arguments),
        metrics=metrics,
        dataset=text.describe(texts),
        auto_class="AutoModelForSeq2SeqLM",
        pipeline_tag="translation",
        samples=samples,
    )


def generate(
    run_dir: Path, *, seed: int = 0, output: Path, prompt: str = "", num_samples: int = 1, temperature: float = 0.0
):
    """Writes the translation of a prompt: the likeliest ones, or drawn at a temperature."""
    args = text.saved_arguments(run_dir, mt.TranslationArguments)
    model, tokenizer = text.load_published(run_dir, AutoModelForSeq2SeqLM)
    made = mt.translate(model, tokenizer, prompt, args, num_samples, temperature, seed)
    return text.write_samples([{"source": prompt, "output": one} for one in made], output)


def evaluate(run_dir: Path, *, batch_size: int = 64, num_beams: int = 0) -> dict:
    """chrF, BLEU and loss on the test split, or else the validation split."""
    args, data_args = (text.saved_arguments(run_dir, k) for k in (mt.TranslationArguments, text.TextDataArguments))
    texts = load_pairs(data_args, args, unicode_names)
    model, tokenizer = text.load_published(run_dir, AutoModelForSeq2SeqLM)
    pairs = make_pairs(texts, tokenizer, args, data_args, model)
    return mt.evaluate_translator(model, tokenizer, pairs, texts, args, batch_size, num_beams)[0]


if __name__ == "__main__":
    leave(guarded(main))
