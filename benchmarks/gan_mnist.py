"""A conditional GAN of MNIST: its FID, and what a classifier learns from its samples alone.

    python benchmarks/gan_mnist.py [folder with mnist/] [seeds] [--option value ...]

Trains configs/gan/mnist_conditional.yaml (with the recipe's options where some are given), measures the published
generator against the 10,000 test images (FID, KID, precision, recall, density, coverage, in the embedding of a
classifier trained on the training images), then trains another classifier on 10,000 samples, 1,000 of each digit, and
nothing else; `accuracy` is its share of real test images that are right (target: 0.95), `validation_accuracy` the same
of held-out training images, for choosing options, and `real_accuracy` that of one trained on 10,000 real images in the
same way. Means over the seeds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import data_folder, finish, say, words_and_options

from hfgen.data import ImageDataArguments, load_images
from hfgen.evaluation import FeatureModel, classes, load_feature_model
from hfgen.evaluation.convnet import FEATURES, ConvFeatures
from hfgen.evaluation.pretraining import train_classifier
from hfgen.figures import to_bytes
from hfgen.gan import GANPipeline, evaluate_gan
from hfgen.recipes import load_recipe

SAMPLES, DIGITS = 10_000, 10


def taught(images: torch.Tensor, labels: torch.Tensor, splits: list, seed: int) -> list[float]:
    """The accuracy on each of the splits of a classifier that saw only these uint8 images."""
    torch.manual_seed(seed)
    network = ConvFeatures(*images.shape[1:], num_classes=DIGITS)
    train_classifier(network, images, labels, torch.Generator().manual_seed(seed))
    model = FeatureModel(network, "taught", FEATURES, images.shape[1], DIGITS)
    return [(classes(model, split).numpy() == split.labels).mean().item() for split in splits]


def run(seed: int, options: list[str], folder: Path, images: dict, features) -> dict:
    with tempfile.TemporaryDirectory() as temporary:
        flags = ["--config=mnist_conditional", f"--dataset_name={folder}", f"--output_dir={temporary}/run"]
        begin = time.perf_counter()
        flags += [f"--seed={seed}", "--save_strategy=no", "--disable_tqdm=true", *options]
        load_recipe("gan").main(flags)
        seconds = time.perf_counter() - begin
        pipeline = GANPipeline.from_pretrained(f"{temporary}/run")
        figures = evaluate_gan(pipeline, images["test"], features, num_samples=SAMPLES, seed=seed)
        labels = torch.arange(SAMPLES) % DIGITS
        generator = torch.Generator().manual_seed(1000 + seed)
        how = {"generator": generator, "output_type": "pt"}
        parts = [pipeline(500, class_labels=part, **how).images for part in labels.split(500)]
        samples = to_bytes(torch.cat(parts))
    splits = [images["test"], images["validation"]]
    figures["accuracy"], figures["validation_accuracy"] = taught(samples, labels, splits, seed)
    figures["seconds"] = seconds
    say(f"seed {seed}: {figures}")
    return figures


def main() -> None:
    folder = data_folder("mnist")
    if folder is None:
        raise SystemExit("this benchmark needs MNIST")
    words, options = words_and_options()
    seeds = next((int(word) for word in words if word.isdigit()), 1)
    images = load_images(ImageDataArguments(dataset_name=str(folder)))
    features = load_feature_model("auto", images["train"])
    few = images["train"].__getitems__(range(SAMPLES))
    (real,) = taught(few["pixel_values"], few["labels"], [images["test"]], 0)
    say(f"taught by {SAMPLES} real images: {real:.4f}")
    results = [run(seed, options, folder, images, features) for seed in range(seeds)]
    named = ("accuracy", "validation_accuracy", "fid", "kid", "precision", "recall", "density", "coverage", "seconds")
    means = {name: statistics.mean(result[name] for result in results) for name in named}
    finish(**means, seeds=seeds, options=options, real_accuracy=real, feature_model=features.name, num_samples=SAMPLES)


if __name__ == "__main__":
    main()
