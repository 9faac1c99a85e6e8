"""Embeddings that others trained: models of transformers, and the Inception network of FID."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BadInput
from .features import FeatureModel


class _Transformers(nn.Module):
    """A model's pooled output (the mean of its last hidden states where it has none) for images in [0, 1]."""

    def __init__(self, model: nn.Module, size: tuple[int, int], mean: list[float], std: list[float]):
        super().__init__()
        self.model, self.size = model, size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def _pixels(self, images: Tensor) -> Tensor:
        if images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        out = self.model.base_model(pixel_values=self._pixels(images))
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            hidden = out.last_hidden_state
            pooled = hidden.mean(1) if hidden.ndim == 3 else hidden.mean((2, 3))
        return pooled.flatten(1)

    def classify(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=self._pixels(images)).logits


def transformers_features(folder: Path) -> FeatureModel:
    """A vision model of transformers from its folder; its classes, too, if it is an image classifier.

    Raises:
        BadInput: the folder holds no such model.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

    try:
        config = AutoConfig.from_pretrained(folder)
        classifies = any(name.endswith("ForImageClassification") for name in config.architectures or [])
        kind = AutoModelForImageClassification if classifies else AutoModel
        model = kind.from_pretrained(folder, dtype=torch.float32)
        channels, (size, mean, std) = getattr(config, "num_channels", 3), _preprocessing(folder, config)
        network = _Transformers(model, size, mean[:channels], std[:channels])
        with torch.no_grad():
            dim = network.eval()(torch.zeros(1, channels, *size)).shape[1]
    except (OSError, ValueError, AttributeError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"feature model {folder} is no vision model of transformers: {reason}") from error
    return FeatureModel(network, folder.name, dim, channels, config.num_labels if classifies else 0)


def _preprocessing(folder: Path, config) -> tuple[tuple[int, int], list[float], list[float]]:
    """Size, mean and deviation that the model was trained with."""
    file = folder / "preprocessor_config.json"
    written = json.loads(file.read_text()) if file.is_file() else {}
    size = written.get("crop_size") or written.get("size") or getattr(config, "image_size", 224)
    if isinstance(size, dict):
        size = (size["height"], size["width"]) if "height" in size else size["shortest_edge"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    return size, written.get("image_mean", [0.5] * 3), written.get("image_std", [0.5] * 3)


class _Inception(nn.Module):
    """FID's Inception network takes bytes, as the published statistics were made."""

    def __init__(self, extractor: nn.Module):
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> Tensor:
        return self.extractor(images.clamp(0, 1).mul(255).round().to(torch.uint8))[0]


def inception_features(file: Path) -> FeatureModel:
    """The Inception network of FID (2048 features), from the weights file of torch-fidelity.

    Raises:
        BadInput: torch-fidelity is not installed, or the file holds something else.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise BadInput(
            f"feature model {file}: FID's Inception network comes with `pip install torch-fidelity`"
        ) from error
    try:
        torch.load(file, weights_only=True)  # the package would run what a pickle holds
        extractor = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(file))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"feature model {file} holds no weights of FID's Inception network: {reason}") from error
    return FeatureModel(_Inception(extractor), "Inception of FID", 2048, 3)
