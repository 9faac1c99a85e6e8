"""What GANTrainer costs over a bare loop with two optimizers: samples/s on MNIST-shaped images, monitors on.

    python benchmarks/gan_vs_bare.py [folder with mnist/]

The same networks, loss, penalties, optimizers and moving average in both, in turns. `ratio` is hfgen's samples/s over
that of the bare loop in a process of its own, as a user would write it (target: 0.95); `ratio_same_memory` over the
bare loop in hfgen's process, where it too profits from freed memory being kept (`keep_freed_memory`). What
the monitors' checks take is in both, their feature model is trained before.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from common import data_folder, finish, median_ratio, say

from hfgen.data import ImageDataArguments, ImageDataset, ImageTransform, load_images
from hfgen.ema import EMA
from hfgen.evaluation import load_feature_model
from hfgen.gan import GANArguments, GANTrainer, GANTrainingArguments, build_gan

BATCH, STEPS, TURNS, MONITOR_STEPS = 64, 300, 4, 100
OPTIONS = {"architecture": "dcgan", "block_out_channels": [64, 32]}


def bare_turn(images: torch.Tensor) -> float:
    gan_args = GANArguments(**OPTIONS)
    torch.manual_seed(0)
    generator, discriminator = build_gan(gan_args, tuple(images.shape[2:]), images.shape[1])
    weight, _ = gan_args.penalty_weights(images=True)
    options = {"lr": 2e-4, "betas": (0.0, 0.99), "weight_decay": 0.0, "fused": True}
    g_optimizer = torch.optim.AdamW(generator.parameters(), **options)
    d_optimizer = torch.optim.AdamW(discriminator.parameters(), **options)
    average = EMA(generator, 0.999)
    order = torch.randperm(len(images))
    begin = time.perf_counter()
    for step in range(STEPS):
        start = step * BATCH % (len(images) - BATCH)
        real = images[order[start : start + BATCH]].float() / 127.5 - 1
        with torch.no_grad():
            fake = generator(torch.randn(BATCH, gan_args.latent_dim))
        both = torch.cat([real, fake]).requires_grad_()
        real_logits, fake_logits = discriminator(both).chunk(2)
        (slope,) = torch.autograd.grad(real_logits.sum() + fake_logits.sum(), both, create_graph=True)
        penalty = slope.square().sum((1, 2, 3)).sum() / BATCH
        loss = F.softplus(fake_logits - real_logits).mean() + 0.5 * weight * penalty
        loss.backward()
        d_optimizer.step()
        d_optimizer.zero_grad(set_to_none=True)
        discriminator.requires_grad_(False)
        with torch.no_grad():
            real_logits = discriminator(real)
        fake_logits = discriminator(generator(torch.randn(BATCH, gan_args.latent_dim)))
        F.softplus(real_logits - fake_logits).mean().backward()
        g_optimizer.step()
        g_optimizer.zero_grad(set_to_none=True)
        discriminator.requires_grad_(True)
        average.step()
    return STEPS * BATCH / (time.perf_counter() - begin)


def our_turn(
    dataset: ImageDataset, features, network=OPTIONS, steps: int = STEPS, batch: int = BATCH, **training
) -> float:
    gan_args = GANArguments(**network)
    torch.manual_seed(0)
    networks = build_gan(gan_args, dataset.image_size, dataset.num_channels)
    with tempfile.TemporaryDirectory() as folder:
        args = GANTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch,
            max_steps=steps,
            save_strategy="no",
            monitor_steps=MONITOR_STEPS,
            disable_tqdm=True,
            **training,
        )
        trainer = GANTrainer(*networks, args, gan_args, dataset, batch_transform=ImageTransform())
        trainer.__dict__["feature_model"] = features
        trainer.train()
    return trainer.state.log_history[-1]["train_samples_per_second"]


def main() -> None:
    folder = data_folder("mnist")
    if folder is not None:
        dataset = load_images(ImageDataArguments(dataset_name=str(folder), validation_fraction=0))["train"]
    else:
        say("random images stand in for MNIST: the work is the same")
        dataset = ImageDataset(np.random.default_rng(0).integers(0, 256, (60_000, 1, 28, 28), dtype=np.uint8))
    images = torch.from_numpy(np.array(dataset.images[:10_000]))
    features = load_feature_model("auto", dataset)
    turns = []
    with multiprocessing.get_context("spawn").Pool(1) as other_process:
        for turn in range(TURNS + 1):
            alone = other_process.apply(bare_turn, (images,))
            speeds = alone, bare_turn(images), our_turn(dataset, features)
            say(
                "turn {}: bare alone {:.0f}, beside {:.0f}, hfgen {:.0f} samples/s".format(
                    turn or "to warm up", *speeds
                )
            )
            turns.append(speeds)
    alone, beside, ours = zip(*turns[1:], strict=True)
    finish(
        ratio=median_ratio(ours, alone),
        ratio_same_memory=median_ratio(ours, beside),
        ours_samples_per_second=statistics.median(ours),
        bare_samples_per_second=statistics.median(alone),
    )


if __name__ == "__main__":
    main()
