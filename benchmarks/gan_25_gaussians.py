"""Modes found on a grid of 25 Gaussians (Lin et al. 2018, PacGAN, section 4.1), every loss, five seeds.

    python benchmarks/gan_25_gaussians.py [steps] [seeds]

5 x 5 centres on [-4, 4]^2, standard deviation 0.05; 2,500 samples of the trained generator's average. A sample is
good if it lies within three standard deviations of a centre, and a mode is found if a good sample lies there. Fully
connected networks of the same size for all losses, which differ in what their papers pair them with. Published (Lin
et al. 2018, table 1): GAN 17.3 modes of 25, PacGAN4 24.8. `modes` is the fewest that a seed of the default loss found
(target: 25), `good` its mean share of good samples.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time

import numpy as np
import torch
from common import finish, say

from hfgen.evaluation import near_centres
from hfgen.gan import GANArguments, GANTrainer, GANTrainingArguments, build_gan

STEPS, SEEDS, SAMPLES, DEVIATION = 10_000, 5, 2_500, 0.05
CENTRES = torch.cartesian_prod(torch.arange(-4.0, 5.0, 2.0), torch.arange(-4.0, 5.0, 2.0))
NETWORKS = {"architecture": "mlp", "hidden_sizes": [128, 128, 128], "latent_dim": 2}
LOSSES = {
    "relativistic": {"penalty_decay": 0.01},
    "non_saturating": {},
    "non_saturating, packs of 2": {"packing": 2},
    "minimax": {},
    "hinge": {"spectral_norm": "discriminator"},
    "least_squares": {},
    "wasserstein": {"gradient_penalty": "one_centered", "gradient_penalty_weight": 0.1, "d_steps": 5},
}


class Grid:
    """100,000 points of the mixture."""

    name = fingerprint = "25 Gaussians"

    def __init__(self):
        dice = np.random.default_rng(0)
        chosen = CENTRES.numpy()[dice.integers(0, 25, 100_000)]
        self.points = (chosen + DEVIATION * dice.normal(size=chosen.shape)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.points)

    def __getitems__(self, indices) -> dict[str, torch.Tensor]:
        return {"samples": torch.from_numpy(self.points[np.asarray(indices)])}


def run(name: str, seed: int, steps: int, data: Grid) -> tuple[int, float, float]:
    options = {"loss": name.split(",")[0]} | LOSSES[name] | NETWORKS
    gan_args = GANArguments(**options)
    with tempfile.TemporaryDirectory() as folder:
        args = GANTrainingArguments(
            output_dir=folder,
            seed=seed,
            max_steps=steps // gan_args.d_steps,  # as many real samples for each loss
            per_device_train_batch_size=256,
            learning_rate=3e-3 if name == "relativistic" else 1e-3,
            lr_scheduler_type="cosine",
            ema_decay=0.99,
            save_strategy="no",
            logging_steps=max(1, steps // 10),
            disable_tqdm=True,
            monitor_steps=10**9,
        )
        torch.manual_seed(seed)
        trainer = GANTrainer(*build_gan(gan_args, None, 2), args, gan_args, data)
        trainer.log = lambda *_, **__: None
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
        with trainer.published_weights():
            found = near_centres(trainer.sample(SAMPLES, torch.Generator().manual_seed(seed)), CENTRES, DEVIATION)
    return found["modes_covered"], found["good_samples"], seconds


def main() -> None:
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    steps, seeds = (numbers + [STEPS, SEEDS][len(numbers) :])[:2]
    data, table, begin = Grid(), {}, time.perf_counter()
    for name in LOSSES:
        results = []
        for seed in range(seeds):
            results.append(run(name, seed, steps, data))
            say("{}, seed {}: {} modes, {:.1%} good, {:.0f} s".format(name, seed, *results[-1]))
        modes, good, seconds = zip(*results, strict=True)
        table[name] = {
            "modes": list(modes),
            "good": round(statistics.mean(good), 4),
            "seconds": round(statistics.mean(seconds), 1),
        }
    default = table["relativistic"]
    finish(
        modes=min(default["modes"]),
        good=default["good"],
        steps=steps,
        seeds=seeds,
        minutes=(time.perf_counter() - begin) / 60,
        table=table,
    )


if __name__ == "__main__":
    main()
