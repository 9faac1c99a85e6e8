"""A real kill -9, in a process of its own or two: the same command again ends with the weights of an untouched run."""

import json
import random

import pytest
from processes import kill_after, run, start
from text.recipe_runs import same, weights

from hfgen.config import recipes_dir

SIZES = "hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 2"
LLAMA = f"{{{SIZES}, attention_dropout: 0.1}}"
COMMON = [
    "--max_train_samples=200",
    "--max_eval_samples=4",
    "--max_steps=200",
    "--save_steps=10",
    "--logging_steps=9",
    "--eval_strategy=no",
    "--disable_tqdm=true",
]
# What each draws at random besides the order: dropout, masks, rotations, places in packs.
RECIPES = {
    "pretrain_causal_lm": [f"--config_overrides={LLAMA}", "--block_size=32", "--max_train_samples=3"],
    "pretrain_masked_lm": [
        f"--config_overrides={{{SIZES}}}",
        "--block_size=32",
        "--whole_word_masking=true",
    ],
    "sft": [f"--config_overrides={LLAMA}", "--max_length=64", "--packing=true"],
    "reward": [f"--config_overrides={LLAMA}", "--max_length=96", "--disable_dropout=false"],
    "translation": [
        "--config_overrides={d_model: 32, d_kv: 16, d_ff: 64, num_layers: 1, num_heads: 2, dropout_rate: 0.1}",
        "--label_smoothing_factor=0.1",
    ],
    "captioning": [
        "--random_rotation=20",
        "--decoder_overrides={n_embd: 64, n_layer: 1, n_head: 2, resid_pdrop: 0.2}",
    ],
}
QUICK = ("pretrain_causal_lm", 2)
CASES = [
    pytest.param(recipe, processes, marks=[] if (recipe, processes) == QUICK else pytest.mark.slow)
    for recipe in RECIPES
    for processes in (1, 2)
]


@pytest.mark.parametrize(("recipe", "processes"), CASES)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, recipe, processes):
    config = "digits" if recipe == "captioning" else "stdlib"
    command = [str(recipes_dir() / f"{recipe}.py"), f"--config={config}", *COMMON, *RECIPES[recipe]]
    command.append(f"--cache_dir={tmp_path / 'cache'}")
    on_cpu = {"ACCELERATE_USE_CPU": "true"}
    whole = [*command, f"--output_dir={tmp_path / 'whole'}"]
    cut = [*command, f"--output_dir={tmp_path / 'cut'}", "--resume_from_checkpoint=true"]

    run(processes, *whole, timeout=300, **on_cpu)
    kill_after(start(processes, *cut, **on_cpu), tmp_path / "cut", random.Random(processes).uniform(0, 0.3))
    assert not (tmp_path / "cut" / "run.json").exists(), "the run ended before it was killed"
    run(processes, *cut, timeout=300, **on_cpu)
    facts = json.loads((tmp_path / "cut" / "run.json").read_text())
    assert facts["num_processes"] == processes
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
