"""From options to a network that fits the images."""

from __future__ import annotations

import math

from diffusers import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D

from ..errors import BadInput
from ..spectral import add_spectral_norm
from .arguments import VAEArguments
from .models import AutoencoderMLP, height_and_width
from .pipeline import VAEPipeline

CLASSES: dict[str, type[ModelMixin]] = {"AutoencoderKL": AutoencoderKL, "AutoencoderMLP": AutoencoderMLP}


def build_vae(args: VAEArguments, image_size: tuple[int, int], num_channels: int) -> ModelMixin:
    """The VAE that the options describe, for images of this size.

    Args:
        args: the options.
        image_size: (height, width) in pixels.
        num_channels: 1 or 3.

    Returns:
        An `AutoencoderMLP` or an `AutoencoderKL`, untrained unless `args.model_name_or_path` is set.

    Raises:
        BadInput: the network can't take images of this size or the options don't fit together; names what would.
    """
    if args.model_name_or_path is not None:
        vae = _pretrained(args, image_size, num_channels)
    elif args.architecture == "mlp":
        vae = _mlp(args, image_size, num_channels)
    else:
        vae = _conv(args, image_size, num_channels)
    if isinstance(vae, AutoencoderKL):
        for block in vae.modules():
            if isinstance(block, ResnetBlock2D):
                block.dropout.p = args.dropout
    if args.spectral_norm:
        # The output layers set the range of means, log variances and logits: a norm of 1 would cap it.
        if isinstance(vae, AutoencoderMLP):
            skip = (vae.encoder[-1], vae.decoder[-1])
        else:
            skip = (vae.encoder.conv_out, vae.decoder.conv_out, vae.quant_conv, vae.post_quant_conv)
        add_spectral_norm(vae, skip)
    return vae


def _sample_size(image_size: tuple[int, int]) -> int | list[int]:
    return image_size[0] if image_size[0] == image_size[1] else list(image_size)


def _mlp(args: VAEArguments, image_size: tuple[int, int], num_channels: int) -> AutoencoderMLP:
    return AutoencoderMLP(
        sample_size=_sample_size(image_size),
        in_channels=num_channels,
        latent_channels=args.latent_dim,
        hidden_sizes=list(args.hidden_sizes),
        act_fn=args.activation,
        dropout=args.dropout,
        batch_norm=args.batch_norm,
        # Measured: on MNIST 2 nats better after ten epochs; on the digits, under a logistic, 1 nat worse.
        unit_inputs=args.likelihood == "bernoulli",
    )


def _conv(args: VAEArguments, image_size: tuple[int, int], num_channels: int) -> AutoencoderKL:
    blocks = len(args.block_out_channels)
    check_divisible(image_size, 2 ** (blocks - 1), f"--block_out_channels has {blocks} blocks, which")
    odd = [c for c in args.block_out_channels if c % args.norm_num_groups]
    if odd:
        common = math.gcd(*args.block_out_channels)
        raise BadInput(
            f"--norm_num_groups {args.norm_num_groups} does not divide {odd[0]} of --block_out_channels "
            f"{' '.join(map(str, args.block_out_channels))}: use a divisor of {common}"
        )
    return AutoencoderKL(
        in_channels=num_channels,
        out_channels=num_channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=tuple(args.block_out_channels),
        layers_per_block=args.layers_per_block,
        latent_channels=args.latent_channels,
        norm_num_groups=args.norm_num_groups,
        sample_size=_sample_size(image_size),
        mid_block_add_attention=args.mid_block_add_attention,
    )


def check_divisible(image_size: tuple[int, int], factor: int, what: str) -> None:
    """Refuses images whose sides `factor` does not divide, with the nearest sizes that work."""
    height, width = image_size
    if height % factor == 0 and width % factor == 0:
        return
    smaller = [max(side // factor, 1) * factor for side in image_size]
    larger = [math.ceil(side / factor) * factor for side in image_size]
    sizes = dict.fromkeys(f"{h}x{w}" for h, w in (smaller, larger))
    raise BadInput(
        f"images of {height}x{width} pixels: {what} halve the sides to 1/{factor}; use --resolution "
        f"{' or '.join(sizes)}"
    )


def _pretrained(args: VAEArguments, image_size: tuple[int, int], num_channels: int) -> ModelMixin:
    name = args.model_name_or_path
    subfolder, config = _find_config(name)
    class_name = config.get("_class_name")
    if class_name not in CLASSES:
        raise BadInput(f"--model_name_or_path {name} holds a {class_name}; known are {', '.join(CLASSES)}")
    if config["in_channels"] != num_channels:
        raise BadInput(
            f"--model_name_or_path {name} takes images of {config['in_channels']} channels, these have "
            f"{num_channels}: use --channels {config['in_channels']}"
        )
    if class_name == "AutoencoderKL":
        check_divisible(image_size, 2 ** (len(config["block_out_channels"]) - 1), f"the blocks of {name}")
        vae = AutoencoderKL.from_pretrained(name, subfolder=subfolder)
        vae.register_to_config(sample_size=_sample_size(image_size))
    else:
        if height_and_width(config["sample_size"]) != tuple(image_size):
            height, width = height_and_width(config["sample_size"])
            raise BadInput(
                f"--model_name_or_path {name} takes images of {height}x{width} pixels, these have "
                f"{image_size[0]}x{image_size[1]}: use --resolution {height}x{width}"
            )
        if args.dropout > 0 and config["dropout"] != args.dropout:
            raise BadInput(f"--dropout {args.dropout}: {name} was built with {config['dropout']}: leave it out")
        vae = AutoencoderMLP.from_pretrained(name, subfolder=subfolder)
    _check_same_likelihood(args, name)
    return vae.train()


def _find_config(name: str) -> tuple[str | None, dict]:
    """Where the VAE's config lies: in a pipeline's `vae` folder, or in the folder itself."""
    for subfolder in ("vae", None):
        try:
            return subfolder, AutoencoderKL.load_config(name, subfolder=subfolder)
        except (OSError, ValueError):
            continue
    raise BadInput(f"--model_name_or_path {name}: there is no VAE in this folder or Hub repository")


def _trained_with(name: str) -> dict:
    """The pipeline config around a VAE; empty where it stands alone."""
    try:
        return VAEPipeline.load_config(name)
    except OSError:
        return {}


def _check_same_likelihood(args: VAEArguments, name: str) -> None:
    """A decoder trained for one likelihood says something else under another."""
    trained = _trained_with(name).get("likelihood")
    if trained is not None and trained != args.likelihood:
        raise BadInput(
            f"--model_name_or_path {name} was trained with --likelihood {trained}, not {args.likelihood}: "
            f"use --likelihood {trained}"
        )


def pretrained_scale(args: VAEArguments) -> float:
    """Where a learned sigma or scale starts: at the pretrained model's, or at 1 (half the range of the pixels)."""
    return args.model_name_or_path and _trained_with(args.model_name_or_path).get("scale") or 1.0
