"""Training a generator against a discriminator."""

from __future__ import annotations

import copy
from collections import deque
from contextlib import nullcontext
from pathlib import Path

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ..arguments import TrainingArguments
from ..errors import BadInput
from ..optimizer import make_optimizer
from ..spectral import plain_state_dict
from ..trainer import Trainer
from .arguments import GANArguments
from .augment import ADA, AdaptiveProbability, augment
from .figures import ProgressPictures
from .history import History, SignMean
from .losses import LOSSES, discriminator_accuracy
from .module import GroupDiscriminator
from .monitors import gan_monitors
from .penalties import consistency, input_gradients, interpolate, one_centered, zero_centered
from .pipeline import GANPipeline
from .sampling import SamplingMixin

# Steps over which ADA collects the discriminator's signs before it adjusts (Karras et al. 2020, section 3.1).
ADA_INTERVAL = 4
# The fewest held-out samples among which a sample's five nearest can be found.
FEWEST_REALS = 6
# A step's values that the monitors look back at.
HISTORY = ("d_accuracy", "g_logit_grad", "g_grad_norm", "d_grad_norm", "logit_max")


class GANTrainer(SamplingMixin, Trainer):
    """Trains a generator and a discriminator, and publishes a [`GANPipeline`] of the generator's moving average.

    One optimizer step is `d_steps` steps of the discriminator, each on real samples of its own, and one of the
    generator; both accumulate over `gradient_accumulation_steps` micro-batches exactly. Batch normalisation takes the
    statistics of a micro-batch and of a rank, as DistributedDataParallel does: with it, and with `minibatch_std`,
    accumulating and two ranks are not the same as one larger batch.

    It logs `d_loss` and `g_loss`, and as `loss` their sum (which is what must stay finite), the penalties before their
    weight, and what the monitors look at:

    - `d_accuracy`: share of logits on their side of the boundary, or of pairs in the right order;
    - `logit_max`: the largest |logit|;
    - `g_logit_grad`: mean |dL_G / dlogit| of a sample, times the number of samples;
    - `g_grad_norm`, `d_grad_norm`: norms of the gradients, before clipping.

    Args:
        generator: (latents (B, latent_dim), class_labels (B,) or None) -> samples, in [-1, 1] if they are images; a
            `ModelMixin` with `latent_dim` and `num_classes` in its config, from [`build_gan`] or your own.
        discriminator: (samples, class_labels) -> logits (B,).
        args: see [`TrainingArguments`]; [`GANTrainingArguments`] has defaults for a GAN.
        gan_args: see [`GANArguments`]; its network options are not looked at here.
        cache_dir: where a feature model is kept; by default the datasets library's cache.
        train_dataset, eval_dataset, **options: as for [`Trainer`]; a batch holds `pixel_values` (B, C, H, W) in
            [0, 1] once `batch_transform` has seen it, or vectors (B, D) under `samples`; and `labels`, (B,) long, for
            a conditional generator.

    Raises:
        BadInput: under DeepSpeed, FSDP or fp16; too few held-out samples; or options that don't fit the
            networks or the data.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        args: TrainingArguments,
        gan_args: GANArguments,
        train_dataset=None,
        eval_dataset=None,
        cache_dir: str | None = None,
        **options,
    ):
        self.gan_args, self.cache_dir = gan_args, cache_dir
        self.generator_network, self.discriminator_network = generator, GroupDiscriminator(discriminator)
        self.loss = LOSSES[gan_args.loss]
        self.latent_dim, self.num_classes = generator.config.latent_dim, generator.config.get("num_classes")
        self.packing = getattr(discriminator.config, "packing", 1)
        if args.per_device_train_batch_size % self.packing:
            raise BadInput(
                f"--per_device_train_batch_size {args.per_device_train_batch_size} does not fill packs of "
                f"{self.packing} (--packing): use a multiple of it"
            )
        if eval_dataset is not None and len(eval_dataset) < FEWEST_REALS:
            raise BadInput(
                f"{len(eval_dataset)} samples are held out, and the scores take at least {FEWEST_REALS}: raise "
                "--validation_fraction, or set it to 0"
            )
        if args.fp16:
            raise BadInput("--fp16: gradient penalties underflow in float16; use --bf16, or leave both out")
        super().__init__(generator, args, train_dataset, eval_dataset, **options)
        self._history = History(args.monitor_steps)
        self.accelerator.register_for_checkpointing(self._history)
        self.ada = None
        if gan_args.adaptive:
            self.ada = AdaptiveProbability(gan_args.ada_target)
            self._signs = SignMean()
            self.accelerator.register_for_checkpointing(self.ada, self._signs)
        if train_dataset is not None:
            for monitor in gan_monitors(self):
                self.add_callback(monitor)
            if generator.config.get("sample_size") is not None:
                self.add_callback(ProgressPictures(self))

    # ---- preparation ------------------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer | None):
        """Hands both networks and both optimizers to Accelerate."""
        if self.accelerator.distributed_type in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            raise BadInput(
                f"{self.accelerator.distributed_type.value} holds one model, and a GAN has two: launch with "
                "accelerate_configs/ddp.yaml instead"
            )
        if self.train_dataset is None:
            self.discriminator, self.discriminator_optimizer = self.discriminator_network, None
            return super().prepare(model, optimizer)
        optimizers = optimizer or make_optimizer(model, self.args), self._discriminator_optimizer()
        prepared = self.accelerator.prepare(model, self.discriminator_network, *optimizers)
        model, self.discriminator, optimizer, self.discriminator_optimizer = prepared
        return model, optimizer

    def _discriminator_optimizer(self) -> torch.optim.Optimizer:
        args = copy.copy(self.args)
        args.learning_rate = self.learning_rates[1]
        return make_optimizer(self.discriminator_network, args)

    @property
    def optimizers(self) -> list:
        return [self.optimizer, self.discriminator_optimizer]

    @property
    def learning_rates(self) -> list[float]:
        own = self.gan_args.discriminator_learning_rate
        return [self.args.learning_rate, self.args.learning_rate if own is None else own]

    @property
    def micro_batches_per_step(self) -> int:
        return self.args.gradient_accumulation_steps * self.gan_args.d_steps

    # ---- one step ---------------------------------------------------------------------------------------------------

    def draw_noise(self, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
        """All the noise of a step but the augmentation's, from `self.generator`: `latents`, `instance` (both standard
        normal), and `position` (uniform in [0, 1), of the penalty between real and generated)."""
        draw = torch.rand if kind == "position" else torch.randn
        return draw(shape, generator=self.generator, device=self.device)

    def training_step(self, batches: list[dict]) -> dict[str, torch.Tensor]:
        """`d_steps` steps of the discriminator, then one of the generator, on the last of their samples."""
        size = self.args.gradient_accumulation_steps
        pairs = [self.batch_samples(batch) for batch in batches]
        for begin in range(0, len(pairs), size):
            d_outputs = self._discriminator_step(pairs[begin : begin + size])
        g_outputs = self._generator_step(pairs[-size:])
        outputs = {"loss": d_outputs["d_loss"] + g_outputs["g_loss"], **d_outputs, **g_outputs}
        self._history.append({name: outputs[name] for name in HISTORY}, self.accelerator)
        return outputs

    def _discriminator_step(self, pairs: list[tuple[torch.Tensor, torch.Tensor | None]]) -> dict[str, torch.Tensor]:
        outputs = []
        for real, labels in pairs:
            with self._accumulate(self.discriminator, len(pairs)):
                values = self._discriminator_loss(real, labels)
                self.backward(values.pop("total"))
                outputs.append(values)
        norm = self._optimizer_step(self.discriminator, self.discriminator_optimizer)
        if self.gan_args.weight_clip:
            self._clip_weights()
        if self.ada is not None:
            self._adapt()
        return _combined(outputs) | {"d_grad_norm": norm}

    def _discriminator_loss(self, real: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        args = self.gan_args
        with torch.no_grad():
            fake = self.generator_network(self.draw_noise("latents", (len(real), self.latent_dim)), labels).float()
            # Aliases: the gradient that a penalty asks of them is no concern of the batch.
            real, fake = self._seen(real).detach(), self._seen(fake).detach()
        groups, penalised = [real, fake], self._penalised(real, fake)
        groups += [group for group, _, _ in penalised.values() if group is not real and group is not fake]
        if args.consistency != "none":
            shifted = [real, fake] if args.consistency == "both" else [real]
            groups += [self._shifted(group) for group in shifted]
        for group, _, _ in penalised.values():
            group.requires_grad_(True)
        logits = self.discriminator(groups, labels)
        real_logits, fake_logits = logits[0], logits[1]
        smoothing = {"smoothing": args.label_smoothing} if self.loss.smooths_labels else {}
        loss = total = self.loss.discriminator(real_logits, fake_logits, **smoothing)
        values = {"d_loss": loss.detach()}
        if penalised:
            chosen = [next(k for k, g in enumerate(groups) if g is group) for group, _, _ in penalised.values()]
            gradients = input_gradients([logits[k] for k in chosen], [groups[k] for k in chosen])
            for (name, (_, penalty, weight)), gradient in zip(penalised.items(), gradients, strict=True):
                value = penalty(gradient)
                total = total + weight * args.penalty_every * self._penalty_decay() * value
                values[name] = value.detach()
        if args.consistency != "none":
            changed = sum(consistency(a, b) for a, b in zip(logits, logits[-len(shifted) :], strict=False))
            total = total + args.consistency_weight * changed
            values["consistency"] = changed.detach()
        real_logits, fake_logits = real_logits.detach(), fake_logits.detach()
        if self.ada is not None:
            self._signs.add(self._certainty(real_logits, fake_logits), len(real_logits))
        values["d_accuracy"] = discriminator_accuracy(self.loss, real_logits, fake_logits)
        values["logit_max"] = torch.maximum(real_logits.abs().max(), fake_logits.abs().max())
        return {"total": total, **values}

    def _penalised(self, real: torch.Tensor, fake: torch.Tensor) -> dict[str, tuple]:
        """By name: the samples at which the logits' gradient is penalised in this step, how, and the weight."""
        args = self.gan_args
        if self.state.global_step % args.penalty_every:
            return {}
        found = {}
        weights = args.penalty_weights(images=real.ndim == 4)
        for name, group, weight in zip(("r1", "r2"), (real, fake), weights, strict=True):
            if weight:
                found[name] = (group, zero_centered, weight)
        if args.gradient_penalty != "none":
            between = interpolate(real, fake, self.draw_noise("position", (len(real),)))
            penalty = one_centered if args.gradient_penalty == "one_centered" else zero_centered
            found["gradient_penalty"] = (between, penalty, args.gradient_penalty_weight)
        return found

    def _penalty_decay(self) -> float:
        """The share of the penalties' weights in this step (Huang et al. 2024, section 4, anneal them too)."""
        return self.gan_args.penalty_decay ** (self.state.global_step / max(self.state.max_steps, 1))

    def _generator_step(self, pairs: list[tuple[torch.Tensor, torch.Tensor | None]]) -> dict[str, torch.Tensor]:
        outputs = []
        judge = self.discriminator_network
        judge.requires_grad_(False)
        try:
            for real, labels in pairs:
                with self._accumulate(self.model, len(pairs)):
                    loss, fake_logits = self._generator_loss(real, labels)
                    fake_logits.retain_grad()
                    self.backward(loss)
                    # The loss is a mean, over the logits and over the micro-batches.
                    slope = fake_logits.grad.abs().sum() * len(pairs)
                    outputs.append({"g_loss": loss.detach(), "g_logit_grad": slope})
        finally:
            judge.requires_grad_(True)
        return _combined(outputs) | {"g_grad_norm": self._optimizer_step(self.model, self.optimizer)}

    def _generator_loss(self, real: torch.Tensor, labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and the logits of the generated samples. The discriminator is called without its wrapper, which
        would wait for gradients that never come."""
        fake = self.model(self.draw_noise("latents", (len(real), self.latent_dim)), labels).float()
        (fake_logits,) = self.discriminator_network([self._seen(fake)], labels)
        real_logits = None
        if self.loss.paired:
            with torch.no_grad():
                (real_logits,) = self.discriminator_network([self._seen(real)], labels)
        return self.loss.generator(real_logits, fake_logits), fake_logits

    def _accumulate(self, model: nn.Module, count: int):
        return self.accelerator.accumulate(model) if count > 1 else nullcontext()

    def _optimizer_step(self, model: nn.Module, optimizer) -> torch.Tensor:
        """Steps; returns the norm of the gradients."""
        if self.args.max_grad_norm > 0:
            return self.optimizer_step(model, optimizer)["grad_norm"]
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.optimizer_step(model, optimizer)
        return norm

    @torch.no_grad()
    def _clip_weights(self) -> None:
        weights, limit = list(self.discriminator_network.parameters()), self.gan_args.weight_clip
        torch._foreach_clamp_min_(weights, -limit)
        torch._foreach_clamp_max_(weights, limit)

    # ---- what the discriminator sees --------------------------------------------------------------------------------

    def _seen(self, samples: torch.Tensor) -> torch.Tensor:
        """Augmented, with the instance noise of this step (Sonderby et al. 2017): real and generated alike."""
        args = self.gan_args
        if self.ada is not None:
            samples = augment(_images(samples, "augment_policy"), ADA, self.ada.value, self.generator)
        elif args.diff_augment:
            samples = augment(_images(samples, "augment_policy"), args.diff_augment, 1.0, self.generator)
        deviation = self._noise_deviation()
        if deviation > 0:
            samples = samples + deviation * self.draw_noise("instance", samples.shape)
        return samples

    def _noise_deviation(self) -> float:
        steps = self.gan_args.instance_noise_steps or self.state.max_steps
        return self.gan_args.instance_noise * max(0.0, 1 - self.state.global_step / max(steps, 1))

    def _shifted(self, samples: torch.Tensor) -> torch.Tensor:
        return augment(_images(samples, "consistency").detach(), ("translation",), 1.0, self.generator)

    def _certainty(self, real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
        """Sum of sign(D(real)), over its boundary, or over the generated sample where only pairs compare."""
        other = fake_logits if self.loss.boundary is None else self.loss.boundary
        return (real_logits - other).sign().sum()

    def _adapt(self) -> None:
        """Moves ADA's probability every few steps of the discriminator, by the signs of all ranks."""
        if (self.state.global_step + 1) % ADA_INTERVAL == 0 and self._signs.count:
            sign_mean, count = self._signs.take(self.accelerator)
            self.ada.update(sign_mean, count)

    # ---- saving -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def export(self, model: nn.Module, directory: Path) -> None:
        """Writes a [`GANPipeline`] and, beside it, the discriminator, both without parametrizations."""
        generator = plain_copy(model)
        if isinstance(self.discriminator_network.discriminator, ModelMixin):
            plain_copy(self.discriminator_network.discriminator).save_pretrained(directory / "discriminator")
        if isinstance(generator, ModelMixin) and generator.config.get("sample_size") is not None:
            names = getattr(self.train_dataset, "label_names", None) if self.num_classes else None
            GANPipeline(generator, label_names=names).save_pretrained(directory)
        else:
            generator.save_pretrained(directory / "generator")

    # ---- what the monitors look at ----------------------------------------------------------------------------------

    @property
    def history(self) -> deque[dict[str, float]]:
        """The last `monitor_steps` steps' values (`d_accuracy`, ...), the oldest first, the same on every rank."""
        return self._history.read()

    # ---- evaluation -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluation_step(self, batch: dict) -> dict[str, torch.Tensor]:
        """What the discriminator thinks of samples that it was not trained on: `d_loss`, `d_accuracy`."""
        real, labels = self.batch_samples(batch)
        packing = self.packing
        if len(real) % packing:  # the last batch: some of it twice, to fill the last pack
            rows = torch.arange(-(-len(real) // packing) * packing, device=real.device) % len(real)
            real, labels = real[rows], None if labels is None else labels[rows]
        fake = self.generator_network(self.draw_noise("latents", (len(real), self.latent_dim)), labels).float()
        self.discriminator_network.eval()
        try:
            logits = self.discriminator_network([real, fake], labels)
        finally:
            self.discriminator_network.train()
        return {"d_loss": self.loss.discriminator(*logits), "d_accuracy": discriminator_accuracy(self.loss, *logits)}


def _images(samples: torch.Tensor, option: str) -> torch.Tensor:
    """The samples, which an option changes as images.

    Raises:
        BadInput: they are vectors.
    """
    if samples.ndim != 4:
        raise BadInput(f"--{option} is for images, and these samples are vectors: leave it out")
    return samples


def plain_copy(network: nn.Module) -> nn.Module:
    """The same network in evaluation mode, spectral normalisation folded into its weights; shares its tensors."""
    if not isinstance(network, ModelMixin):
        return network
    was_training = network.training
    with torch.device("meta"):
        plain = type(network).from_config(network.config)
    plain.load_state_dict(plain_state_dict(network.eval()), assign=True)
    network.train(was_training)
    return plain.eval()


def _combined(outputs: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Means over the micro-batches, and the largest logit."""
    if len(outputs) == 1:
        return outputs[0]
    columns = {name: torch.stack([entry[name] for entry in outputs]) for name in outputs[0]}
    return {name: values.max() if name == "logit_max" else values.mean() for name, values in columns.items()}
