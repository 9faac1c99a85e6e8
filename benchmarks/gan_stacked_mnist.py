"""Modes of Stacked MNIST that a GAN finds: three digits in the channels of an image, 1000 of them.

    python benchmarks/gan_stacked_mnist.py [folder with mnist/] [--option value ...]

Trains configs/gan/stacked_mnist.yaml to its end (with the recipe's options where some are given), and counts the
modes of 26,000 samples of the published average, a classifier of the ten digits seeing each channel; ten times along
the run, the last one at its end. KL is of the samples' modes from the training data's, as the same classifier sees
them. Published: DCGAN 99 modes, KL 3.40; PacDCGAN2 1000, 0.06 (Lin et al. 2018, table 2); R3GAN 1000, 0.029 (Huang et
al. 2024, table 2); real data 1000, 0.023. Target: `modes` 1000 and `kl` below 0.1, in less than 60 `minutes`.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time

import torch
from common import data_folder, finish, say, words_and_options
from transformers import TrainerCallback

from hfgen.config import parse_arguments
from hfgen.data import AugmentationArguments, ImageDataArguments, ImageTransform, load_images
from hfgen.evaluation import FeatureModel, classes, load_feature_model, mode_statistics
from hfgen.figures import to_bytes
from hfgen.gan import GANArguments, GANTrainer, GANTrainingArguments, build_gan
from hfgen.gan.evaluation import to_unit

SAMPLES, LOOKS = 26_000, 10


class Look(TrainerCallback):
    """Counts modes along the run."""

    def __init__(self, trainer: GANTrainer, classifier: FeatureModel, shares: torch.Tensor):
        self.trainer, self.classifier, self.shares, self.curve = trainer, classifier, shares, []
        self.begin = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % (state.max_steps // LOOKS) == 0:
            self.look()

    def look(self) -> dict:
        step = self.trainer.state.global_step
        with self.trainer.published_weights():
            samples = self.trainer.sample(SAMPLES, torch.Generator().manual_seed(step))
        found = mode_statistics(classes(self.classifier, to_bytes(to_unit(samples))), 1000, self.shares)
        seconds = time.perf_counter() - self.begin
        self.curve.append((step, found["modes_covered"], round(found["mode_kl"], 3), round(seconds)))
        say("step {}: {} modes, KL {}, {} s".format(*self.curve[-1]))
        return found


def make_trainer(options: list[str], images: dict, folder: str) -> GANTrainer:
    groups = (GANArguments, ImageDataArguments, AugmentationArguments, GANTrainingArguments)
    gan_args, _, augmentation, args, _ = parse_arguments(groups, ["--config=stacked_mnist", *options], "gan")
    # What monitors cost is gan_vs_bare.py's matter.
    args = dataclasses.replace(args, output_dir=folder, save_strategy="no", disable_tqdm=True, monitor_steps=10**9)
    torch.manual_seed(args.seed)
    networks = build_gan(gan_args, images["train"].image_size, 3)
    return GANTrainer(*networks, args, gan_args, images["train"], batch_transform=ImageTransform(augmentation))


def main() -> None:
    folder = data_folder("mnist")
    if folder is None:
        raise SystemExit("this benchmark needs MNIST")
    images = load_images(ImageDataArguments(dataset_name=str(folder), stack_channels=True))
    classifier = load_feature_model("auto", images["train"], seed=1)
    say(f"classifier: {classifier.name}")
    seen = classes(classifier, images["train"])
    shares = torch.bincount(seen, minlength=1000).double()
    real = mode_statistics(seen[:SAMPLES], 1000, shares)
    _, options = words_and_options()
    with tempfile.TemporaryDirectory() as temporary:
        trainer = make_trainer(options, images, temporary)
        look = Look(trainer, classifier, shares)
        trainer.add_callback(look)
        trainer.train()
    step, modes, kl, seconds = look.curve[-1]
    finish(
        modes=modes,
        kl=kl,
        minutes=seconds / 60,
        steps=step,
        curve=look.curve,
        seed=trainer.args.seed,
        options=options,
        real_modes=real["modes_covered"],
        real_kl=real["mode_kl"],
        samples=SAMPLES,
        feature_model=classifier.name,
    )


if __name__ == "__main__":
    main()
