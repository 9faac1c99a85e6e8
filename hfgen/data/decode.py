"""One encoded image to one uint8 array."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from math import ceil
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow as pa

from ..errors import BadInput

# What an image is laid on where it is transparent: white, as paper and most web pages are.
BACKGROUND = (255, 255, 255, 255)
# Grey modes of PIL, 16-bit ones included; every other mode has colour.
GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}
# Where an orientation can be written (EXIF in JPEG, PNG and WebP, XMP); looking for it in every image costs time.
ORIENTATION_KEYS = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}


class UnreadableImage(Exception):
    """This one image can't be decoded; the message says why."""


@dataclass(frozen=True)
class PixelFormat:
    """What every image of a dataset becomes: uint8 of shape (channels, height, width).

    Args:
        size: (height, width) in pixels; None until the first image has told it.
        channels: 1 or 3; None until the first image has told it.
        resize_mode: `crop`, `pad`, `stretch`, or `exact`: an image of another size is an error.
        only_grey: an image with colour is an error.
    """

    size: tuple[int, int] | None
    channels: int | None
    resize_mode: str
    only_grey: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, *self.size)

    def completed_by(self, channels: int, height: int, width: int) -> PixelFormat:
        """The same format with what was left open taken from one image, which all others must then match."""
        return replace(
            self,
            size=self.size or (height, width),
            channels=self.channels or channels,
            resize_mode=self.resize_mode if self.size else "exact",
            only_grey=self.only_grey or (self.channels is None and channels == 1),
        )


def natural_shape(image: PIL.Image.Image) -> tuple[int, int, int]:
    """(channels, height, width) of an opened image, with 1 channel for grey and 3 for everything else."""
    return (1 if image.mode in GREY_MODES else 3, image.height, image.width)


def stored_values(encoded: pa.StructArray) -> Iterator[dict[str, Any]]:
    """`{"bytes": ..., "path": ...}` of each image of an Arrow array, copied out of it only when its turn comes."""
    for content, path in zip(encoded.field("bytes"), encoded.field("path"), strict=True):
        yield {"bytes": content.as_py(), "path": path.as_py()}


def image_name(value: dict[str, Any], fallback: str) -> str:
    """How an image is called in a message: its file, or where it stands in the dataset."""
    path = value["path"]
    if path and value["bytes"] is None:
        return path
    return f"{fallback} ({path})" if path else fallback


def open_image(value: dict[str, Any], pixels: PixelFormat) -> PIL.Image.Image:
    """Reads and decodes an image, upright as its EXIF orientation says.

    Args:
        value: the `datasets` storage of an image: `{"bytes": encoded or None, "path": file or None}`.
        pixels: lets a JPEG that is much larger than asked for be decoded at 1/2, 1/4 or 1/8 of its size, never below
            twice what is asked for.

    Raises:
        UnreadableImage: the file is absent, truncated, corrupt or no image.
    """
    encoded, path = value["bytes"], value["path"]
    if encoded is None and path is None:
        raise UnreadableImage("the row is empty")
    try:
        if encoded is None and "://" in path:  # inside an archive or on the Hub: datasets knows how to reach it
            import datasets

            return datasets.Image().decode_example(value)
        image = PIL.Image.open(path if encoded is None else BytesIO(encoded))
        if image.format == "JPEG" and pixels.size and not image.info.keys() & ORIENTATION_KEYS:
            reduction = min(image.height / pixels.size[0], image.width / pixels.size[1]) / 2
            if reduction >= 2 and pixels.resize_mode != "exact":
                image.draft(None, (ceil(image.width / reduction), ceil(image.height / reduction)))
        image.load()
        if image.info.keys() & ORIENTATION_KEYS or image.format == "TIFF":
            PIL.ImageOps.exif_transpose(image, in_place=True)
        return image
    except Exception as error:  # PIL's plugins raise nearly anything on damaged files
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error


def to_8_bit(image: PIL.Image.Image, channels: int) -> PIL.Image.Image:
    """Mode L or RGB: 16-bit grey is scaled by 1/257, transparency is laid on white, palettes and CMYK are converted.

    Raises:
        UnreadableImage: floating-point or 32-bit images, whose range of values the file doesn't tell.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise UnreadableImage("32-bit pixels have no known range; save it with 8 or 16 bits a channel")
        image = PIL.Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        colour = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", colour.size, BACKGROUND), colour)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def fit(image: PIL.Image.Image, size: tuple[int, int], resize_mode: str) -> PIL.Image.Image:
    """An L or RGB image at `size` = (height, width), bicubic with antialiasing; unchanged where it has that size."""
    height, width = size
    if (image.height, image.width) == size:
        return image
    resample = PIL.Image.Resampling.BICUBIC
    if resize_mode == "stretch":
        return image.resize((width, height), resample)
    if resize_mode == "crop":
        scale = min(image.width / width, image.height / height)  # source pixels a target pixel
        left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
        right, bottom = min(left + width * scale, image.width), min(top + height * scale, image.height)
        return image.resize((width, height), resample, box=(max(left, 0.0), max(top, 0.0), right, bottom))
    scale = max(image.width / width, image.height / height)
    inner = (max(1, round(image.width / scale)), max(1, round(image.height / scale)))
    canvas = PIL.Image.new(image.mode, (width, height))
    canvas.paste(image.resize(inner, resample), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def to_array(image: PIL.Image.Image, pixels: PixelFormat) -> np.ndarray:
    """uint8 (C, H, W) of an opened image."""
    array = np.asarray(fit(to_8_bit(image, pixels.channels), pixels.size, pixels.resize_mode))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def decode(value: dict[str, Any], pixels: PixelFormat, name: str) -> np.ndarray:
    """uint8 (C, H, W) of an encoded image.

    Raises:
        UnreadableImage: it can't be decoded.
        BadInput: it has another size than the first and no `resolution` was asked for (the line names both sizes), or
            colour where the first is grey and no `channels` was asked for.
    """
    image = open_image(value, pixels)
    if pixels.only_grey and image.mode not in GREY_MODES:
        raise BadInput(
            f"the first image is grey and {image_name(value, name)} has colour ({image.mode}); choose --channels"
        )
    if pixels.resize_mode == "exact" and (image.height, image.width) != pixels.size:
        raise BadInput(
            f"images have several sizes: {pixels.size[0]}x{pixels.size[1]} and {image.height}x{image.width} "
            f"(height x width, {image_name(value, name)}); give them one with --resolution"
        )
    try:
        return to_array(image, pixels)
    except ValueError as error:
        raise UnreadableImage(f"mode {image.mode} can't be converted: {error}") from error


def decode_all(
    values: Iterable[dict[str, Any]], names: Sequence[str], pixels: PixelFormat, skip_unreadable: bool
) -> tuple[np.ndarray, list[tuple[int, str, str]]]:
    """Decodes images one after the other.

    Returns:
        uint8 (N, C, H, W) of the readable ones, and (position, name, reason) of each unreadable one.

    Raises:
        BadInput: an unreadable image, unless `skip_unreadable`.
    """
    images = np.empty((len(names), *pixels.shape), np.uint8)
    kept, unreadable = 0, []
    for position, (value, name) in enumerate(zip(values, names, strict=True)):
        try:
            images[kept] = decode(value, pixels, name)
            kept += 1
        except UnreadableImage as error:
            if not skip_unreadable:
                raise unreadable_input(image_name(value, name), str(error)) from error
            unreadable.append((position, image_name(value, name), str(error)))
    return images[:kept], unreadable


def unreadable_input(name: str, reason: str) -> BadInput:
    return BadInput(f"unreadable image: {name}: {reason}; mend or remove it, or pass over it: --skip_unreadable true")


def decoding_workers() -> int:
    """How many threads or processes decode at once: one a core that this process may use, 32 at most."""
    return min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
