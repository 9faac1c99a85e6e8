"""Random flips, rotation, translation and scale, a draw a sample, for a whole batch at once on its device."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadInput


@dataclass
class AugmentationArguments:
    """Which augmentations are on, and how strong; all are off by default.

    What moves in from outside the image is its mirror image, so that no black corners are learnt.

    Raises:
        BadInput: for a value out of its range.
    """

    random_flip: bool = field(default=False, metadata={"help": "Mirror left and right with probability 0.5."})
    random_vertical_flip: bool = field(default=False, metadata={"help": "Mirror top and bottom with probability 0.5."})
    random_rotation: float = field(default=0.0, metadata={"help": "Turn by up to this many degrees (0 to 180)."})
    random_translation: float = field(
        default=0.0, metadata={"help": "Shift by up to this fraction of height and width (0 to 1)."}
    )
    random_scale: float = field(
        default=0.0, metadata={"help": "Zoom by a factor from 1 - s to 1 + s, where s is this value (0 to below 1)."}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.random_rotation <= 180:
            raise BadInput(f"--random_rotation {self.random_rotation}: must be from 0 to 180 degrees")
        if not 0 <= self.random_translation <= 1:
            raise BadInput(f"--random_translation {self.random_translation}: must be a fraction from 0 to 1")
        if not 0 <= self.random_scale < 1:
            raise BadInput(f"--random_scale {self.random_scale}: must be at least 0 and below 1")


class ImageTransform:
    """Turns a batch that is on its device into what the networks take, augmented if asked.

    Args:
        augmentation: which augmentations are on; None means none.
    """

    def __init__(self, augmentation: AugmentationArguments | None = None):
        self.augmentation = augmentation or AugmentationArguments()

    def __call__(self, batch: dict[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Converts, and augments if `generator` is given (it must be on the batch's device).

        Args:
            batch: `pixel_values` (B, C, H, W), uint8 in 0..255 or floating point in [0, 1]; the rest is passed on.

        Returns:
            dict: a new batch, `pixel_values` float32 in [0, 1].
        """
        images = batch["pixel_values"]
        options = self.augmentation
        geometric = options.random_rotation or options.random_translation or options.random_scale
        flips = (options.random_flip or options.random_vertical_flip) and generator is not None
        if flips:
            horizontal = coin(images, generator) if options.random_flip else None
            vertical = coin(images, generator) if options.random_vertical_flip else None
            images = flip(images, horizontal, vertical)
        images = torch.mul(images, 1 / 255) if images.dtype == torch.uint8 else images.float()
        if geometric and generator is not None:
            angle = uniform(images, options.random_rotation, generator)
            shift_y = uniform(images, options.random_translation * images.shape[2], generator)
            shift_x = uniform(images, options.random_translation * images.shape[3], generator)
            scale = 1 + uniform(images, options.random_scale, generator)
            images = affine(images, angle, shift_y, shift_x, scale)
        return {**batch, "pixel_values": images}


def coin(images: Tensor, generator: torch.Generator) -> Tensor:
    """Heads or tails a sample: bool (B,)."""
    return torch.rand(len(images), generator=generator, device=images.device) < 0.5


def uniform(images: Tensor, limit: float, generator: torch.Generator) -> Tensor:
    """float32 (B,), uniform in [-limit, limit]; nothing is drawn where the limit is 0."""
    if limit == 0:
        return torch.zeros(len(images), device=images.device)
    return (torch.rand(len(images), generator=generator, device=images.device) * 2 - 1) * limit


def flip(images: Tensor, horizontal: Tensor | None, vertical: Tensor | None) -> Tensor:
    """Mirrors the chosen samples of (B, C, H, W), exactly; the masks are bool (B,)."""
    for mask, axis in ((horizontal, -1), (vertical, -2)):
        if mask is None:
            continue
        chosen, mirrored = mask[:, None, None, None], images.flip(axis)
        if images.dtype == torch.uint8:  # bit by bit, which takes a quarter of torch.where's time on bytes
            bits = chosen.to(torch.uint8) * 255
            images = mirrored.bitwise_xor_(images).bitwise_and_(bits).bitwise_xor_(images)
        else:
            images = torch.where(chosen, mirrored, images)
    return images


def affine(images: Tensor, angle: Tensor, shift_y: Tensor, shift_x: Tensor, scale: Tensor) -> Tensor:
    """Scales about the centre, then turns, then shifts, in one bilinear resampling.

    Args:
        images: float (B, C, H, W).
        angle: degrees, counter-clockwise as seen, (B,).
        shift_y: pixels downwards, (B,).
        shift_x: pixels to the right, (B,).
        scale: factor, above 0, (B,).

    Returns:
        Tensor: float (B, C, H, W). Positions outside the image are mirrored at its edge.
    """
    height, width = images.shape[2:]
    cos, sin = torch.cos(torch.deg2rad(angle)) / scale, torch.sin(torch.deg2rad(angle)) / scale
    # For output pixel (x, y) from the centre: which input pixel? In pixels, so that a turn doesn't shear:
    # x_in = cos * (x - shift_x) - sin * (y - shift_y),  y_in = sin * (x - shift_x) + cos * (y - shift_y)
    # (y points down). grid_sample counts in half widths and half heights, hence the ratios.
    row_x = [cos, -sin * (height / width), (-cos * shift_x + sin * shift_y) * (2 / width)]
    row_y = [sin * (width / height), cos, (-sin * shift_x - cos * shift_y) * (2 / height)]
    theta = torch.stack([torch.stack(row_x, -1), torch.stack(row_y, -1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
