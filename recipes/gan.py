"""accelerate launch recipes/gan.py --config recipes/configs/gan/digits.yaml

Generative adversarial network: sharp images from one pass of a generator.

The same as `hfgen train gan --config digits`; flags override the YAML, and `hfgen train gan --help` lists them. On
your own pictures: `--config folder64 --dataset_name ./my_folder`. The run folder holds a `GANPipeline`:
`GANPipeline.from_pretrained(output_dir)(batch_size=16).images`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from hfgen.config import parse_arguments
from hfgen.data import AugmentationArguments, ImageDataArguments, ImageTransform, load_images
from hfgen.errors import guarded, leave
from hfgen.evaluation import load_feature_model
from hfgen.figures import write_images
from hfgen.gan import (
    GANArguments,
    GANPipeline,
    GANTrainer,
    GANTrainingArguments,
    build_gan,
    evaluate_gan,
    save_figures,
)
from hfgen.lifecycle import begin_run, finish_run, load_published, saved_arguments

KINDS = (ImageDataArguments, GANArguments, GANTrainingArguments)


def main(argv: list[str] | None = None) -> None:
    groups = (GANArguments, ImageDataArguments, AugmentationArguments, GANTrainingArguments)
    *arguments, config = parse_arguments(groups, argv, "gan")
    gan_args, data_args, augmentation, args = arguments
    begin_run(args)
    images = load_images(data_args)
    train, validation = images["train"], images.get("validation")
    networks = build_gan(gan_args, train.image_size, train.num_channels, getattr(train, "num_labels", None))
    options = {"batch_transform": ImageTransform(augmentation), "cache_dir": data_args.cache_dir}
    trainer = GANTrainer(*networks, args, gan_args, train, validation, **options)
    trainer.train()
    metrics = {}
    if trainer.accelerator.is_main_process:
        held_out = images.get("test", validation)
        metrics = trainer.test(held_out) if held_out is not None else {}
        pipeline = GANPipeline.from_pretrained(args.output_dir)
        save_figures(pipeline, train, Path(args.output_dir), trainer.feature_model, seed=args.seed)
    record = {"recipe": "gan", "config": config, "argv": argv, "arguments": tuple(arguments)}
    finish_run(trainer, **record, metrics=metrics, pipeline_class="GANPipeline")


def generate(
    run_dir: Path, *, num_images: int = 64, seed: int = 0, output: Path, class_label: str = "", truncation: float = 1.0
) -> list[Path]:
    """Samples, of the class that class_label names (by number or name) or of all in turn; a grid and single PNGs."""
    options = {"class_labels": class_label or None, "truncation": truncation}
    generator = torch.Generator().manual_seed(seed)
    images = load_published(run_dir, GANPipeline)(num_images, generator=generator, **options).images
    return write_images(images, output)


def evaluate(run_dir: Path, *, num_samples: int = 10_000, batch_size: int = 256, seed: int = 0) -> dict:
    """FID, KID, precision, recall, density and coverage against the test (or else the validation) split."""
    data_args, gan_args, args = (saved_arguments(run_dir, kind) for kind in KINDS)
    images = load_images(data_args)
    split = "test" if "test" in images else "validation"
    cache = {"cache_dir": data_args.cache_dir, "seed": args.seed}
    features = load_feature_model(gan_args.feature_model, images["train"], **cache)
    options = {"num_samples": num_samples, "batch_size": batch_size, "seed": seed, "training": images["train"]}
    return evaluate_gan(load_published(run_dir, GANPipeline), images[split], features, **options) | {"split": split}


if __name__ == "__main__":
    leave(guarded(main))
