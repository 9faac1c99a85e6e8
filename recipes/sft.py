"""accelerate launch recipes/sft.py --config recipes/configs/sft/stdlib.yaml

Supervised fine-tuning (TRL): prompts and answers, or whole chats; full, LoRA or QLoRA, packed or not.

The same as `hfgen train sft --config stdlib`. On your own rows (columns `prompt` and `completion`, or `messages`) and
from a model: `--dataset_name my.jsonl --model_name_or_path my/model`; adapters alone: `--lora_r 16`, merged into the
model at the end with `--merge_adapter true`. The run folder loads with `AutoModelForCausalLM.from_pretrained`.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM

from hfgen import text
from hfgen.config import parse_arguments
from hfgen.errors import guarded, leave
from hfgen.text import answers, sft

GROUPS = (*text.ARGUMENTS, sft.ChatArguments, sft.SFTArguments)


def main(argv: list[str] | None = None) -> None:
    *arguments, config = parse_arguments(GROUPS, argv, "sft")
    model_args, transfer, data_args, chat_args, args = arguments
    text.begin_run(args)
    tokenizer = sft.given_tokenizer(model_args, args, transfer)
    texts = sft.load_chats(data_args, chat_args, tokenizer)
    if tokenizer is None:
        columns = tuple(texts["train"].column_names)
        tokenizer = text.make_tokenizer(model_args, "chat", texts["train"], columns, data_args.cache_dir)
    settings = {"max_position_embeddings": args.max_length} if args.max_length else {}
    model = text.build_model(model_args, AutoModelForCausalLM, tokenizer, "llama", transfer, **settings)
    model = text.with_adapters(model, transfer, "CAUSAL_LM")
    trainer = sft.sft_trainer(model, tokenizer, args, texts, **text.trainer_options(model, args, transfer))
    text.train_text(trainer, transfer)
    metrics, samples = {}, []
    if trainer.accelerator.is_main_process and texts.held_out:
        model, tokenizer = text.load_folder(args.output_dir, AutoModelForCausalLM)
        rows = texts[texts.held_out]
        measured = answers.evaluate_answers(model, tokenizer, rows, args.per_device_eval_batch_size, args.max_length)
        metrics = {f"{texts.held_out}_{name}": value for name, value in measured.items()}
        samples = answers.sample_answers(model, tokenizer, rows)
    text.finish_text_run(
        trainer,
        recipe="sft",
        config=config,
        argv=argv,
        arguments=tuple(arguments),
        metrics=metrics,
        dataset=text.describe(texts),
        auto_class="AutoModelForCausalLM",
        pipeline_tag="text-generation",
        samples=samples,
    )


def generate(run_dir: Path, *, seed: int = 0, output: Path, prompt: str = sft.ASKED, num_samples: int = 4, **sampling):
    """Writes answers to a prompt."""
    model, tokenizer = text.load_published(run_dir, AutoModelForCausalLM)
    chat = text.saved_arguments(run_dir, sft.ChatArguments).renders(tokenizer)
    prompts = [answers.render_prompt(tokenizer, prompt, chat)] * num_samples
    made = text.continue_texts(model, tokenizer, prompts, seed=seed, **sampling)
    return text.write_samples([{"prompt": prompt, "answer": one.strip()} for one in made], output)


def evaluate(run_dir: Path, *, batch_size: int = 8) -> dict:
    """Loss, perplexity and accuracy of the answers' tokens on the test split, or else the validation split."""
    kinds = (text.TextDataArguments, sft.ChatArguments, sft.RowLimit)
    data_args, chat_args, limit = (text.saved_arguments(run_dir, kind) for kind in kinds)
    model, tokenizer = text.load_published(run_dir, AutoModelForCausalLM)
    texts = sft.load_chats(data_args, chat_args, tokenizer)
    rows = texts.splits.get(texts.held_out)
    return answers.evaluate_answers(model, tokenizer, rows, batch_size, limit.max_length) | {"split": texts.held_out}


if __name__ == "__main__":
    leave(guarded(main))
