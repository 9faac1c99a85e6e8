"""hfgen.Trainer against bare PyTorch loops: samples a second of an MLP VAE (784-512-16), batch 128.

    python benchmarks/loop_overhead.py [folder with mnist/]

The bare loops have their images as float tensors in memory and do nothing but steps: no logs, no checks, no seeds.
Ours reads uint8 images, logs every 50 steps with the ELBO's parts, looks for NaN each step and has its alarm on. They
take turns. `ratio` is the median, over the turns, of ours to a bare loop around the same model and loss functions: the
price of the loop (target: 0.95). `ratio_handwritten` is against a model of four `nn.Linear` written by hand: there the
price of AutoencoderKL's interface, of a clamped log variance and of the data format is in it too.
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
from hfgen.vae.losses import bernoulli_nll, gaussian_kl

BATCH, STEPS, TURNS = 128, 1500, 7


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


class SameVAE(nn.Module):
    """hfgen's own model and losses."""

    def __init__(self):
        super().__init__()
        self.vae = build_vae(VAEArguments(latent_dim=16, hidden_sizes=[512]), (28, 28), 1)

    def forward(self, x):
        x = x.unflatten(1, (1, 28, 28))
        posterior = self.vae.encode(2 * x - 1).latent_dist
        nll = bernoulli_nll(self.vae.decode(posterior.sample()).sample, x)
        return nll.mean() + gaussian_kl(posterior.mean, posterior.logvar).mean()


def bare_turn(model: nn.Module, images: torch.Tensor) -> float:
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
    images = torch.from_numpy(np.array(dataset.images)).flatten(1).float() / 255
    turns = []
    for turn in range(TURNS + 1):
        speeds = bare_turn(SameVAE(), images), our_turn(dataset), bare_turn(BareVAE(), images)
        say("turn {}: bare {:.0f}, hfgen {:.0f}, by hand {:.0f} samples/s".format(turn or "to warm up", *speeds))
        turns.append(speeds)
    bare, ours, handwritten = zip(*turns[1:], strict=True)
    finish(
        ratio=median_ratio(ours, bare),
        ratio_handwritten=median_ratio(ours, handwritten),
        ours_samples_per_second=statistics.median(ours),
        bare_samples_per_second=statistics.median(bare),
        handwritten_samples_per_second=statistics.median(handwritten),
    )


if __name__ == "__main__":
    main()
