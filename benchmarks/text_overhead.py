"""What a text recipe costs over a bare loop, and how soon it makes its first step.

    python benchmarks/text_overhead.py [recipes] [embedded]

1. Samples a second of each text recipe against a bare loop: the same model, optimizer, schedule's rate, clipping and
   batches (collated before, in memory). They take turns; `ratio` is the smallest of the medians (target: 0.95).
   The recipe logs every 50 steps, looks for a loss that is not finite in each, and seeds each step. The models are 256
   wide with 4 layers; `embedded` takes those of the embedded configs, whose steps last 17 to 70 ms.
2. From text to the first optimizer step, in a fresh process with an empty cache: `hfgen train pretrain_causal_lm`
   against the way of transformers' run_clm.py (`datasets.map` tokenises, a second map cuts into blocks, Trainer), with
   the same tokenizer, model and 10 MB of text; `first_step_ratio` is the peer's seconds over ours (target: 1).
"""

from __future__ import annotations

import copy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from common import HERE, finish, median_ratio, say
from transformers import Trainer

from hfgen import text
from hfgen.data.stdlib import topics
from hfgen.launch import set_cpu_threads
from hfgen.recipes import load_recipe
from hfgen.text.resume import train_exactly

TURNS, STEPS, STEPS_EMBEDDED = 5, 12, 200
LLAMA = "{hidden_size: 256, intermediate_size: 768, num_hidden_layers: 4, num_attention_heads: 4}"
T5 = "{d_model: 256, d_kv: 64, d_ff: 768, num_layers: 4, num_heads: 4}"
VIT = "{patch_size: 2, hidden_size: 256, intermediate_size: 768, num_hidden_layers: 4, num_attention_heads: 4}"
GPT2 = "{n_embd: 256, n_layer: 4, n_head: 4}"
FLAGS = ["--eval_strategy=no", "--save_strategy=no", "--disable_tqdm=true", "--optim=adamw_torch"]
SIZES = {
    "pretrain_causal_lm": [f"--config_overrides={LLAMA}"],
    "pretrain_masked_lm": ["--config_overrides={hidden_size: 256, intermediate_size: 384, num_hidden_layers: 4}"],
    "sft": [f"--config_overrides={LLAMA}"],
    "reward": [f"--config_overrides={LLAMA}"],
    "translation": [f"--config_overrides={T5}"],
    "captioning": [f"--encoder_overrides={VIT}", f"--decoder_overrides={GPT2}"],
}


class Captured(Exception):
    """Carries the trainer that a recipe was about to train."""


def flags_of(recipe: str, embedded: bool) -> list[str]:
    """The embedded config, of its own size or of the one that is measured."""
    config = f"--config={'digits' if recipe == 'captioning' else 'stdlib'}"
    steps = STEPS_EMBEDDED if embedded else STEPS
    return [config, *([] if embedded else SIZES[recipe]), *FLAGS, f"--max_steps={steps}"]


def ready_trainer(recipe: str, flags: list[str], folder: str):
    """The recipe's trainer, with its data, model and callbacks, before it trains."""

    def capture(trainer, *_, **__):
        raise Captured(trainer)

    with mock.patch.object(text, "train_text", capture):
        try:
            load_recipe(recipe).main([*flags, f"--output_dir={folder}"])
        except Captured as captured:
            return captured.args[0]
    raise SystemExit(f"{recipe} trained past text.train_text")


def ours(recipe: str, flags: list[str]) -> tuple[float, list, torch.nn.Module, float, float, Trainer]:
    """(samples a second, the batches it saw, its untrained model, learning rate, clipping, the trainer)."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = ready_trainer(recipe, flags, f"{folder}/run")
        model = copy.deepcopy(trainer.model)
        batches, get = [], trainer.get_batch_samples

        def remember(*args):
            samples, count = get(*args)
            batches.append((samples, count))
            return samples, count

        trainer.get_batch_samples = remember
        train_exactly(trainer, None)
        rate = next(e for e in reversed(trainer.state.log_history) if "train_samples_per_second" in e)
        args = trainer.args
        return rate["train_samples_per_second"], batches, model, args.learning_rate, args.max_grad_norm, trainer


def bare(batches: list, model, learning_rate: float, clip: float, trainer) -> float:
    """The same steps without a trainer: its loss function, backward, clipping, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    model.train()
    begin = time.perf_counter()
    for micro_batches, count in batches:
        for batch in micro_batches:
            loss = trainer.compute_loss(model, batch, num_items_in_batch=count)
            loss.backward()
        if clip > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return len(batches) * trainer.args.train_batch_size / (time.perf_counter() - begin)


PEER = """
import os, sys, time
begin = time.perf_counter()
import torch
torch.set_num_threads(len(os.sched_getaffinity(0)))
from itertools import chain
import datasets, transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers import Trainer, TrainingArguments, default_data_collator
file, tokenizer_folder, overrides, output = sys.argv[1:5]
data = datasets.load_dataset("text", data_files={"train": file}, cache_dir=output + "/cache")
tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
import yaml
config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), **yaml.safe_load(overrides))
model = AutoModelForCausalLM.from_config(config)
tokenized = data.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=["text"], num_proc=PROCESSES)
def group(examples):
    joined = {k: list(chain(*examples[k])) for k in examples}
    total = len(joined["input_ids"]) // 256 * 256
    result = {k: [t[i : i + 256] for i in range(0, total, 256)] for k, t in joined.items()}
    result["labels"] = result["input_ids"].copy()
    return result
grouped = tokenized.map(group, batched=True, num_proc=PROCESSES)
args = TrainingArguments(output + "/run", per_device_train_batch_size=8, max_steps=1, report_to="none", use_cpu=True,
                         save_strategy="no")
Trainer(model, args, train_dataset=grouped["train"], processing_class=tokenizer,
        data_collator=default_data_collator).train()
print(time.perf_counter() - begin)
"""


def first_step(folder: Path) -> tuple[float, float]:
    """Seconds from the start of the process to the end of the first step: (ours, the peer's better setting)."""
    file = folder / "text.txt"
    if not file.exists():
        article = "\n".join(topics()["train"]["text"])
        file.write_text("".join(f"{i}\n{article}" for i in range(28)))
        load_recipe("pretrain_causal_lm").main(
            ["--max_steps=1", "--vocab_size=4096", "--eval_strategy=no", "--save_strategy=no", "--disable_tqdm=true"]
            + [f"--config_overrides={LLAMA}", f"--output_dir={folder / 'base'}", f"--cache_dir={folder / 'cache'}"]
        )
    results = []
    for name in ("ours", "one process", "two processes"):
        output = folder / name.replace(" ", "_")
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        if name == "ours":
            flags = [f"--dataset_name={file}", "--sample_by=line", f"--tokenizer_name={folder / 'base'}"]
            flags += ["--block_size=256", "--per_device_train_batch_size=8", "--max_steps=1", "--eval_strategy=no"]
            flags += ["--save_strategy=no", f"--config_overrides={LLAMA}", f"--cache_dir={output}"]
            flags += ["--validation_fraction=0", f"--output_dir={output / 'run'}", "--skip_bad_rows=true"]
            command = [sys.executable, "-m", "hfgen", "train", "pretrain_causal_lm", *flags]
        else:
            code = PEER.replace("PROCESSES", "None" if name == "one process" else "2")
            command = [sys.executable, "-c", code, file, folder / "base", LLAMA, output]
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
        results.append(time.perf_counter() - begin)
        say(f"  first step, {name}: {results[-1]:.1f} s")
    return results[0], min(results[1:])


def main() -> None:
    set_cpu_threads()
    embedded = "embedded" in sys.argv
    chosen = [word for word in sys.argv[1:] if word in SIZES] or list(SIZES)
    ratios = {}
    for recipe in chosen:
        fast, plain = [], []
        for turn in range(TURNS + 1):
            mine, batches, model, rate, clip, trainer = ours(recipe, flags_of(recipe, embedded))
            other = bare(batches, model, rate, clip, trainer)
            if turn:
                fast.append(mine)
                plain.append(other)
            say(f"{recipe}, turn {turn or 'to warm up'}: {mine:.1f}, bare {other:.1f} samples/s")
        ratios[recipe] = median_ratio(fast, plain)
    say("from 13 MB of text to the first step, three times")
    with tempfile.TemporaryDirectory() as folder:
        firsts = [first_step(Path(folder)) for _ in range(3)]
    finish(
        ratio=min(ratios.values()),
        ratios={name: round(value, 4) for name, value in ratios.items()},
        first_step_ratio=statistics.median(peer / mine for mine, peer in firsts),
        first_step_seconds=round(statistics.median(mine for mine, _ in firsts), 2),
    )


if __name__ == "__main__":
    main()
