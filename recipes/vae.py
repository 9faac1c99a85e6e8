"""accelerate launch recipes/vae.py --config recipes/configs/vae/digits.yaml

Variational autoencoder: images in, a decoder that turns Gaussian noise into new ones.

The same as `hfgen train vae --config digits`; flags override the YAML, and `hfgen train vae --help` lists them. On
your own pictures: `--dataset_name ./my_folder --resolution 64`. The run folder holds a `VAEPipeline`:
`VAEPipeline.from_pretrained(output_dir)(batch_size=16).images`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from hfgen.arguments import TrainingArguments
from hfgen.config import parse_arguments
from hfgen.data import AugmentationArguments, ImageDataArguments, ImageTransform, load_images
from hfgen.errors import guarded, leave
from hfgen.figures import write_images
from hfgen.lifecycle import begin_run, finish_run, load_published, saved_arguments
from hfgen.vae import VAEArguments, VAEPipeline, VAETrainer, build_vae, evaluate_vae, save_figures


def main(argv: list[str] | None = None) -> None:
    groups = (VAEArguments, ImageDataArguments, AugmentationArguments, TrainingArguments)
    *arguments, config = parse_arguments(groups, argv, "vae")
    vae_args, data_args, augmentation, args = arguments
    begin_run(args)
    images = load_images(data_args)
    train, validation = images["train"], images.get("validation")
    vae = build_vae(vae_args, train.image_size, train.num_channels)
    trainer = VAETrainer(vae, args, vae_args, train, validation, batch_transform=ImageTransform(augmentation))
    trainer.train()
    metrics = {}
    if trainer.accelerator.is_main_process:
        held_out = images.get("test", validation)
        if held_out is not None:
            metrics = trainer.test(held_out)
            save_figures(VAEPipeline.from_pretrained(args.output_dir), held_out, Path(args.output_dir))
    finish_run(
        trainer,
        recipe="vae",
        config=config,
        argv=argv,
        arguments=tuple(arguments),
        metrics=metrics,
        pipeline_class="VAEPipeline",
    )


def generate(
    run_dir: Path, *, num_images: int = 64, seed: int = 0, output: Path, temperature: float = 1.0
) -> list[Path]:
    """Samples; writes a grid and single PNGs."""
    pipeline = load_published(run_dir, VAEPipeline)
    generator = torch.Generator().manual_seed(seed)
    return write_images(pipeline(num_images, generator=generator, temperature=temperature).images, output)


def evaluate(run_dir: Path, *, num_importance_samples: int = 100, batch_size: int = 256, seed: int = 0) -> dict:
    """The test split's (or else the validation split's) bounds, reconstruction error and use of the latents."""
    images = load_images(saved_arguments(run_dir, ImageDataArguments))
    split = "test" if "test" in images else "validation"
    pipeline = load_published(run_dir, VAEPipeline)
    options = {"num_importance_samples": num_importance_samples, "batch_size": batch_size, "seed": seed}
    return evaluate_vae(pipeline, images[split], **options) | {"split": split}


if __name__ == "__main__":
    leave(guarded(main))
