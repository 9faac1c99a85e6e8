"""How good a VAE is: the ELBO and its parts, the importance-weighted bound, and what the latents carry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from ..precision import full_float32
from .likelihoods import LIKELIHOODS
from .losses import bits_per_dim, gaussian_kl_per_dimension, log_importance_weights
from .pipeline import VAEPipeline

# A latent is active if the variance, over the data, of its posterior mean is above this (Burda et al. 2016, sec. 5.2).
ACTIVE_VARIANCE = 0.01
# Numbers in the decoder's widest layer at a time (16 times as many on a GPU): bounds the memory, and on a CPU keeps
# the work near its cache.
CHUNK_NUMBERS = 1 << 22
# Mutual information compares each latent with each posterior: at most this many of them.
INFORMATION_IMAGES = 10_000


class StreamedLogMeanExp:
    """log(mean(exp(x))) over values that come in chunks, without keeping them."""

    def __init__(self):
        self.count, self.log_sum = 0, None

    def update(self, values: torch.Tensor) -> None:
        """Adds values (k, ...)."""
        log_sum = torch.logsumexp(values.double(), 0)
        self.log_sum = log_sum if self.log_sum is None else torch.logaddexp(self.log_sum, log_sum)
        self.count += values.shape[0]

    def result(self) -> torch.Tensor:
        """(...) float64."""
        return self.log_sum - math.log(self.count)


def _chunks(total: int, size: int) -> Iterator[int]:
    for begin in range(0, total, size):
        yield min(size, total - begin)


def _decoder_rows(pipeline: VAEPipeline, images: torch.Tensor) -> int:
    """How many latents are decoded at a time."""
    channels, *sides = images.shape[1:]
    widest = max(channels, *pipeline.vae.config.get("block_out_channels", [0]))
    budget = CHUNK_NUMBERS * (16 if images.device.type == "cuda" else 1)
    return max(1, budget // (widest * math.prod(sides)))


@torch.no_grad()
def importance_weighted_bound(
    pipeline: VAEPipeline, images: torch.Tensor, num_samples: int, generator: torch.Generator
) -> torch.Tensor:
    """The bound of log p(x) with K importance samples (Burda et al. 2016, equation 8), in bounded memory.

    Args:
        pipeline: the model.
        images: (B, C, H, W) in [0, 1], binary already where the model is trained so.
        num_samples: K.
        generator: on the pipeline's device.

    Returns:
        (B,) float64 nats.
    """
    posterior = pipeline.vae.encode((2.0 * images - 1.0).to(pipeline.vae.dtype)).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    nll, log_scale = LIKELIHOODS[pipeline.config.likelihood].nll, pipeline.log_scale
    rows = _decoder_rows(pipeline, images)
    bounds = []
    # Few images with many samples each: a chunk of decoder rows is full whatever the batch size, and no larger.
    for x, mu, lv in zip(*(t.split(max(1, rows // num_samples)) for t in (images, mean, logvar)), strict=True):
        std, stream = (0.5 * lv).exp(), StreamedLogMeanExp()
        for k in _chunks(num_samples, max(1, rows // len(x))):
            noise = torch.randn((k, *mu.shape), generator=generator, device=mu.device)
            latents = mu + std * noise
            output = pipeline.vae.decode(latents.flatten(0, 1).to(pipeline.vae.dtype)).sample.float()
            stream.update(log_importance_weights(nll(output.unflatten(0, (k, -1)), x, log_scale), noise, latents, lv))
        bounds.append(stream.result())
    return torch.cat(bounds)


@torch.no_grad()
def mutual_information(latents: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor, chunk: int = 512) -> float:
    """I(x; z) under q in nats: mean KL(q(z|x) || p) - KL(q(z) || p) (Hoffman & Johnson 2016, equation 6).

    q(z) is the mixture of the N posteriors; both terms are averaged over one sample z_n of each, so that log p(z)
    drops out and log q(z_n|x_n) - log q(z_n) remains. The estimate can't exceed log N.

    Args:
        latents: (N, D) the samples z_n.
        mean, logvar: (N, D) of the posteriors.
        chunk: samples at a time.
    """
    latents, mean, logvar = latents.double(), mean.double(), logvar.double()
    precision = (-logvar).exp()
    own = ((latents - mean).square() * precision + logvar).sum(1)
    # (z - m)^2 / v = z^2 / v - 2 z m / v + m^2 / v: two matrix products instead of N x N x D differences.
    constant = (mean.square() * precision + logvar).sum(1)
    total = 0.0
    for z, own_distance in zip(latents.split(chunk), own.split(chunk), strict=True):
        distances = z.square() @ precision.T - 2.0 * z @ (mean * precision).T + constant
        log_aggregate = torch.logsumexp(-0.5 * distances, 1) - math.log(len(mean))
        total += (-0.5 * own_distance - log_aggregate).sum().item()
    return total / len(latents)


def active_units(mean: torch.Tensor) -> int:
    """Latent dimensions whose posterior mean varies over the data: (N, D) -> count (Burda et al. 2016, sec. 5.2)."""
    return int((mean.double().var(0, correction=0) > ACTIVE_VARIANCE).sum())


def pixel_batches(dataset, batch_size: int) -> Iterator[torch.Tensor]:
    """The dataset's images in order, (B, C, H, W) float32 in [0, 1]."""
    for begin in range(0, len(dataset), batch_size):
        indices = list(range(begin, min(begin + batch_size, len(dataset))))
        yield dataset.__getitems__(indices)["pixel_values"].float() / 255.0


def _measure(
    pipeline: VAEPipeline, images: torch.Tensor, num_importance_samples: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Per-image values, (B,), and the posteriors `mean`, `logvar` with one sample `z` each, (B, D); on the CPU."""
    likelihood = LIKELIHOODS[pipeline.config.likelihood]
    posterior = pipeline.vae.encode((2.0 * images - 1.0).to(pipeline.vae.dtype)).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    z = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=generator, device=mean.device)
    output = pipeline.vae.decode(z.to(pipeline.vae.dtype)).sample.float()
    expected = pipeline.decode(posterior.mode())
    values = {
        "reconstruction": likelihood.nll(output, images, pipeline.log_scale).double(),
        "kl": gaussian_kl_per_dimension(mean, logvar).double().sum(1),
        "reconstruction_mse": (expected - images).double().square().flatten(1).mean(1),
    }
    if num_importance_samples > 0:
        values["iw_bound"] = importance_weighted_bound(pipeline, images, num_importance_samples, generator)
    latents = {"mean": mean.flatten(1), "logvar": logvar.flatten(1), "z": z.flatten(1)}
    return {name: value.cpu() for name, value in (values | latents).items()}


@torch.no_grad()
@full_float32()
def evaluate_vae(
    pipeline: VAEPipeline,
    dataset,
    *,
    num_importance_samples: int = 0,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float | int | str]:
    """Measures a VAE on images.

    Args:
        pipeline: the model, with the likelihood it was trained with.
        dataset: an [`hfgen.data.ImageDataset`] (uint8 images).
        num_importance_samples: K of the importance-weighted bound; 0 leaves it out. 5000 is customary.
        batch_size: images encoded at a time; the decoder's memory is bounded apart.
        seed: of the binarisation and of every sample.
        progress: called with (images done, images in all) after each batch.

    Returns:
        dict: `elbo` = -(`reconstruction` + `kl`) in nats an image, with one posterior sample; `iw_bound` in nats, and
        `num_importance_samples`; `bits_per_dim`, of the ELBO, and `iw_bits_per_dim`, where -log p(x) is a code length;
        `active_units` of `latent_dimensions`; `mutual_information` in nats (from at most 10,000 images, and never
        above the log of their number); `reconstruction_mse`, from the posterior means, and `data_mean_mse`, of the
        data's mean image, for pixels in [0, 1]; `scale`, the likelihood's; `binarization`, how the images were made
        binary; `num_images`.
    """
    likelihood = LIKELIHOODS[pipeline.config.likelihood]
    generator = torch.Generator(pipeline._execution_device).manual_seed(seed)
    pipeline.vae.eval()
    measured, done = [], 0
    pixel_sum = pixel_square_sum = 0.0
    for images in pixel_batches(dataset, batch_size):
        images = pipeline.preprocess(images, generator)
        measured.append(_measure(pipeline, images, num_importance_samples, generator))
        pixel_sum = pixel_sum + images.double().sum(0)
        pixel_square_sum = pixel_square_sum + images.double().square().sum(0)
        done += len(images)
        if progress is not None:
            progress(done, len(dataset))
    columns = {name: torch.cat([part[name] for part in measured]) for name in measured[0]}
    mean, logvar, z = columns.pop("mean"), columns.pop("logvar"), columns.pop("z")
    means_of = {name: values.mean().item() for name, values in columns.items()}
    some = torch.linspace(0, done - 1, min(done, INFORMATION_IMAGES)).round().long()
    result = {"elbo": -(means_of["reconstruction"] + means_of["kl"]), **means_of}
    if num_importance_samples > 0:
        result["num_importance_samples"] = num_importance_samples
    if likelihood.has_bits_per_dim(pipeline.config.binarization):
        dimensions = images[0].numel()
        result["bits_per_dim"] = bits_per_dim(result["elbo"], dimensions)
        if num_importance_samples > 0:
            result["iw_bits_per_dim"] = bits_per_dim(result["iw_bound"], dimensions)
    result["data_mean_mse"] = (pixel_square_sum / done - (pixel_sum / done).square()).mean().item()
    result["active_units"], result["latent_dimensions"] = active_units(mean), mean.shape[1]
    result["mutual_information"] = mutual_information(z[some], mean[some], logvar[some])
    if likelihood.scale is not None:
        result["scale"] = pipeline.config.scale
    return result | {"binarization": pipeline.config.binarization, "num_images": done}
