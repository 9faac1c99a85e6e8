"""Embeddings of images, in which distances mean something: every figure names the one that it was measured in."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..data.stacked import StackedImages
from ..errors import BadInput
from ..precision import full_float32
from ..seeding import mix
from .convnet import ConvFeatures, as_float
from .per_channel import PerChannel
from .pretraining import train_classifier, train_contrastive

# Part of the cache's key: raise it when the same data would give another network.
VERSION = 1
# What a network is trained on at most, and how much of it is held out to tell its accuracy.
TRAINING_IMAGES, HELD_OUT = 100_000, 2_000
FEWEST_IMAGES = 32
_FILES = ("model.safetensors", "features.json")


class FeatureModel(nn.Module):
    """Embeds images; always in evaluation mode and without gradients.

    Args:
        network: images (B, C, H, W) in [0, 1] -> features (B, dim); with a method `classify`, -> logits, if
            `num_classes` is above 0.
        name: goes with every figure.
        dim: of the features.
        channels: that it takes.
        num_classes: that it tells apart; 0 for none.
        accuracy: the share of held-out images classified right, where that was measured.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        dim: int,
        channels: int,
        num_classes: int = 0,
        accuracy: float | None = None,
    ):
        super().__init__()
        self.network, self.name, self.dim = network.requires_grad_(False), name, dim
        self.channels, self.num_classes, self.accuracy = channels, num_classes, accuracy
        self.eval()

    def train(self, mode: bool = True) -> FeatureModel:
        """Stays in evaluation mode: a metric must not depend on the batch that an image is in."""
        return super().train(False)

    @torch.no_grad()
    @full_float32()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> float32 (B, dim).

        Raises:
            BadInput: another number of channels.
        """
        return self.network(self._checked(images)).float()

    @torch.no_grad()
    @full_float32()
    def classify(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> logits float32 (B, num_classes).

        Raises:
            BadInput: the model knows no classes, or another number of channels.
        """
        if not self.num_classes:
            raise BadInput(f"feature model {self.name} knows no classes: modes are counted with a classifier")
        return self.network.classify(self._checked(images)).float()

    def _checked(self, images: Tensor) -> Tensor:
        images = as_float(images)
        if images.ndim != 4 or images.shape[1] not in (1, self.channels):
            raise BadInput(
                f"feature model {self.name} takes images (B, {self.channels}, H, W), not {tuple(images.shape)}"
            )
        return images.expand(-1, self.channels, -1, -1)


def load_feature_model(
    spec: str,
    train_dataset=None,
    *,
    cache_dir: str | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> FeatureModel:
    """The embedding that `spec` names.

    `auto` trains a small convnet on `train_dataset`, once (under a minute on one core; it is kept in the cache): on
    the labels, with part of the data held out to tell its accuracy, or, without labels, contrastively; of stacked
    images on the grey ones, for each channel. Its figures compare runs on the same data, not with those of papers. A
    file of weights (`.pth`) is FID's Inception network, in the port of the torch-fidelity package, whose figures do.
    A folder is a model of transformers.

    Args:
        spec: `auto`, a folder, or a file.
        train_dataset: an [`hfgen.data.ImageDataset`] or a stream; only `auto` needs it.
        cache_dir: folder of the cache, the datasets library's own by default.
        seed: of the convnet's weights and order.
        device: that it runs, and trains, on.

    Raises:
        BadInput: there is no such model or no data, too few images, a package is missing.
    """
    path = Path(os.path.expanduser(spec))
    if spec == "auto":
        model = _trained_on(train_dataset, cache_dir, seed, torch.device(device))
    elif path.is_dir():
        from .pretrained import transformers_features

        model = transformers_features(path)
    elif path.is_file():
        from .pretrained import inception_features

        model = inception_features(path)
    else:
        raise BadInput(
            f"feature model {spec}: there is no such folder of transformers or file of Inception weights; "
            "auto trains one on the data"
        )
    return model.to(device)


def _trained_on(dataset, cache_dir: str | None, seed: int, device: torch.device) -> FeatureModel:
    from ..data.built_once import built_once, cache_root  # the datasets library takes most of a second to import

    if dataset is None:
        raise BadInput("feature model auto is trained on the training data, and there is none")
    if isinstance(dataset, StackedImages):
        return _for_channels(_trained_on(dataset.grey, cache_dir, seed, device), dataset.num_channels)
    kind = "classifier" if _has_labels(dataset) else "contrastive"
    key = f"features-{kind}-{VERSION}-{seed}-{dataset.fingerprint or dataset.name}".replace(os.sep, "-")

    def build(folder: Path) -> None:
        network, facts = _train(dataset, seed, device)
        save_file(network.state_dict(), folder / _FILES[0])
        (folder / _FILES[1]).write_text(json.dumps(facts))

    folder = built_once(cache_root(cache_dir) / "features", key, build)
    try:
        facts = json.loads((folder / _FILES[1]).read_text())
        with torch.device("meta"):  # weights that are drawn in vain would move the global generator
            network = ConvFeatures(**facts["config"])
        network.load_state_dict(load_file(folder / _FILES[0]), assign=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BadInput(f"the feature model in {folder} is damaged ({error}): delete that folder") from error
    classes, accuracy = facts["config"]["num_classes"], facts["accuracy"]
    if kind == "classifier":
        name = f"convnet trained on the {classes} classes of {dataset.name} (accuracy {accuracy:.3f})"
    else:
        name = f"convnet trained on {dataset.name} without labels"
    return FeatureModel(network, name, network.body[-1].out_features, facts["config"]["channels"], classes, accuracy)


def _for_channels(model: FeatureModel, channels: int) -> FeatureModel:
    """What embeds so many independent grey images in the channels of one."""
    name, classes = f"{model.name}, in each of {channels} channels", model.num_classes and model.num_classes**channels
    accuracy = model.accuracy and model.accuracy**channels
    return FeatureModel(PerChannel(model.network), name, channels * model.dim, channels, classes, accuracy)


def _train(dataset, seed: int, device: torch.device) -> tuple[ConvFeatures, dict]:
    """A convnet fitted to the data, on the CPU, and what is told of it."""
    images, labels = _some(dataset, seed)
    if len(images) < FEWEST_IMAGES:
        raise BadInput(
            f"a feature model is trained on at least {FEWEST_IMAGES} images, dataset {dataset.name} has {len(images)}"
        )
    generator = torch.Generator().manual_seed(mix(seed, 0))
    order = torch.randperm(len(images), generator=generator)
    held_out, kept = order.split([count := min(HELD_OUT, len(images) // 10), len(images) - count])
    classes = 0 if labels is None else max(int(labels.max()) + 1, dataset.num_labels or 0)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():  # a run must not depend on whether the cache was there
        torch.random.default_generator.manual_seed(mix(seed, 1))
        network = ConvFeatures(*images.shape[1:], num_classes=classes).to(device)
        if labels is None:
            train_contrastive(network, images, generator)
        else:
            train_classifier(network, images[kept], labels[kept], generator)
    with torch.no_grad():
        network.standardise(as_float(images[kept[:HELD_OUT]].to(device)))
        if labels is None:
            return network.cpu(), {"config": network.config, "accuracy": None}
        logits = torch.cat([network.classify(as_float(images[rows].to(device))) for rows in held_out.split(500)])
    accuracy = (logits.argmax(1).cpu() == labels[held_out]).double().mean().item()
    return network.cpu(), {"config": network.config, "accuracy": accuracy}


def _has_labels(dataset) -> bool:
    """Whether there are two classes or more."""
    if hasattr(dataset, "micro_batches"):
        return dataset.label_column is not None and (dataset.num_labels or 0) > 1
    return dataset.labels is not None and dataset.labels.min() != dataset.labels.max()


def _some(dataset, seed: int) -> tuple[Tensor, Tensor | None]:
    """At most so many of the images, uint8 (N, C, H, W), and their labels, int64 (N,), if there are any."""
    if hasattr(dataset, "micro_batches"):
        dataset = dataset.evaluation_images(TRAINING_IMAGES // 10)
    indices = torch.linspace(0, len(dataset) - 1, min(len(dataset), TRAINING_IMAGES)).round().long()
    batch = dataset.__getitems__(indices.numpy())
    return batch["pixel_values"], batch.get("labels") if _has_labels(dataset) else None
