"""hfgen.Trainer against a bare PyTorch loop: samples a second, the same MLP VAE (784-512-16), batch 128.

    python benchmarks/loop_overhead.py [folder with mnist/]

The bare loop has its images as float tensors in memory and does nothing but steps: no logs, no checks, no seeds.
Ours reads uint8 images, logs every 50 steps with the ELBO's parts, looks for NaN each step and has its alarm on. The
two take turns; `ratio` is the median of ours / bare over the turns (target: 0.95).
"""

from __future__ import annotations

import statistics
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from common import data_folder, finish, median_ratio, say
from torch import nn

from hfgen.arguments import TrainingArguments
from hfgen.data import ImageDataArguments, ImageDataset, ImageTransform, load_images
from hfgen.vae import VAEArguments, VAETrainer, build_vae

BATCH, STEPS, TURNS = 128, 469, 9


class BareVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 32))
        self.decoder = nn.Sequential(nn.Linear(16, 512), nn.ReLU(), nn.Linear(512, 784))

    def forward(self, x):
        mean, logvar = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        reconstruction = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(1)
        return (reconstruction + 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)).mean()


def bare_turn(images: torch.Tensor) -> float:
    model = BareVAE()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0, fused=True)
    order = torch.randperm(len(images))
    begin = time.perf_counter()
    for step in range(STEPS):
        start = step * BATCH % (len(images) - BATCH)
        loss = model(images[order[start : start + BATCH]])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return STEPS * BATCH / (time.perf_counter() - begin)


def our_turn(dataset: ImageDataset) -> float:
    vae_args = VAEArguments(latent_dim=16, hidden_sizes=[512])
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=f"{folder}/run",
            per_device_train_batch_size=BATCH,
            max_steps=STEPS,
            eval_strategy="no",
            save_strategy="no",
        )
        vae = build_vae(vae_args, dataset.image_size, dataset.num_channels)
        trainer = VAETrainer(vae, args, vae_args, dataset, batch_transform=ImageTransform())
        trainer.train()
    return trainer.state.log_history[-1]["train_samples_per_second"]


def main() -> None:
    folder = data_folder("mnist")
    if folder is not None:
        dataset = load_images(ImageDataArguments(dataset_name=str(folder), validation_fraction=0))["train"]
    else:
        say("random images stand in for MNIST: the work is the same")
        dataset = ImageDataset(np.random.default_rng(0).integers(0, 256, (60_000, 1, 28, 28), dtype=np.uint8))
    images = torch.from_numpy(np.asarray(dataset.images)).flatten(1).float() / 255
    ours, bare = [], []
    for turn in range(TURNS + 1):
        samples = bare_turn(images), our_turn(dataset)
        say(f"turn {turn}: bare {samples[0]:.0f}, hfgen {samples[1]:.0f} samples/s{' (warm-up)' if turn == 0 else ''}")
        if turn:
            bare.append(samples[0])
            ours.append(samples[1])
    finish(
        ratio=median_ratio(ours, bare),
        ours_samples_per_second=statistics.median(ours),
        bare_samples_per_second=statistics.median(bare),
    )


if __name__ == "__main__":
    main()
