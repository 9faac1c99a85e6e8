"""Small VAEs and their trainers on the embedded digits; also a script, for the test of two processes."""

from __future__ import annotations

import sys
from functools import cache

import numpy as np
import torch

from hfgen.arguments import TrainingArguments
from hfgen.data import ImageDataArguments, ImageDataset, ImageTransform, load_images
from hfgen.errors import guarded
from hfgen.vae import AutoencoderMLP, PosteriorCollapse, VAEArguments, VAETrainer, build_vae

MLP = {"latent_dim": 8, "hidden_sizes": [64, 64]}
CONV = {"architecture": "conv", "block_out_channels": [8, 16], "latent_channels": 2, "norm_num_groups": 4}


@cache
def digits(split: str = "train") -> ImageDataset:
    """8x8 grey digits."""
    return load_images(ImageDataArguments(dataset_name="digits"))[split]


def random_images(count: int, channels: int, height: int, width: int) -> ImageDataset:
    pixels = np.random.default_rng(0).integers(0, 256, (count, channels, height, width), dtype=np.uint8)
    return ImageDataset(pixels)


def vae_arguments(options: dict) -> VAEArguments:
    network = CONV if options.get("architecture") == "conv" else MLP
    return VAEArguments(**network | options)


def make_trainer(
    output_dir,
    *,
    steps: int = 30,
    seed: int = 0,
    train: ImageDataset | None = None,
    trainer: type[VAETrainer] = VAETrainer,
    training: dict | None = None,
    **options,
) -> VAETrainer:
    """A trainer of a small VAE with the given `VAEArguments`."""
    train = train or digits()
    vae_args = vae_arguments(options)
    torch.manual_seed(seed)
    vae = build_vae(vae_args, train.image_size, train.num_channels)
    settings = {
        "max_steps": steps,
        "seed": seed,
        "per_device_train_batch_size": 64,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 10,
        "disable_tqdm": True,
        "use_cpu": True,
        "monitor_steps": 10**6,
    }
    args = TrainingArguments(output_dir=str(output_dir), **settings | (training or {}))
    evaluation = digits("validation") if train.image_size == (8, 8) else train
    return trainer(vae, args, vae_args, train, evaluation, batch_transform=ImageTransform(None))


def monitor_of(trainer: VAETrainer) -> PosteriorCollapse:
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, PosteriorCollapse))


def linear_vae(sigma: float, exact_posterior: bool) -> tuple[AutoencoderMLP, torch.distributions.Distribution]:
    """A VAE whose decoder is linear, so that log p(y), y = 2 x - 1, is known (probabilistic PCA).

    Args:
        sigma: of the Gaussian likelihood.
        exact_posterior: the encoder gives the true posterior; otherwise one of other mean and width.

    Returns:
        the model, for 3x4 images and 3 latents, and the distribution of flattened y.
    """
    dice = torch.Generator().manual_seed(0)
    columns = torch.linalg.qr(torch.randn(12, 3, generator=dice)).Q
    lengths = torch.tensor([1.5, 0.8, 0.4])
    weight, bias = columns * lengths, 0.1 * torch.randn(12, generator=dice)
    # Orthogonal columns make the true posterior N((W^T W + sigma^2)^-1 W^T (y - b), sigma^2 (W^T W + sigma^2)^-1).
    precision = lengths.square() + sigma**2
    to_mean, logvar = weight.T / precision[:, None], (sigma**2 / precision).log()
    if not exact_posterior:
        to_mean, logvar = 0.8 * to_mean, logvar + 0.7
    vae = AutoencoderMLP(sample_size=[3, 4], in_channels=1, latent_channels=3, hidden_sizes=[]).eval()
    with torch.no_grad():
        vae.decoder[0].weight.copy_(weight)
        vae.decoder[0].bias.copy_(bias)
        vae.encoder[0].weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
        vae.encoder[0].bias.copy_(torch.cat([-to_mean @ bias, logvar]))
    covariance = weight @ weight.T + sigma**2 * torch.eye(12)
    return vae, torch.distributions.MultivariateNormal(bias.double(), covariance.double())


class SharedNoise(VAETrainer):
    """Noise that is a function of the image, so that every split of a step draws the same."""

    def compute_loss(self, batch):
        self.pixels = batch["pixel_values"]
        return super().compute_loss(batch)

    def draw_noise(self, kind, shape):
        draw = torch.rand if kind == "uniform" else torch.randn
        seeds = (self.pixels.flatten(1) * torch.arange(1, 65)).sum(1).mul(1000).long().tolist()
        each = [draw(shape[:-4] + shape[-3:], generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(each, dim=len(shape) - 4)


def main() -> None:
    """`helpers.py OUTPUT_DIR BATCH_SIZE`: six steps with optimal sigma and free bits."""
    trainer = make_trainer(
        sys.argv[1],
        steps=6,
        trainer=SharedNoise,
        training={"per_device_train_batch_size": int(sys.argv[2]), "logging_steps": 1, "monitor_steps": 2},
        likelihood="gaussian",
        free_bits=0.2,
    )
    trainer.train()
    assert trainer.world_size == 128 // int(sys.argv[2])


if __name__ == "__main__":
    sys.exit(guarded(main))
