"""Variational autoencoders."""

from .arguments import VAEArguments
from .build import build_vae
from .evaluation import evaluate_vae
from .figures import save_figures
from .likelihoods import LIKELIHOODS
from .models import AutoencoderMLP
from .monitors import PosteriorCollapse
from .pipeline import VAEPipeline
from .trainer import VAETrainer

__all__ = [
    "LIKELIHOODS",
    "AutoencoderMLP",
    "PosteriorCollapse",
    "VAEArguments",
    "VAEPipeline",
    "VAETrainer",
    "build_vae",
    "evaluate_vae",
    "save_figures",
]
