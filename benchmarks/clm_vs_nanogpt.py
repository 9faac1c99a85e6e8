"""Characters of tinyshakespeare at equal wall-clock: `pretrain_causal_lm` against nanoGPT's CPU recipe.

    python benchmarks/clm_vs_nanogpt.py [folder with tinyshakespeare.txt]

The peer is nanoGPT's train.py with its README's flags for a CPU (4 layers, 4 heads, 128 wide, blocks of 64, batches of
12, 2,000 steps, no dropout; seed 1337). Ours is recipes/configs/pretrain_causal_lm/tinyshakespeare.yaml with as many
steps as fit into the peer's seconds, both counted from the start of the process to its end: imports, tokenising and
evaluations included. Both have the first 90 % to train on and the last 10 % to be measured on, all of it, in
consecutive blocks of their own length. Ours predicts BPE tokens, the peer characters: what compares is the negative
log-likelihood of the same text, in nats a character; `ours_characters` is ours with one token a character, in as many
steps, for one seed. They take turns, one seed of ours a turn. `ours` and `peer` are medians of the validation loss
(target: ours at most 1.60); `seconds` is the peer's median.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import HERE, data_folder, finish, say
from peer import repository, venv

SEEDS = (1, 2)
# What our process does besides steps is timed in the trial; this share of the time is kept in hand.
MARGIN = 0.03
TRIAL_STEPS = 60
NANOGPT = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=100 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
).split()

# Runs in nanoGPT's folder after training: the loss over the whole validation split, in blocks of 64.
MEASURE = """
import numpy as np, torch
from model import GPT, GPTConfig
kept = torch.load("out-shakespeare-char/ckpt.pt", map_location="cpu", weights_only=False)
model = GPT(GPTConfig(**kept["model_args"]))
model.load_state_dict(kept["model"])
model.eval()
data = torch.from_numpy(np.fromfile("data/shakespeare_char/val.bin", dtype=np.uint16).astype(np.int64))
count = (len(data) - 1) // 64
x, y = data[: count * 64].view(count, 64), data[1 : count * 64 + 1].view(count, 64)
with torch.no_grad():
    losses = [model(a, b)[1].item() * len(a) for a, b in zip(x.split(128), y.split(128))]
print(sum(losses) / count)
"""


def timed(command: list, cwd: Path) -> tuple[float, str]:
    """(seconds, stdout) of a process with all cores."""
    env = {**os.environ, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    begin = time.perf_counter()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=cwd, env=env)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))[:200]} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - begin, done.stdout


def ours(file: Path, folder: Path, seed: int, steps: int, *more: str) -> tuple[float, float, float]:
    """(seconds of the process, seconds of its steps, validation loss in nats a character)."""
    run = folder / f"run-{seed}-{steps}"
    shutil.rmtree(run, ignore_errors=True)
    flags = ["--config=tinyshakespeare", f"--dataset_name={file}", f"--max_steps={steps}", f"--seed={seed}"]
    flags += [f"--output_dir={run}", f"--cache_dir={folder / 'cache'}", "--disable_tqdm=true", *more]
    shutil.rmtree(folder / "cache", ignore_errors=True)
    seconds, _ = timed([sys.executable, "-m", "hfgen", "train", "pretrain_causal_lm", *flags], HERE.parent)
    record = json.loads((run / "run.json").read_text())
    nats = record["metrics"]["validation_bits_per_character"] * math.log(2)
    return seconds, record["seconds"], nats


def main() -> None:
    file = data_folder("tinyshakespeare.txt")
    if file is None:
        raise SystemExit("this benchmark needs tinyshakespeare.txt")
    source = repository("nanoGPT", "https://github.com/karpathy/nanoGPT")
    python = source and venv("nanogpt", [f"torch=={torch.__version__.split('+')[0]}", "numpy", "requests"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        peers, seconds, losses = [], [], []
        if python:
            clone = folder / "nanoGPT"
            shutil.copytree(source, clone, ignore=shutil.ignore_patterns(".git", "assets"))
            shutil.copy(file, clone / "data" / "shakespeare_char" / "input.txt")
            timed([python, "data/shakespeare_char/prepare.py"], clone)
        say(f"a trial of {TRIAL_STEPS} steps")
        whole, stepping, _ = ours(file, folder, 0, TRIAL_STEPS)
        rate, besides = TRIAL_STEPS / stepping, whole - stepping
        say(f"  {rate:.1f} steps/s, {besides:.1f} s besides")
        for seed in SEEDS:
            if python:
                took, _ = timed([python, "train.py", *NANOGPT], clone)
                _, loss = timed([python, "-c", MEASURE], clone)
                peers.append(float(loss.split()[-1]))
                seconds.append(took)
                say(f"nanoGPT: {took:.1f} s, validation loss {peers[-1]:.4f}")
            else:
                say("nanoGPT did not run: ours trains for 143 s")
                seconds.append(143.0)
            steps = int((seconds[-1] * (1 - MARGIN) - besides) * rate)
            took, stepping, loss = ours(file, folder, seed, steps)
            losses.append(loss)
            say(f"hfgen, seed {seed}: {steps} steps, {took:.1f} s ({stepping:.1f} s of steps), loss {loss:.4f}")
            rate = steps / stepping
            if seed == SEEDS[0]:
                took, _, characters = ours(file, folder, seed, steps, "--tokenizer_type=char")
                say(f"hfgen, one token a character: {steps} steps, {took:.1f} s, loss {characters:.4f}")
    finish(
        ours=statistics.median(losses),
        ours_characters=characters,
        peer=statistics.median(peers) if peers else None,
        seconds=statistics.median(seconds),
        ours_runs=losses,
        peer_runs=peers,
        seeds=SEEDS,
    )


if __name__ == "__main__":
    main()
