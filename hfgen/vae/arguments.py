"""The options of a variational autoencoder, and what they exclude."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ..errors import BadInput
from ..options import CheckedOptions
from .likelihoods import LIKELIHOODS

MLP_OPTIONS = ("latent_dim", "hidden_sizes", "activation", "batch_norm")
CONV_OPTIONS = (
    "block_out_channels",
    "latent_channels",
    "layers_per_block",
    "norm_num_groups",
    "mid_block_add_attention",
)


@dataclass
class VAEArguments(CheckedOptions):
    """Options of the VAE's network, likelihood and objective.

    Raises:
        BadInput: a value out of its range, or an option that would do nothing beside the others.
    """

    _argument_group_name = "variational autoencoder"

    architecture: Literal["mlp", "conv"] = field(
        default="mlp", metadata={"help": "mlp: fully connected; conv: diffusers' AutoencoderKL."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Start from this VAE (a folder or Hub id; its network options come with it)."}
    )
    latent_dim: int = field(default=32, metadata={"help": "mlp: latent dimensions."})
    hidden_sizes: list[int] = field(
        default_factory=lambda: [512, 512],
        metadata={"help": "mlp: widths of the encoder's hidden layers; the decoder has them in reverse."},
    )
    activation: Literal["relu", "leaky_relu", "elu", "silu", "gelu", "softplus", "tanh"] = field(
        default="relu", metadata={"help": "mlp: the hidden layers' activation."}
    )
    batch_norm: bool = field(default=False, metadata={"help": "mlp: batch normalisation before each activation."})
    block_out_channels: list[int] = field(
        default_factory=lambda: [32, 64, 64],
        metadata={"help": "conv: channels of each block; every block but the last halves the sides."},
    )
    latent_channels: int = field(default=4, metadata={"help": "conv: channels of the latent image."})
    layers_per_block: int = field(default=1, metadata={"help": "conv: residual layers of a block."})
    norm_num_groups: int = field(default=8, metadata={"help": "conv: groups of the group normalisations."})
    mid_block_add_attention: bool = field(
        default=True, metadata={"help": "conv: self-attention over the latent image in encoder and decoder."}
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout probability in the hidden layers."})
    spectral_norm: bool = field(
        default=False,
        metadata={"help": "Spectral normalisation of all but the output layers; folded into the weights when saved."},
    )

    likelihood: Literal["bernoulli", "gaussian", "discretized_logistic"] = field(
        default="bernoulli", metadata={"help": "p(x|z): bernoulli (logits), gaussian, or discretized_logistic."}
    )
    sigma: str | None = field(
        default=None,
        metadata={
            "help": "gaussian: optimal (from the error; the default), learned, or a number, for pixels in [-1, 1]."
        },
    )
    binarization: Literal["none", "dynamic", "threshold"] = field(
        default="none",
        metadata={"help": "bernoulli: draw pixels by their grey value at each use (dynamic), or cut at one half."},
    )

    objective: Literal["elbo", "iwae"] = field(
        default="elbo", metadata={"help": "elbo, or the importance-weighted bound (iwae)."}
    )
    num_importance_samples: int = field(default=1, metadata={"help": "iwae: posterior samples of each image."})
    beta: float = field(default=1.0, metadata={"help": "elbo: weight of the KL."})
    kl_warmup_steps: int = field(
        default=0, metadata={"help": "elbo: optimizer steps in which the KL's weight grows from 0 to beta."}
    )
    free_bits: float = field(default=0.0, metadata={"help": "elbo: nats of KL a latent dimension that cost nothing."})
    eval_importance_samples: int = field(
        default=0,
        metadata={"help": "Samples of the importance-weighted bound in the test after training; 0 leaves it out."},
    )

    def __post_init__(self):
        self._check_ranges()
        self._check_network()
        self._check_likelihood()
        self._check_objective()

    @property
    def scale(self) -> str | float | None:
        """How the likelihood's scale is had: `optimal`, `learned`, a number, or `None` where it has none."""
        if LIKELIHOODS[self.likelihood].scale is None:
            return None
        if self.likelihood != "gaussian":
            return "learned"
        sigma = self.sigma or "optimal"
        return sigma if sigma in ("optimal", "learned") else float(sigma)

    def _check_ranges(self) -> None:
        for name in ("latent_dim", "latent_channels", "layers_per_block", "norm_num_groups", "num_importance_samples"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("beta", "kl_warmup_steps", "free_bits", "eval_importance_samples"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("hidden_sizes", "block_out_channels"):
            self._require(name, all(size >= 1 for size in getattr(self, name)), "whole numbers of at least 1")
        self._require("block_out_channels", len(self.block_out_channels) >= 1, "one number for each block")
        self._require("dropout", 0 <= self.dropout < 1, "at least 0 and below 1")

    def _check_network(self) -> None:
        if self.model_name_or_path is not None:
            for name in self.changed("architecture", *MLP_OPTIONS, *CONV_OPTIONS, "spectral_norm"):
                raise BadInput(f"--{name} is part of the VAE that --model_name_or_path names: leave it out")
            return
        if self.architecture == "conv" and self.batch_norm:
            raise BadInput("--batch_norm: AutoencoderKL normalises by groups; leave it out, or use --architecture mlp")
        other, name_of_other = (CONV_OPTIONS, "conv") if self.architecture == "mlp" else (MLP_OPTIONS, "mlp")
        for name in self.changed(*other):
            raise BadInput(
                f"--{name} does nothing with --architecture {self.architecture}: leave it out, or use "
                f"--architecture {name_of_other}"
            )
        if self.dropout > 0 and self.architecture == "mlp" and not self.hidden_sizes:
            raise BadInput("--dropout acts on hidden layers, and --hidden_sizes is empty: leave one of them out")
        if self.batch_norm and not self.hidden_sizes:
            raise BadInput("--batch_norm acts on hidden layers, and --hidden_sizes is empty: leave one of them out")

    def _check_likelihood(self) -> None:
        if self.sigma is not None:
            if self.likelihood != "gaussian":
                raise BadInput(f"--sigma does nothing with --likelihood {self.likelihood}: leave it out")
            self.sigma = str(self.sigma)
            if self.sigma not in ("optimal", "learned"):
                try:
                    positive = 0 < float(self.sigma) < math.inf
                except ValueError:
                    positive = False
                self._require("sigma", positive, "optimal, learned, or a number above 0")
        if self.binarization != "none" and self.likelihood != "bernoulli":
            raise BadInput(
                f"--binarization {self.binarization} goes with --likelihood bernoulli, not {self.likelihood}: "
                "leave it out"
            )

    def _check_objective(self) -> None:
        if self.objective == "iwae":
            for name in self.changed("beta", "kl_warmup_steps", "free_bits"):
                raise BadInput(f"--{name} weighs the KL of --objective elbo, and iwae has no such term: leave it out")
            self._require("num_importance_samples", self.num_importance_samples > 1, "at least 2 for --objective iwae")
        elif self.num_importance_samples != 1:
            raise BadInput("--num_importance_samples does nothing with --objective elbo: use --objective iwae")
        if self.beta == 0:
            for name in self.changed("kl_warmup_steps", "free_bits"):
                raise BadInput(f"--{name} does nothing with --beta 0: leave it out")
