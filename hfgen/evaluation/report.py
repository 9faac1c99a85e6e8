"""All metrics of a set of samples at once, each dictionary with its embedding and its counts."""

from __future__ import annotations

import torch
from torch import Tensor

from .distances import nearest
from .features import FeatureModel
from .frechet import frechet_distance
from .kernel import kernel_distance
from .manifold import manifold_metrics
from .modes import mode_statistics
from .neighbours import memorisation


def embed(model: FeatureModel, images, batch_size: int = 256) -> Tensor:
    """The features of images, a batch at a time.

    Args:
        model: on its device.
        images: (N, C, H, W), uint8 or float in [0, 1], on any device; or an [`hfgen.data.ImageDataset`].
        batch_size: images at a time.

    Returns:
        float32 (N, dim), on the CPU.
    """
    return torch.cat([model(batch).cpu() for batch in _batches(model, images, batch_size)])


def classes(model: FeatureModel, images, batch_size: int = 256) -> Tensor:
    """The class that the model sees in each image: int64 (N,), on the CPU. Arguments as of [`embed`]."""
    return torch.cat([model.classify(batch).argmax(1).cpu() for batch in _batches(model, images, batch_size)])


def _batches(model: FeatureModel, images, batch_size: int):
    device = next(model.parameters()).device
    for begin in range(0, len(images), batch_size):
        rows = range(begin, min(begin + batch_size, len(images)))
        is_tensor = torch.is_tensor(images)
        batch = images[rows.start : rows.stop] if is_tensor else images.__getitems__(rows)["pixel_values"]
        yield batch.to(device)


def evaluate_features(reals: Tensor, fakes: Tensor) -> dict[str, float]:
    """Every metric of two sets of vectors (N, D) and (M, D), at least 6 of each.

    Returns:
        dict: `fid` and `kid` with `kid_std`, the lower the better; `precision`, `recall`, `density`, `coverage`.
    """
    kid, deviation = kernel_distance(reals, fakes)
    figures = {"fid": frechet_distance(reals, fakes), "kid": kid, "kid_std": deviation}
    return figures | manifold_metrics(reals, fakes)


def evaluate_samples(
    samples,
    reals,
    feature_model: FeatureModel,
    *,
    training=None,
    batch_size: int = 256,
) -> dict[str, float | int | str]:
    """Measures generated images against real ones, over all that are given.

    Args:
        samples, reals: (N, C, H, W), uint8 or float in [0, 1], or an [`hfgen.data.ImageDataset`]; at least 6 of each.
            Of held-out reals, as many as samples, the figures are the most telling.
        feature_model: the embedding.
        training: what the generator was trained on, in the same form, to look for remembered images.
        batch_size: images embedded at a time.

    Returns:
        dict: what [`evaluate_features`] returns; `modes_covered`, `num_modes`, `mode_kl` (against the reals' shares as
        the model classifies them) where the model knows classes; with `training`, `memorised`, the share of samples
        that are copies by [`memorisation`], `memorised_reals`, the same of `reals`, which is what to compare it with,
        and `num_training`; `feature_model`, `num_samples`, `num_reals`.
    """
    fake_features, real_features = (embed(feature_model, images, batch_size) for images in (samples, reals))
    figures: dict[str, float | int | str] = dict(evaluate_features(real_features, fake_features))
    if feature_model.num_classes:
        seen, true = (classes(feature_model, images, batch_size) for images in (samples, reals))
        shares = torch.bincount(true, minlength=feature_model.num_classes).double()
        # A class that no real image seems to be of must not make the divergence infinite: count one more of each.
        figures |= mode_statistics(seen, feature_model.num_classes, shares + 1)
    if training is not None:
        known = embed(feature_model, training, batch_size)
        figures |= {
            "memorised": memorisation(fake_features, known),
            "memorised_reals": memorisation(real_features, known),
            "num_training": len(known),
        }
    return figures | {
        "feature_model": feature_model.name,
        "num_samples": len(fake_features),
        "num_reals": len(real_features),
    }


def nearest_training(samples, training, feature_model: FeatureModel, k: int = 5, batch_size: int = 256) -> Tensor:
    """Which `k` training images each sample is closest to in the embedding: int64 (N, k), nearest first."""
    return nearest(embed(feature_model, samples, batch_size), embed(feature_model, training, batch_size), k)[1]
