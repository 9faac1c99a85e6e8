"""accelerate launch recipes/pretrain_causal_lm.py --config recipes/configs/pretrain_causal_lm/stdlib.yaml

Causal language model (GPT): text in, a model that continues it; from scratch, or on from a pretrained one.

The same as `hfgen train pretrain_causal_lm --config stdlib`. On your own text: `--dataset_name ./my_folder`; any
architecture of transformers: `--model_type llama --config_overrides '{hidden_size: 256, num_hidden_layers: 4}'`; on
from a model: `--model_name_or_path my/model`. The run folder loads with `AutoModelForCausalLM.from_pretrained`.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM

from hfgen import text
from hfgen.config import parse_arguments
from hfgen.data.stdlib import topics
from hfgen.errors import guarded, leave
from hfgen.text.causal import CausalLMArguments, causal_trainer, evaluate_causal, load_causal_data

GROUPS = (*text.ARGUMENTS, CausalLMArguments, text.TextTrainingArguments)


def main(argv: list[str] | None = None) -> None:
    *arguments, config = parse_arguments(GROUPS, argv, "pretrain_causal_lm")
    model_args, transfer, data_args, lm_args, args = arguments
    text.begin_run(args)

    def make_tokenizer(train):
        return text.make_tokenizer(model_args, "causal", train, (lm_args.text_column,), data_args.cache_dir)

    def make_model(tokenizer):
        settings = {"max_position_embeddings": lm_args.block_size}
        return text.build_model(model_args, AutoModelForCausalLM, tokenizer, "llama", transfer, **settings)

    loaded = load_causal_data(data_args, lm_args, topics, make_tokenizer, make_model, args.seed)
    texts, tokenizer, model, blocks = loaded
    model = text.with_adapters(model, transfer, "CAUSAL_LM")
    trainer = causal_trainer(model, tokenizer, args, blocks, **text.trainer_options(model, args, transfer))
    text.train_text(trainer, transfer)
    metrics, samples = {}, []
    if trainer.accelerator.is_main_process and texts.held_out:
        model, tokenizer = text.load_folder(args.output_dir, AutoModelForCausalLM)
        measured = evaluate_causal(model, blocks[texts.held_out], args.per_device_eval_batch_size)
        metrics = {f"{texts.held_out}_{name}": value for name, value in measured.items()}
        samples = [{"text": made} for made in text.continue_texts(model, tokenizer, [""] * 4)]
    text.finish_text_run(
        trainer,
        recipe="pretrain_causal_lm",
        config=config,
        argv=argv,
        arguments=tuple(arguments),
        metrics=metrics,
        dataset=text.describe(texts),
        auto_class="AutoModelForCausalLM",
        pipeline_tag="text-generation",
        samples=samples,
    )


def generate(run_dir: Path, *, seed: int = 0, output: Path, prompt: str = "", num_samples: int = 4, **sampling):
    """Writes what the model says after a prompt."""
    model, tokenizer = text.load_published(run_dir, AutoModelForCausalLM)
    made = text.continue_texts(model, tokenizer, [prompt] * num_samples, seed=seed, **sampling)
    return text.write_samples([{"prompt": prompt, "text": one} for one in made], output)


def evaluate(run_dir: Path, *, batch_size: int = 32) -> dict:
    """Loss, perplexity and bits per character on the test split, or else the validation split."""
    lm_args, data_args = (text.saved_arguments(run_dir, kind) for kind in (CausalLMArguments, text.TextDataArguments))
    model, tokenizer = text.load_published(run_dir, AutoModelForCausalLM)
    texts, _, _, blocks = load_causal_data(data_args, lm_args, topics, lambda _: tokenizer, lambda _: model, 0)
    return evaluate_causal(model, blocks[texts.held_out], batch_size) | {"split": texts.held_out}


if __name__ == "__main__":
    leave(guarded(main))
