"""Generative adversarial networks."""

from .arguments import GANArguments, GANTrainingArguments
from .build import build_gan
from .evaluation import evaluate_gan
from .figures import save_figures
from .losses import LOSSES
from .networks import (
    DiscriminatorDCGAN,
    DiscriminatorMLP,
    DiscriminatorResNet,
    GeneratorDCGAN,
    GeneratorMLP,
    GeneratorResNet,
)
from .pipeline import GANPipeline
from .trainer import GANTrainer

__all__ = [
    "LOSSES",
    "DiscriminatorDCGAN",
    "DiscriminatorMLP",
    "DiscriminatorResNet",
    "GANArguments",
    "GANPipeline",
    "GANTrainer",
    "GANTrainingArguments",
    "GeneratorDCGAN",
    "GeneratorMLP",
    "GeneratorResNet",
    "build_gan",
    "evaluate_gan",
    "save_figures",
]
