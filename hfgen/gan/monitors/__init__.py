"""The alarms of this family: mode collapse, vanishing gradients, instability."""

from .base import Probe
from .collapse import ModeCollapse
from .instability import Instability
from .vanishing import VanishingGradients

__all__ = ["Instability", "ModeCollapse", "Probe", "VanishingGradients", "gan_monitors"]


def gan_monitors(trainer) -> list:
    """The three of them for a [`GANTrainer`], on one set of samples at each check."""
    probe = Probe(trainer)
    return [ModeCollapse(trainer, probe=probe), VanishingGradients(trainer), Instability(trainer, probe=probe)]
