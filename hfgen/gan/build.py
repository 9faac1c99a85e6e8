"""From options to a generator and a discriminator that fit the samples."""

from __future__ import annotations

import math
from pathlib import Path

from diffusers.models.modeling_utils import ModelMixin

from ..errors import BadInput
from ..spectral import add_spectral_norm
from .arguments import GANArguments
from .networks import DISCRIMINATORS, GENERATORS
from .networks.layers import base_size, height_and_width

# The networks' default sizes: the smallest features have up to 7 pixels a side, or, of odd sizes, up to 16.
BASE, LARGEST_BASE = 7, 16
FULL_SIZE_CHANNELS, MOST_CHANNELS = 32, 256
CLASSES: dict[str, type[ModelMixin]] = {cls.__name__: cls for cls in (*GENERATORS.values(), *DISCRIMINATORS.values())}


def build_gan(
    args: GANArguments,
    image_size: tuple[int, int] | None,
    num_channels: int,
    num_classes: int | None = None,
) -> tuple[ModelMixin, ModelMixin]:
    """The two networks that the options describe.

    Args:
        args: the options.
        image_size: (height, width) in pixels; None for vectors.
        num_channels: 1 or 3; or the vectors' length.
        num_classes: of the data, for `args.class_conditional`; None where it has no labels.

    Returns:
        generator and discriminator, untrained unless the options name pretrained ones.

    Raises:
        BadInput: the networks can't make samples of this size, or the options don't fit together; names what would.
    """
    if args.class_conditional and num_classes is None:
        raise BadInput("--class_conditional needs labels, and this data has none: name a --label_column")
    classes = num_classes if args.class_conditional else None
    if args.generator_name_or_path is not None:
        generator, discriminator = _pretrained(args, image_size, num_channels, classes)
    else:
        generator, discriminator = _new(args, image_size, num_channels, classes)
    if args.spectral_norm != "none":
        add_spectral_norm(discriminator)
    if args.spectral_norm == "both":
        # The output layer sets the range of the samples: a norm of 1 would cap it.
        add_spectral_norm(generator, (getattr(generator, "out", None) or generator.layers[-1],))
    return generator, discriminator


def _new(args: GANArguments, image_size: tuple[int, int] | None, channels: int, classes: int | None):
    if image_size is None:
        if args.architecture != "mlp":
            raise BadInput(f"--architecture {args.architecture} makes images: use --architecture mlp for vectors")
        size = None
    else:
        size = image_size[0] if image_size[0] == image_size[1] else list(image_size)
    common = {"sample_size": size, "num_classes": classes}
    if args.architecture == "mlp":
        g_sizes = {"hidden_sizes": list(args.hidden_sizes)}
        d_sizes = {"hidden_sizes": list(reversed(args.hidden_sizes))}
    else:
        widths = list(args.block_out_channels or default_channels(image_size, args.architecture))
        _check_divisible(image_size, len(widths) - (args.architecture == "resnet"))
        g_sizes = {"block_out_channels": widths}
        if args.architecture == "resnet":
            g_sizes["layers_per_block"] = args.layers_per_block
        d_sizes = g_sizes
    batch_norm = args.architecture == "dcgan" if args.generator_batch_norm is None else args.generator_batch_norm
    generator = GENERATORS[args.architecture](
        out_channels=channels, latent_dim=args.latent_dim, batch_norm=batch_norm, **common, **g_sizes
    )
    discriminator = DISCRIMINATORS[args.architecture](
        in_channels=channels,
        dropout=args.dropout,
        batch_norm=args.discriminator_batch_norm,
        minibatch_std=args.minibatch_std,
        packing=args.packing,
        **common,
        **d_sizes,
    )
    return generator, discriminator


def default_channels(image_size: tuple[int, int], architecture: str) -> list[int]:
    """Channels from the smallest image to the largest, the sides halved while they are even and above 7 pixels.

    Args:
        image_size: (height, width) in pixels.
        architecture: `dcgan`, whose every block doubles the sides, or `resnet`, which has one more.

    Raises:
        BadInput: the sides can't be halved to 16 pixels or fewer; names resolutions that can.
    """
    side, halvings = max(image_size), 0
    while side > BASE and all(pixels % 2 ** (halvings + 1) == 0 for pixels in image_size):
        side, halvings = side // 2, halvings + 1
    if side > LARGEST_BASE:
        factor = 2 ** round(math.log2(max(image_size) / BASE))
        raise BadInput(
            f"images of {image_size[0]}x{image_size[1]} pixels halve to {side} and no further: use --resolution "
            f"{_near(image_size, factor)}, or name --block_out_channels"
        )
    blocks = halvings + 1 if architecture == "resnet" else max(halvings, 1)
    return [min(FULL_SIZE_CHANNELS * 2**k, MOST_CHANNELS) for k in reversed(range(blocks))]


def _near(image_size: tuple[int, int], factor: int) -> str:
    """Sides near these that the factor divides."""
    near = {max(1, side // factor + more) * factor for side in image_size for more in (0, 1)}
    return " or ".join(map(str, sorted(near)))


def _check_divisible(image_size: tuple[int, int], halvings: int) -> None:
    try:
        base_size(list(image_size), halvings)
    except ValueError:
        factor = 2**halvings
        raise BadInput(
            f"images of {image_size[0]}x{image_size[1]} pixels: --block_out_channels halves the sides to "
            f"1/{factor}; use fewer channels, or --resolution {_near(image_size, factor)}"
        ) from None


def _pretrained(args: GANArguments, image_size: tuple[int, int] | None, channels: int, classes: int | None):
    networks = []
    for option, folder, key in (
        ("generator_name_or_path", "generator", "out_channels"),
        ("discriminator_name_or_path", "discriminator", "in_channels"),
    ):
        name = getattr(args, option)
        network = load_network(name, folder, f"--{option}")
        config = network.config
        size = config.get("sample_size")
        if key in config and config[key] != channels:
            raise BadInput(f"--{option} {name} is for {config[key]} channels, this data has {channels}")
        if size is not None and image_size is not None and height_and_width(size) != tuple(image_size):
            height, width = height_and_width(size)
            raise BadInput(
                f"--{option} {name} is for images of {height}x{width} pixels, these have {image_size[0]}x"
                f"{image_size[1]}: use --resolution {height}x{width}"
            )
        if config.get("num_classes") != classes:
            has, wants = config.get("num_classes") or "no", classes or "no"
            raise BadInput(f"--{option} {name} knows {has} classes, this run {wants}: change --class_conditional")
        networks.append(network.train())
    return tuple(networks)


def load_network(name: str, subfolder: str, what: str) -> ModelMixin:
    """A network from its own folder, or from that of a pipeline or run, or from the Hub.

    Args:
        name: the folder or Hub id.
        subfolder: `generator` or `discriminator`, tried first.
        what: names the option in an error line.

    Raises:
        BadInput: there is none, or of no class that is known here (neither ours nor one of diffusers).
    """
    import diffusers

    for folder in (subfolder, None):
        try:
            config = GENERATORS["mlp"].load_config(name, subfolder=folder)
        except (OSError, ValueError):
            continue
        class_name = config.get("_class_name")
        cls = CLASSES.get(class_name) or getattr(diffusers, str(class_name), None)
        if not (isinstance(cls, type) and issubclass(cls, ModelMixin)):
            raise BadInput(f"{what} {name} holds a {class_name}; known are {', '.join(CLASSES)}")
        return cls.from_pretrained(name, subfolder=folder)
    where = "folder" if Path(name).exists() else "folder or Hub repository"
    raise BadInput(f"{what} {name}: there is no {subfolder} in this {where}")
