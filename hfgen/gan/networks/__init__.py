"""Generators and discriminators; each loads alone with `from_pretrained`."""

from .dcgan import DiscriminatorDCGAN, GeneratorDCGAN
from .mlp import DiscriminatorMLP, GeneratorMLP
from .resnet import DiscriminatorResNet, GeneratorResNet

GENERATORS = {"mlp": GeneratorMLP, "dcgan": GeneratorDCGAN, "resnet": GeneratorResNet}
DISCRIMINATORS = {"mlp": DiscriminatorMLP, "dcgan": DiscriminatorDCGAN, "resnet": DiscriminatorResNet}

__all__ = [
    "DISCRIMINATORS",
    "GENERATORS",
    "DiscriminatorDCGAN",
    "DiscriminatorMLP",
    "DiscriminatorResNet",
    "GeneratorDCGAN",
    "GeneratorMLP",
    "GeneratorResNet",
]
