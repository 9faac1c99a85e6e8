"""Test log-likelihood of MNIST, dynamically binarised, one stochastic layer of 50, after 20 minutes on this machine.

    python benchmarks/vae_mnist.py [folder with mnist/] [elbo|iwae]

Trains with configs/vae/mnist.yaml for as many steps as fit into 20 minutes (the evaluations along the way included),
on the ELBO and then on the importance-weighted bound of 50 samples (in batches of 32), and measures that bound with
K = 5000 on the 10,000 test images. Published, after days: 86.76 nats for the VAE, 84.78 for IWAE-50 (Burda et al.
2016); pythae's reproduction: 89.78. `ratio` is 90 over the nats of the ELBO's run (target: at least 1).
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time

import torch
from common import data_folder, finish, say

from hfgen.arguments import TrainingArguments
from hfgen.config import parse_arguments
from hfgen.data import ImageDataArguments, ImageTransform, load_images
from hfgen.vae import VAEArguments, VAEPipeline, VAETrainer, build_vae, evaluate_vae

SECONDS, IMPORTANCE_SAMPLES, EVALUATIONS = 1150, 5000, 10
# 50 samples of each image are 50 passes of the decoder: smaller batches make more steps in the same time.
IWAE = ["--objective=iwae", "--num_importance_samples=50", "--kl_warmup_steps=0", "--per_device_train_batch_size=32"]
OBJECTIVES = {"elbo": [], "iwae": IWAE}


def make_trainer(flags: list[str], images: dict, folder: str, steps: int) -> VAETrainer:
    groups = (VAEArguments, ImageDataArguments, TrainingArguments)
    vae_args, _, args, _ = parse_arguments(groups, ["--config=mnist", *flags], "vae")
    args = dataclasses.replace(
        args,
        output_dir=folder,
        num_train_epochs=1.0,
        max_steps=steps,
        save_strategy="no",
        logging_steps=max(1, steps // 50),
        eval_steps=max(1, steps // EVALUATIONS),
    )
    torch.manual_seed(args.seed)
    vae = build_vae(vae_args, (28, 28), 1)
    few = images["validation"].select(range(1000))
    return VAETrainer(vae, args, vae_args, images["train"], few, batch_transform=ImageTransform())


def run(objective: str, images: dict) -> dict:
    flags = OBJECTIVES[objective]
    with tempfile.TemporaryDirectory() as folder:
        trial = make_trainer(flags, images, f"{folder}/trial", 300)
        trial.train()
        rate = next(e for e in trial.state.log_history if "train_runtime" in e)["train_steps_per_second"]
        steps = int(rate * SECONDS * 0.97)
        say(f"{objective}: {rate:.1f} steps/s, so {steps} steps in {SECONDS / 60:.0f} minutes")
        begin = time.perf_counter()
        trainer = make_trainer(flags, images, f"{folder}/run", steps)
        trainer.train()
        seconds = time.perf_counter() - begin
        curve = [(e["step"], round(e["eval_elbo"], 2)) for e in trainer.state.log_history if "eval_elbo" in e]
        say(f"{objective}: {seconds:.0f} s; validation ELBO by step: {curve}")
        say(f"{objective}: measuring on the test images with K = {IMPORTANCE_SAMPLES}")
        found = evaluate_vae(
            VAEPipeline.from_pretrained(f"{folder}/run"),
            images["test"],
            num_importance_samples=IMPORTANCE_SAMPLES,
            progress=lambda done, total: say(f"  {done} of {total} images") if done % 2560 == 0 else None,
        )
    say(f"{objective}: {found}")
    kept = ("iw_bound", "elbo", "kl", "active_units")
    return {"seconds": seconds, "steps": steps, "curve": curve} | {name: found[name] for name in kept}


def main() -> None:
    folder = data_folder("mnist")
    if folder is None:
        raise SystemExit("this benchmark needs MNIST")
    images = load_images(ImageDataArguments(dataset_name=str(folder)))
    chosen = [word for word in sys.argv[1:] if word in OBJECTIVES] or list(OBJECTIVES)
    results = {objective: run(objective, images) for objective in chosen}
    first = results[chosen[0]]
    finish(ratio=90 / -first["iw_bound"], nats=-first["iw_bound"], **{f"{k}_run": v for k, v in results.items()})


if __name__ == "__main__":
    main()
