"""A trainer's generator, looked at: its samples, their features, and the scores of both."""

from __future__ import annotations

import math
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import nn

from ..errors import BadInput
from ..evaluation import FeatureModel, evaluate_features, evaluate_samples, load_feature_model
from ..seeding import evaluation_generator
from .arguments import GANArguments
from .evaluation import evaluate_gan, to_unit
from .pipeline import GANPipeline


class SamplingMixin:
    """What a [`GANTrainer`], its monitors and its pictures ask of the generator that it trains.

    The data sets, the device and the average's weights are those of the [`Trainer`] that it is mixed into.
    """

    generator_network: nn.Module
    """(latents (B, latent_dim), class_labels (B,) or None) -> samples, without a wrapper."""
    gan_args: GANArguments
    latent_dim: int
    num_classes: int | None
    cache_dir: str | None

    def batch_samples(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The batch's samples as the networks see them, and its labels where they matter."""
        samples = batch["samples"] if "samples" in batch else torch.add(-1.0, batch["pixel_values"], alpha=2.0)
        if self.num_classes is None:
            return samples, None
        if "labels" not in batch:
            raise BadInput("--class_conditional needs labels, and this data has none: leave it out")
        return samples, batch["labels"]

    @torch.no_grad()
    def sample(
        self,
        count: int,
        generator: torch.Generator | None = None,
        noise: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Samples of the generator as it is now (its average inside [`published_weights`]); training does not notice.

        Args:
            count: how many.
            generator: of the latents and labels; any device. None only with `noise`.
            noise: latents (count, latent_dim) instead.
            class_labels: (count,) long; by default as frequent as in the training data: drawn, or with `noise` spread
                evenly over them.

        Returns:
            (count, C, H, W) in [-1, 1], or vectors (count, D), float32.
        """
        if noise is None:
            noise = torch.randn((count, self.latent_dim), generator=generator, device=generator.device)
        if class_labels is None:
            class_labels = self.sample_labels(count, generator)
        was_training = self.generator_network.training
        self.generator_network.eval()
        try:
            size = self.args.per_device_eval_batch_size
            chunks = noise.to(self.device).split(size)
            labels = [None] * len(chunks) if class_labels is None else class_labels.to(self.device).split(size)
            return torch.cat([self.generator_network(z, y).float() for z, y in zip(chunks, labels, strict=True)])
        finally:
            self.generator_network.train(was_training)

    def sample_labels(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor | None:
        """(count,) long, with the frequencies of the training data where they are known; None without classes."""
        if self.num_classes is None:
            return None
        known = getattr(self.train_dataset, "labels", None)
        known = torch.arange(self.num_classes) if known is None else torch.from_numpy(np.sort(known))
        if generator is None:
            return known[torch.linspace(0, len(known) - 1, count).round().long()]
        return known[torch.randint(len(known), (count,), generator=generator, device=generator.device).cpu()]

    def real_samples(self, count: int, seed: int = 0) -> torch.Tensor:
        """A fixed random choice of the training samples, without augmentation, in the family's range, on the device.

        Returns:
            (count, ...), fewer where there are fewer; of a stream, the first ones.
        """
        dataset = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        size = min(count, self.args.per_device_eval_batch_size)
        if hasattr(dataset, "micro_batches"):
            batches = dataset.micro_batches(seed=seed, epoch=0, skip=0, batch_size=size, rank=0, world_size=1)
            batches = islice(batches, math.ceil(count / size))
        else:
            chosen = np.random.default_rng([seed, 1]).permutation(len(dataset))[:count]
            batches = (
                self.data_collator(dataset.__getitems__(part))
                for part in np.split(chosen, range(size, len(chosen), size))
            )
        return torch.cat([self.batch_samples(self.prepare_batch(batch, None))[0] for batch in batches])[:count]

    @torch.no_grad()
    def embed(self, samples: torch.Tensor) -> torch.Tensor:
        """Where distances between samples mean something: vectors themselves; images' features, (N, d)."""
        if samples.ndim == 2:
            return samples
        size = self.args.per_device_eval_batch_size
        return torch.cat([self.feature_model(to_unit(part)) for part in samples.to(self.device).split(size)])

    @cached_property
    def feature_model(self) -> FeatureModel:
        """The embedding that `--feature_model` names (see [`hfgen.evaluation.load_feature_model`])."""
        dataset = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        options = {"cache_dir": self.cache_dir, "seed": self.args.seed, "device": self.device}
        return load_feature_model(self.gan_args.feature_model, dataset, **options)

    def dataset_metrics(self, dataset, metric_key_prefix: str) -> dict[str, float]:
        """FID and the others, of as many samples as the dataset has, at most `eval_samples`."""
        count = min(self.gan_args.eval_samples, len(dataset))
        rows = np.linspace(0, len(dataset) - 1, count).round().astype(int)
        batches = (self.data_collator(dataset.__getitems__(part)) for part in np.array_split(rows, -(-count // 256)))
        reals = torch.cat([self.batch_samples(self.prepare_batch(batch, None))[0] for batch in batches])
        with self.published_weights():
            samples = self.sample(count, evaluation_generator(self.args.seed))
        if samples.ndim == 2:
            metrics = evaluate_features(reals, samples)
        else:
            metrics = evaluate_samples(to_unit(samples), to_unit(reals), self.feature_model)
        return {f"{metric_key_prefix}_{name}": v for name, v in metrics.items() if not isinstance(v, str)}

    def test(self, dataset, metric_key_prefix: str = "test") -> dict[str, float | int | str]:
        """Measures what was published in `output_dir` with [`evaluate_gan`] (on the main process; {} on others)."""
        if not self.accelerator.is_main_process:
            return {}
        pipeline = GANPipeline.from_pretrained(self.args.output_dir).to(self.device)
        metrics = evaluate_gan(
            pipeline,
            dataset,
            self.feature_model,
            num_samples=self.gan_args.eval_samples,
            training=self.train_dataset,
            batch_size=self.args.per_device_eval_batch_size,
        )
        return {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
