"""The alarm of this family: a posterior that says nothing about the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..monitor import Monitor
from .evaluation import ACTIVE_VARIANCE
from .likelihoods import binarize
from .losses import gaussian_kl_per_dimension

if TYPE_CHECKING:
    from .trainer import VAETrainer

PROBE_IMAGES = 256
# A healthy run looks collapsed while its decoder still learns the mean image: it is judged after half the training or
# this many steps, whichever is earlier, and once the KL has its full weight.
STEPS_BEFORE_JUDGING = 1000
# A decoder that ignores its latents ends at the data's mean image: an error ratio of 1.
COLLAPSED_ERROR_RATIO = 0.97


class PosteriorCollapse(Monitor):
    """Speaks when the latents carry nothing: no active unit, or reconstructions no better than the data's mean image.

    Measured from the posterior means of a fixed set of training images (Bowman et al. 2016 describe the failure,
    Burda et al. 2016 the active units). Some inactive dimensions are healthy: a VAE uses as many as it needs.

    Args:
        trainer: the [`VAETrainer`] that it watches.
        patience: hits in a row before it speaks.
    """

    name = "posterior collapse"

    def __init__(self, trainer: VAETrainer | None = None, patience: int = 3):
        super().__init__(trainer, patience)
        self._probe: torch.Tensor | None = None

    def check(self, trainer: VAETrainer) -> tuple[str, dict[str, float]] | None:
        state, args = trainer.state, trainer.vae_args
        if state.global_step < max(min(state.max_steps // 2, STEPS_BEFORE_JUDGING), args.kl_warmup_steps):
            return None
        values = self.measure(trainer)
        if values["active_units"] > 0 and values["error_ratio"] < COLLAPSED_ERROR_RATIO:
            return None
        message = (
            f"{values['active_units']:.0f} of {values['latent_dimensions']:.0f} latents are active, the KL is "
            f"{values['kl']:.3g} nats (at most {values['max_kl_per_dimension']:.3g} in a dimension), and the error of "
            f"reconstructions is {values['error_ratio']:.2f} of the mean image's: {self._remedy(trainer, values)}"
        )
        return message, values

    @torch.no_grad()
    def measure(self, trainer: VAETrainer) -> dict[str, float]:
        """What the posterior says about the probe's images.

        Returns:
            dict: `active_units` of `latent_dimensions`; `kl` in nats, and `max_kl_per_dimension`; `error_ratio`, the
            squared error of reconstructions from the posterior means over that of the data's mean image.
        """
        images = self._images(trainer)
        was_training = trainer.model.training
        trainer.model.eval()
        parts = []
        try:
            for batch in images.split(trainer.args.per_device_eval_batch_size):
                noise = torch.zeros((1, len(batch), *trainer.latent_shape), device=batch.device)
                out = trainer.model(batch, noise)
                error = trainer.module.likelihood.mean(out.output[0].float()) - batch
                kl = gaussian_kl_per_dimension(out.mean.float(), out.logvar.float())
                parts.append((out.mean.float().flatten(1), kl, error.square().flatten(1).mean(1)))
        finally:
            trainer.model.train(was_training)
        mean, kl, error = (torch.cat(part) for part in zip(*parts, strict=True))
        kl = kl.mean(0)
        spread = (images - images.mean(0)).square().mean()
        return {
            "active_units": (mean.var(0, correction=0) > ACTIVE_VARIANCE).sum().item(),
            "latent_dimensions": mean.shape[1],
            "kl": kl.sum().item(),
            "max_kl_per_dimension": kl.max().item(),
            "error_ratio": (error.mean() / spread.clamp_min(1e-12)).item(),
        }

    def _images(self, trainer: VAETrainer) -> torch.Tensor:
        """The probe: the same images at every check, and after a resume."""
        if self._probe is None:
            images = torch.cat(list(trainer.training_images(PROBE_IMAGES)))[:PROBE_IMAGES]
            generator = torch.Generator().manual_seed(trainer.args.seed)
            uniform = torch.rand(images.shape, generator=generator).to(images.device)
            self._probe = binarize(images, trainer.vae_args.binarization, uniform)
        return self._probe

    @staticmethod
    def _remedy(trainer: VAETrainer, values: dict[str, float]) -> str:
        args = trainer.vae_args
        if args.objective == "iwae":
            return "train with --objective elbo --kl_warmup_steps first, or lower --learning_rate"
        if trainer.module.scale_mode == "fixed":
            return "let sigma follow the error with --sigma optimal, or lower it"
        if args.beta > 1:
            return f"lower --beta (it is {args.beta:g})"
        if args.free_bits == 0:
            longer = max(2 * args.kl_warmup_steps, trainer.state.max_steps // 4)
            return f"let the KL's weight grow with --kl_warmup_steps {longer}, or give each latent --free_bits 0.1"
        return "lower --learning_rate, or use a larger network"
