"""What a pretrained start is worth: steps until a small target set is as well predicted as from scratch at the end.

    python benchmarks/transfer.py

A Llama of 0.9 million parameters is pretrained on Python's reference manual (372 kB). The target set are 300
docstrings of the standard library (30 kB), with 150 others to evaluate on. From scratch it trains for 300 steps on
them; its lowest evaluation loss is the mark. Then the pretrained model is fine-tuned for as many steps: all of it,
with a lower rate for lower layers, with gradual unfreezing, with its embeddings and lower half frozen, with LoRA. Each
has its best learning rate of three on the first seed. `ratio` is the steps that scratch needed to its mark over the
steps of full fine-tuning to the same mark (medians over three seeds).
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

from common import finish, say

from hfgen.data.stdlib import docstrings
from hfgen.launch import set_cpu_threads
from hfgen.recipes import load_recipe

SEEDS, STEPS, EVERY, DOCUMENTS = (1, 2, 3), 300, 5, 300
OVERRIDES = "{hidden_size: 128, intermediate_size: 384, num_hidden_layers: 4, num_attention_heads: 4}"
LOWER_HALF = ["*embed_tokens*", "model.layers.0.*", "model.layers.1.*"]
UNFREEZE = "{10: ['model.layers.2.*'], 20: ['model.layers.1.*'], 30: ['model.layers.0.*', '*embed_tokens*']}"
WAYS = {
    "scratch": [],
    "full": [],
    "layer-wise rates": ["--layerwise_lr_decay=0.8"],
    "gradual unfreezing": [f"--unfreeze_at={UNFREEZE}"],
    "lower half frozen": ["--freeze", *LOWER_HALF],
    "LoRA": ["--lora_r=8", "--lora_target_modules=all-linear"],
}
RATES = {"LoRA": (1e-3, 3e-3, 1e-2)}
USUAL_RATES = (3e-4, 1e-3, 3e-3)


def train(output_dir: Path, *flags: str) -> dict:
    """Runs the recipe; returns its trainer_state.json."""
    quiet = ["--disable_tqdm=true", "--save_strategy=no", "--logging_steps=1000"]
    load_recipe("pretrain_causal_lm").main([*flags, *quiet, f"--output_dir={output_dir}"])
    return json.loads((output_dir / "trainer_state.json").read_text())


def curve(folder: Path, base: Path, way: str, rate: float, seed: int) -> list[tuple[int, float]]:
    """(step, evaluation loss in nats a token) of one run."""
    flags = [f"--dataset_name={folder / 'docs'}", f"--cache_dir={folder / 'cache'}", f"--tokenizer_name={base}"]
    flags += ["--block_size=64", "--per_device_train_batch_size=8", f"--max_steps={STEPS}", f"--seed={seed}"]
    flags += [f"--learning_rate={rate}", "--warmup_steps=10", "--lr_scheduler_type=cosine", "--sample_by=line"]
    flags += ["--eval_strategy=steps", f"--eval_steps={EVERY}", *WAYS[way]]
    flags += [f"--config_overrides={OVERRIDES}"] if way == "scratch" else [f"--model_name_or_path={base}"]
    state = train(folder / f"{way.replace(' ', '-')}-{rate}-{seed}", *flags)
    return [(entry["step"], entry["eval_loss"]) for entry in state["log_history"] if "eval_loss" in entry]


def steps_to(found: list[tuple[int, float]], mark: float) -> int | None:
    return next((step for step, loss in found if loss <= mark), None)


def main() -> None:
    set_cpu_threads()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "docs").mkdir()
        texts = [text for _, text in docstrings()][:: max(1, len(docstrings()) // (2 * DOCUMENTS))][: 2 * DOCUMENTS]
        (folder / "docs" / "train.txt").write_text("\n".join(texts[::2]))
        (folder / "docs" / "valid.txt").write_text("\n".join(texts[1::4]))
        say("pretraining on the reference manual")
        base = folder / "base"
        pretraining = ["--config=stdlib", "--max_steps=600", "--eval_strategy=no", f"--cache_dir={folder / 'cache'}"]
        train(base, *pretraining, f"--config_overrides={OVERRIDES}")
        results = {}
        for way in WAYS:
            trials = {rate: curve(folder, base, way, rate, SEEDS[0]) for rate in RATES.get(way, USUAL_RATES)}
            rate = min(trials, key=lambda r: min(loss for _, loss in trials[r]))
            runs = [trials[rate], *(curve(folder, base, way, rate, seed) for seed in SEEDS[1:])]
            results[way] = {"rate": rate, "runs": runs}
            best = statistics.median(min(loss for _, loss in run) for run in runs)
            say(f"{way}: learning rate {rate:g}, best evaluation loss {best:.3f}")
        marks = [min(loss for _, loss in run) for run in results["scratch"]["runs"]]
        table = {}
        for way, result in results.items():
            steps = [steps_to(run, mark) for run, mark in zip(result["runs"], marks, strict=True)]
            reached = [step for step in steps if step is not None]
            table[way] = {
                "rate": result["rate"],
                "steps_to_mark": statistics.median(reached) if len(reached) == len(SEEDS) else None,
                "best_loss": round(statistics.median(min(loss for _, loss in run) for run in result["runs"]), 3),
            }
            say(f"{way}: {table[way]}")
    finish(ratio=table["scratch"]["steps_to_mark"] / table["full"]["steps_to_mark"], table=table)


if __name__ == "__main__":
    main()
