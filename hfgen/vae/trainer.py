"""Training a variational autoencoder on the ELBO or the importance-weighted bound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers.models.modeling_utils import ModelMixin

from ..arguments import TrainingArguments
from ..seeding import evaluation_generator
from ..spectral import plain_state_dict
from ..trainer import Trainer
from .arguments import VAEArguments
from .build import pretrained_scale
from .evaluation import ACTIVE_VARIANCE, evaluate_vae
from .likelihoods import binarize
from .losses import (
    bits_per_dim,
    free_bits_kl,
    gaussian_kl_per_dimension,
    iwae_bound,
    kl_weight,
    log_importance_weights,
    optimal_log_sigma,
    squared_error,
)
from .models import latent_shape
from .module import VAEModule, VAEOutput
from .monitors import PosteriorCollapse
from .pipeline import VAEPipeline

# Training images from which a model's scaling factor and optimal sigma are measured when it is saved.
EXPORT_IMAGES = 2048


class VAETrainer(Trainer):
    """Trains an `AutoencoderMLP` or diffusers' `AutoencoderKL`, and publishes a [`VAEPipeline`].

    Whatever the objective weighs, it logs the ELBO at beta = 1 and its parts: `elbo` = -(`reconstruction` + `kl`), in
    nats an image; `bits_per_dim` where the likelihood is a probability mass; `sigma` or `scale` where it has one.
    Evaluations add `active_units`; their `loss` has the KL's final weight, also during its warm-up.

    Args:
        model: the VAE, from [`build_vae`].
        args: see [`TrainingArguments`].
        vae_args: see [`VAEArguments`].
        train_dataset, eval_dataset, **options: as for [`Trainer`]; a batch holds `pixel_values`, (B, C, H, W) in
            [0, 1] once `batch_transform` has seen it.
    """

    def __init__(
        self,
        model: ModelMixin,
        args: TrainingArguments,
        vae_args: VAEArguments,
        train_dataset=None,
        eval_dataset=None,
        **options,
    ):
        self.vae_args = vae_args
        self.module = VAEModule(model, vae_args.likelihood, vae_args.scale, pretrained_scale(vae_args))
        self.latent_shape = latent_shape(model)
        self._moments: list[torch.Tensor] = []
        super().__init__(self.module, args, train_dataset, eval_dataset, **options)
        self.add_callback(PosteriorCollapse(self))

    def draw_noise(self, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
        """All the noise of a step: `uniform` in [0, 1) for dynamic binarisation, `normal` for the latents."""
        draw = torch.rand if kind == "uniform" else torch.randn
        return draw(shape, generator=self.generator, device=self.accelerator.device)

    def compute_loss(self, batch: dict) -> dict[str, torch.Tensor]:
        """The objective on a batch of `pixel_values` (B, C, H, W) in [0, 1], and the ELBO's parts."""
        args = self.vae_args
        images, noise, out = self._forward(batch)
        log_scale = out.log_scale
        if self.module.scale_mode == "optimal":
            mse = self._mean_over_ranks_of(squared_error(out.output.detach(), images))
            self.module.update_mse(mse)
            log_scale = optimal_log_sigma(mse, self.module.likelihood.minimum_log_scale)
        weight = kl_weight(self.state.global_step, args.beta, args.kl_warmup_steps)
        losses = self._losses(images, noise, out, log_scale, weight)
        if args.kl_warmup_steps > 0:
            losses["kl_weight"] = torch.tensor(weight, device=images.device)
        return losses

    @torch.no_grad()
    def evaluation_step(self, batch: dict) -> dict[str, torch.Tensor]:
        """As [`compute_loss`], with the scale found in training; remembers what [`dataset_metrics`] needs."""
        images, noise, out = self._forward(batch)
        mean = out.mean.flatten(1).double()
        self._moments.append(torch.stack([torch.ones_like(mean[0]) * len(mean), mean.sum(0), mean.square().sum(0)]))
        return self._losses(images, noise, out, out.log_scale, self.vae_args.beta)

    def dataset_metrics(self, dataset, metric_key_prefix: str) -> dict[str, float]:
        """`active_units` (Burda et al. 2016) over the evaluation that just ended."""
        moments = torch.stack(self._moments).sum(0)
        self._moments.clear()
        if self.world_size > 1:
            moments = self.accelerator.reduce(moments, "sum")
        count, total, squares = moments
        variance = squares / count - (total / count).square()
        return {f"{metric_key_prefix}_active_units": int((variance > ACTIVE_VARIANCE).sum())}

    def _forward(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor, VAEOutput]:
        images = batch["pixel_values"]
        mode = self.vae_args.binarization
        if mode != "none":
            images = binarize(images, mode, self.draw_noise("uniform", images.shape) if mode == "dynamic" else None)
        noise = self.draw_noise("normal", (self.vae_args.num_importance_samples, len(images), *self.latent_shape))
        return images, noise, self.model(images, noise)

    def _losses(
        self,
        images: torch.Tensor,
        noise: torch.Tensor,
        out: VAEOutput,
        log_scale: torch.Tensor | None,
        weight: float,
    ) -> dict[str, torch.Tensor]:
        args, likelihood = self.vae_args, self.module.likelihood
        nll = likelihood.nll(out.output, images, log_scale)
        kl_per_dimension = gaussian_kl_per_dimension(out.mean, out.logvar)
        reconstruction, kl = nll.mean(), kl_per_dimension.sum(1).mean()
        parts = {"reconstruction": reconstruction.detach(), "kl": kl.detach()}
        metrics = {"elbo": -(parts["reconstruction"] + parts["kl"]), **parts}
        if args.objective == "iwae":
            loss = -iwae_bound(log_importance_weights(nll, noise, out.latents, out.logvar)).mean()
            metrics["iw_bound"] = -loss.detach()
        elif args.free_bits > 0:
            batch_mean = self._mean_over_ranks_of(kl_per_dimension.detach().mean(0))
            loss = reconstruction + weight * free_bits_kl(kl_per_dimension, args.free_bits, batch_mean)
        else:
            loss = torch.add(reconstruction, kl, alpha=weight)
        if likelihood.has_bits_per_dim(args.binarization):
            metrics["bits_per_dim"] = bits_per_dim(metrics["elbo"], images[0].numel())
        if likelihood.scale is not None:
            metrics[likelihood.scale] = log_scale.exp()
        return {"loss": loss, **metrics}

    def _mean_over_ranks_of(self, value: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(value, "mean") if self.world_size > 1 else value

    @torch.no_grad()
    def export(self, model: VAEModule, directory: Path) -> None:
        """Writes a [`VAEPipeline`] whose VAE is of a stock class, with `scaling_factor` = 1 / std of its latents."""
        with torch.device("meta"):
            vae = type(model.vae).from_config(model.vae.config)
        vae.load_state_dict(plain_state_dict(model.vae.eval()), assign=True)
        deviation, mse = self._measure(vae.eval().to(self.accelerator.device))
        vae.register_to_config(scaling_factor=1.0 / max(deviation, 1e-6))
        log_scale = model.log_scale
        if model.scale_mode == "optimal":
            log_scale = optimal_log_sigma(torch.tensor(mse), model.likelihood.minimum_log_scale)
        scale = None if log_scale is None else log_scale.exp().item()
        VAEPipeline(vae, self.vae_args.likelihood, scale, self.vae_args.binarization).save_pretrained(directory)

    def _measure(self, vae: ModelMixin) -> tuple[float, float]:
        """The standard deviation of sampled latents, and the squared error of reconstructions from them, on training
        images (without augmentation)."""
        generator = evaluation_generator(self.args.seed, self.accelerator.device)
        numbers = pixels = 0
        total = squares = error = 0.0
        for images in self.training_images(EXPORT_IMAGES):
            uniform = torch.rand(images.shape, generator=generator, device=images.device)
            images = binarize(images, self.vae_args.binarization, uniform)
            posterior = vae.encode(2.0 * images - 1.0).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator, device=images.device)
            # The variance of z over its noise is known: only the means are sampled, from the data.
            total += posterior.mean.double().sum().item()
            squares += (posterior.mean.double().square() + posterior.var.double()).sum().item()
            numbers += posterior.mean.numel()
            if self.module.scale_mode == "optimal":
                output = vae.decode(posterior.mean + posterior.std * noise).sample
                error += squared_error(output.double(), images.double()).item() * images.numel()
                pixels += images.numel()
        return math.sqrt(squares / numbers - (total / numbers) ** 2), error / max(pixels, 1)

    def training_images(self, count: int) -> Iterator[torch.Tensor]:
        """Batches (B, C, H, W) in [0, 1], on the device and without augmentation, of at least `count` training images
        (or all there are), spread evenly over the data."""
        dataset = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        size = min(self.args.per_device_eval_batch_size, count)
        if hasattr(dataset, "micro_batches"):
            seed = self.args.seed
            batches = dataset.micro_batches(seed=seed, epoch=0, skip=0, batch_size=size, rank=0, world_size=1)
        else:
            indices = torch.linspace(0, len(dataset) - 1, min(len(dataset), count)).round().long().split(size)
            batches = (self.data_collator(dataset.__getitems__(part.tolist())) for part in indices)
        seen = 0
        for batch in batches:
            yield self.prepare_batch(batch, None)["pixel_values"]
            seen += len(batch["pixel_values"])
            if seen >= count:
                return

    def test(self, dataset, metric_key_prefix: str = "test") -> dict[str, float | int | str]:
        """Measures what was published in `output_dir` with [`evaluate_vae`] (on the main process; {} on others)."""
        if not self.accelerator.is_main_process:
            return {}
        pipeline = VAEPipeline.from_pretrained(self.args.output_dir).to(self.accelerator.device)
        metrics = evaluate_vae(
            pipeline,
            dataset,
            num_importance_samples=self.vae_args.eval_importance_samples,
            batch_size=self.args.per_device_eval_batch_size,
            seed=self.args.seed,
        )
        return {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
