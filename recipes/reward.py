"""accelerate launch recipes/reward.py --config recipes/configs/reward/stdlib.yaml

Reward model (TRL): pairs of a better and a worse answer, in text or chats; a score for any answer.

The same as `hfgen train reward --config stdlib`. On your own pairs (columns `chosen` and `rejected`, perhaps `prompt`)
and from a model: `--dataset_name pairs.jsonl --model_name_or_path my/model`; adapters alone: `--lora_r 16`. The run
folder loads with `AutoModelForSequenceClassification.from_pretrained`.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForSequenceClassification

from hfgen import text
from hfgen.config import parse_arguments
from hfgen.errors import guarded, leave
from hfgen.runs import read_json
from hfgen.text import preferences, reward

GROUPS = (*text.ARGUMENTS, reward.PairArguments, reward.RewardArguments)


def main(argv: list[str] | None = None) -> None:
    *arguments, config = parse_arguments(GROUPS, argv, "reward")
    model_args, transfer, data_args, pair_args, args = arguments
    text.begin_run(args)
    tokenizer = reward.given_tokenizer(model_args, args)
    texts = reward.load_pairs(data_args, pair_args, tokenizer)
    if tokenizer is None:
        tokenizer = reward.new_tokenizer(model_args, texts["train"], data_args.cache_dir)
    settings = reward.config_settings(args)
    model = text.build_model(model_args, AutoModelForSequenceClassification, tokenizer, "llama", transfer, **settings)
    model = text.with_adapters(model, transfer, "SEQ_CLS")
    options = text.trainer_options(model, args, transfer)
    trainer, dropped = reward.reward_trainer(model, tokenizer, args, texts, **options)
    text.train_text(trainer, transfer)
    metrics, samples = {}, []
    if trainer.accelerator.is_main_process and texts.held_out:
        model, tokenizer = text.load_folder(args.output_dir, AutoModelForSequenceClassification, num_labels=1)
        rows = texts[texts.held_out]
        measured = preferences.evaluate_pairs(model, tokenizer, rows, args.per_device_eval_batch_size, args.max_length)
        metrics = {f"{texts.held_out}_{name}": value for name, value in measured.items()}
        samples = preferences.score_examples(model, tokenizer, rows)
    text.finish_text_run(
        trainer,
        recipe="reward",
        config=config,
        argv=argv,
        arguments=tuple(arguments),
        metrics=metrics,
        dataset=text.describe(texts) | reward.describe_pairs(texts, dropped),
        auto_class="AutoModelForSequenceClassification",
        pipeline_tag="text-classification",
        samples=samples,
        load_options="num_labels=1",
    )


def generate(run_dir: Path, *, seed: int = 0, output: Path, prompt: str = "", response: str = ""):
    """Writes the reward of a response; nothing is drawn, so every seed gives the same."""
    model, tokenizer = text.load_published(run_dir, AutoModelForSequenceClassification, num_labels=1)
    chats = read_json(Path(run_dir) / "run.json", {})["dataset"].get("conversational", False)
    return text.write_samples([preferences.scored(model, tokenizer, prompt, response, chats)], output)


def evaluate(run_dir: Path, *, batch_size: int = 32) -> dict:
    """Pairwise accuracy, its interval, ties, margin and loss on the test split, or else the validation split."""
    kinds = (text.TextDataArguments, reward.PairArguments, reward.PairLimit)
    data_args, pair_args, limit = (text.saved_arguments(run_dir, kind) for kind in kinds)
    model, tokenizer = text.load_published(run_dir, AutoModelForSequenceClassification, num_labels=1)
    texts = reward.load_pairs(data_args, pair_args, tokenizer)
    rows = texts.splits.get(texts.held_out)
    return preferences.evaluate_pairs(model, tokenizer, rows, batch_size, limit.max_length) | {"split": texts.held_out}


if __name__ == "__main__":
    leave(guarded(main))
