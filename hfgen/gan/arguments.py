"""The options of a generative adversarial network, and what they exclude."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..arguments import TrainingArguments
from ..errors import BadInput
from ..options import CheckedOptions
from .augment import DIFFAUGMENT
from .losses import LOSSES

AUGMENTATIONS = (*DIFFAUGMENT, "ada")
NETWORK_OPTIONS = (
    "architecture",
    "latent_dim",
    "hidden_sizes",
    "block_out_channels",
    "layers_per_block",
    "class_conditional",
    "generator_batch_norm",
    "discriminator_batch_norm",
    "minibatch_std",
    "packing",
    "dropout",
)


@dataclass
class GANTrainingArguments(TrainingArguments):
    """[`TrainingArguments`] with the defaults that two networks need which chase each other.

    No momentum and a short memory of squares, as Huang et al. (2024) train; the published generator is the average.
    """

    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate."})
    adam_beta1: float = field(default=0.0, metadata={"help": "Adam's beta1."})
    adam_beta2: float = field(default=0.99, metadata={"help": "Adam's beta2."})
    use_ema: bool = field(
        default=True,
        metadata={"help": "Keep an exponential moving average of the generator; it is evaluated and published."},
    )
    eval_strategy: str = field(default="no", metadata={"help": "When to evaluate: no, steps, epoch."})
    metric_for_best_model: str = field(default="fid", metadata={"help": "The evaluation metric that decides."})


@dataclass
class GANArguments(CheckedOptions):
    """Options of the two networks, of their objectives, and of what keeps them in balance.

    Raises:
        BadInput: a value out of its range, or an option that would do nothing beside the others.
    """

    _argument_group_name = "generative adversarial network"

    architecture: Literal["mlp", "dcgan", "resnet"] = field(
        default="resnet",
        metadata={"help": "mlp: fully connected; dcgan: strided convolutions; resnet: residual blocks."},
    )
    generator_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Start from this generator (a run's folder, a generator's, or a Hub id); its options hold."},
    )
    discriminator_name_or_path: str | None = field(
        default=None, metadata={"help": "Start from this discriminator; goes with generator_name_or_path."}
    )
    class_conditional: bool = field(
        default=False, metadata={"help": "Generate by class: the discriminator is a projection discriminator."}
    )
    latent_dim: int = field(default=64, metadata={"help": "Latent dimensions."})
    hidden_sizes: list[int] = field(
        default_factory=lambda: [256, 256],
        metadata={"help": "mlp: widths of the hidden layers; the discriminator has them in reverse."},
    )
    block_out_channels: list[int] | None = field(
        default=None,
        metadata={
            "help": "dcgan, resnet: channels from the smallest image to the largest; every one but (resnet) the first "
            "doubles the sides. Default: 32 at full size and twice as many at each half, at most 256, down to 4 to 7 "
            "pixels a side."
        },
    )
    layers_per_block: int = field(default=1, metadata={"help": "resnet: residual blocks at each size."})
    generator_batch_norm: bool | None = field(
        default=None, metadata={"help": "Batch normalisation in the generator; default: in dcgan only."}
    )
    discriminator_batch_norm: bool = field(
        default=False, metadata={"help": "Batch normalisation in the discriminator; goes with no gradient penalty."}
    )
    spectral_norm: Literal["none", "discriminator", "both"] = field(
        default="none",
        metadata={"help": "Spectral normalisation of these networks; folded into the weights when saved."},
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout probability in the discriminator."})
    minibatch_std: bool = field(
        default=False, metadata={"help": "The discriminator sees how much the samples of a group differ."}
    )
    packing: int = field(default=1, metadata={"help": "Samples that the discriminator judges together (PacGAN)."})

    loss: Literal["relativistic", "non_saturating", "minimax", "hinge", "least_squares", "wasserstein"] = field(
        default="relativistic", metadata={"help": "Objective of both networks; the default wants r1 and r2."}
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "minimax, non_saturating: real samples have the target 1 - this."}
    )
    r1_weight: float | None = field(
        default=None,
        metadata={"help": "Gradient penalty at real samples; default: with relativistic 5 (vectors: 0.1), else 0."},
    )
    r2_weight: float | None = field(
        default=None, metadata={"help": "Gradient penalty at generated samples; default: as of r1_weight."}
    )
    gradient_penalty: Literal["none", "one_centered", "zero_centered"] = field(
        default="none", metadata={"help": "Penalty between real and generated samples; one_centered: WGAN-GP."}
    )
    gradient_penalty_weight: float = field(default=10.0, metadata={"help": "Its weight."})
    penalty_every: int = field(
        default=1, metadata={"help": "Gradient penalties in every so many steps only, with so many times the weight."}
    )
    penalty_decay: float = field(
        default=1.0,
        metadata={
            "help": "The penalties' weights fall to this share of theirs by the end of the run, geometrically: from "
            "coarse to fine."
        },
    )
    weight_clip: float = field(
        default=0.0, metadata={"help": "wasserstein: the discriminator's weights are cut to [-this, this]."}
    )
    consistency: Literal["none", "real", "both"] = field(
        default="none",
        metadata={"help": "Images: the logits of these samples should not change when they are shifted (CR, bCR)."},
    )
    consistency_weight: float = field(default=10.0, metadata={"help": "Weight of the consistency."})
    instance_noise: float = field(
        default=0.0, metadata={"help": "Standard deviation of noise on all that the discriminator sees, at the start."}
    )
    instance_noise_steps: int = field(
        default=0, metadata={"help": "Steps in which that noise falls to 0, linearly; 0: all of the run."}
    )
    augment_policy: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={
            "help": "Augment all that the discriminator sees: none; some of color, translation, cutout (DiffAugment); "
            "or ada (adaptive). For data sets of some thousand images and less."
        },
    )
    ada_target: float = field(default=0.6, metadata={"help": "ada: how sure of real samples it may become."})

    d_steps: int = field(default=1, metadata={"help": "Steps of the discriminator, each on new samples, a step of G."})
    discriminator_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the discriminator; default: learning_rate."}
    )

    feature_model: str = field(
        default="auto",
        metadata={
            "help": "Embedding in which images are compared: auto (a small network trained on the data), or the "
            "folder of an image model."
        },
    )
    eval_samples: int = field(default=10_000, metadata={"help": "Samples of the scores (FID, KID, ...)."})

    def __post_init__(self):
        self._check_ranges()
        self._check_networks()
        self._check_loss()
        self._check_augmentation()

    def penalty_weights(self, images: bool) -> tuple[float, float]:
        """The weights of (R1, R2); by default what was best on small images, and on vectors in two dimensions."""
        default = 0.0 if self.loss != "relativistic" else 5.0 if images else 0.1
        return tuple(default if weight is None else weight for weight in (self.r1_weight, self.r2_weight))

    @property
    def penalised(self) -> bool:
        """Whether a gradient penalty keeps the discriminator smooth."""
        return any(self.penalty_weights(images=True)) or self.gradient_penalty != "none"

    @property
    def diff_augment(self) -> tuple[str, ...]:
        """The policies that apply always; empty with `none` and `ada`."""
        return tuple(policy for policy in self.augment_policy if policy not in ("none", "ada"))

    @property
    def adaptive(self) -> bool:
        return self.augment_policy == ["ada"]

    def _check_ranges(self) -> None:
        for name in ("latent_dim", "layers_per_block", "packing", "penalty_every", "d_steps"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("eval_samples", self.eval_samples >= 2, "at least 2")
        for name in ("r1_weight", "r2_weight", "gradient_penalty_weight", "weight_clip", "consistency_weight"):
            self._require(name, (getattr(self, name) or 0) >= 0, "at least 0")
        for name in ("instance_noise", "instance_noise_steps"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("hidden_sizes", "block_out_channels"):
            if (sizes := getattr(self, name)) is not None:
                self._require(name, all(size >= 1 for size in sizes), "whole numbers of at least 1")
                self._require(name, len(sizes) >= 1, "one number at least")
        self._require("dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        self._require("label_smoothing", 0 <= self.label_smoothing < 0.5, "at least 0 and below 0.5")
        self._require("penalty_decay", 0 < self.penalty_decay <= 1, "above 0 and at most 1")
        self._require("ada_target", 0 < self.ada_target < 1, "between 0 and 1")
        if self.discriminator_learning_rate is not None:
            self._require("discriminator_learning_rate", self.discriminator_learning_rate >= 0, "at least 0")

    def _check_networks(self) -> None:
        if (self.generator_name_or_path is None) != (self.discriminator_name_or_path is None):
            raise BadInput("--generator_name_or_path and --discriminator_name_or_path go together: give both")
        if self.generator_name_or_path is not None:
            for name in self.changed(*(n for n in NETWORK_OPTIONS if n != "class_conditional")):
                raise BadInput(f"--{name} is part of the networks that --generator_name_or_path names: leave it out")
            return
        unused = {
            "mlp": ("block_out_channels", "layers_per_block"),
            "dcgan": ("hidden_sizes", "layers_per_block"),
            "resnet": ("hidden_sizes",),
        }
        for name in self.changed(*unused[self.architecture]):
            raise BadInput(f"--{name} does nothing with --architecture {self.architecture}: leave it out")
        if self.class_conditional and self.packing > 1:
            raise BadInput("--packing judges samples of several classes together: leave out --class_conditional")

    def _check_loss(self) -> None:
        if self.label_smoothing and not LOSSES[self.loss].smooths_labels:
            raise BadInput(f"--label_smoothing: {self.loss} has no labels; use --loss non_saturating, or leave it out")
        if self.weight_clip and self.loss != "wasserstein":
            raise BadInput(f"--weight_clip belongs to --loss wasserstein, not {self.loss}: leave it out")
        if self.weight_clip and (self.gradient_penalty != "none" or self.spectral_norm != "none"):
            raise BadInput(
                "--weight_clip goes with neither --gradient_penalty nor --spectral_norm: choose one of them"
            )
        smooth = self.weight_clip or self.gradient_penalty != "none" or self.spectral_norm != "none"
        if self.loss == "wasserstein" and not smooth:
            raise BadInput("--loss wasserstein needs --gradient_penalty one_centered, or --weight_clip 0.01")
        if self.penalised and self.discriminator_batch_norm:
            raise BadInput("--discriminator_batch_norm: a gradient penalty is of one sample at a time: leave it out")
        for name in self.changed("gradient_penalty_weight"):
            if self.gradient_penalty == "none":
                raise BadInput(f"--{name} does nothing without --gradient_penalty: leave it out")
        if self.penalty_every > 1 and not self.penalised:
            raise BadInput("--penalty_every does nothing without a gradient penalty: leave it out")
        if self.changed("penalty_decay") and not self.penalised:
            raise BadInput("--penalty_decay does nothing without a gradient penalty: leave it out")
        if self.instance_noise_steps and not self.instance_noise:
            raise BadInput("--instance_noise_steps does nothing without --instance_noise: leave it out")
        if self.changed("consistency_weight") and self.consistency == "none":
            raise BadInput("--consistency_weight does nothing without --consistency: leave it out")

    def _check_augmentation(self) -> None:
        self.augment_policy = list(self.augment_policy)
        for policy in self.augment_policy:
            if policy not in ("none", *AUGMENTATIONS):
                raise BadInput(f"--augment_policy {policy}: known are none, {', '.join(AUGMENTATIONS)}")
        if len(self.augment_policy) > 1 and {"none", "ada"} & set(self.augment_policy):
            raise BadInput("--augment_policy none and ada stand alone: leave the others out")
        if self.changed("ada_target") and not self.adaptive:
            raise BadInput("--ada_target does nothing without --augment_policy ada: leave it out")
