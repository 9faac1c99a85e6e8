"""Small GANs and their trainers on the embedded digits; also a script, for tests of processes."""

from __future__ import annotations

import json
import sys
import time
from functools import cache
from pathlib import Path

import torch
from processes import own_flags

from hfgen.config import parse_arguments
from hfgen.data import ImageDataArguments, ImageDataset, ImageTransform, load_images
from hfgen.errors import guarded, leave
from hfgen.gan import GANArguments, GANTrainer, GANTrainingArguments, build_gan

NETWORKS = {
    "mlp": {"hidden_sizes": [24, 16]},
    "dcgan": {"block_out_channels": [8]},
    "resnet": {"block_out_channels": [8, 8]},
}


@cache
def digits(split: str = "train") -> ImageDataset:
    """8x8 grey digits."""
    return load_images(ImageDataArguments(dataset_name="digits"))[split]


class SmallTrainer(GANTrainer):
    """Compares images by their pixels, which takes no feature model; `delay` seconds a step."""

    delay = 0.0

    def embed(self, samples):
        return samples.flatten(1)

    def training_step(self, batches):
        time.sleep(self.delay)
        return super().training_step(batches)


class SharedNoise(SmallTrainer):
    """Noise that is a function of the real sample, so that every split of a step draws the same."""

    def _discriminator_loss(self, real, labels):
        self.real = real
        return super()._discriminator_loss(real, labels)

    def _generator_loss(self, real, labels):
        self.real = real
        return super()._generator_loss(real, labels)

    def draw_noise(self, kind, shape):
        draw = torch.rand if kind == "position" else torch.randn
        seeds = (self.real.flatten(1) * torch.arange(1, 65)).sum(1).mul(1000).long().tolist()
        return torch.stack([draw(shape[1:], generator=torch.Generator().manual_seed(s % 2**40)) for s in seeds])


def make_trainer(
    output_dir,
    *,
    trainer: type[GANTrainer] = SmallTrainer,
    training: dict | None = None,
    train=None,
    evaluation=None,
    **options,
) -> GANTrainer:
    """A trainer of small networks with the given `GANArguments`."""
    train = train or digits()
    architecture = options.setdefault("architecture", "mlp")
    gan_args = GANArguments(**NETWORKS[architecture] | {"latent_dim": 6} | options)
    settings = {
        "max_steps": 6,
        "seed": 0,
        "per_device_train_batch_size": 16,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "monitor_steps": 10**6,
    }
    args = GANTrainingArguments(output_dir=str(output_dir), **settings | (training or {}))
    torch.manual_seed(args.seed)
    networks = build_gan(gan_args, train.image_size, train.num_channels, train.num_labels)
    return trainer(*networks, args, gan_args, train, evaluation, batch_transform=ImageTransform(None))


def logged(trainer: GANTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def main() -> None:
    """Trains by flags; `--delay=SECONDS` a step, `--shared_noise=1`."""
    own, argv = own_flags(sys.argv[1:], {"--delay": 0.0, "--shared_noise": 0.0})
    gan_args, args, _ = parse_arguments((GANArguments, GANTrainingArguments), argv, "gan")
    SmallTrainer.delay = own["--delay"]
    torch.manual_seed(args.seed)
    data = digits()
    networks = build_gan(gan_args, data.image_size, data.num_channels, data.num_labels)
    kind = SharedNoise if own["--shared_noise"] else SmallTrainer
    trainer = kind(*networks, args, gan_args, data, digits("validation"), batch_transform=ImageTransform(None))
    trainer.train()
    if trainer.rank == 0:
        history = list(trainer.history)
        (Path(args.output_dir) / "end.json").write_text(json.dumps({"world": trainer.world_size, "history": history}))


if __name__ == "__main__":
    leave(guarded(main))
