"""Differentiable augmentation of what the discriminator sees, real and generated alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadInput

# DiffAugment (Zhao et al. 2020, https://arxiv.org/abs/2006.10738) is meant for probability 1; the pipeline of ADA
# (Karras et al. 2020, https://arxiv.org/abs/2006.06676, appendix B) for one that adapts.
DIFFAUGMENT = ("color", "translation", "cutout")
ADA = ("blit", "geometry", "ada_color")

Draw = Callable[[], Tensor]


def augment(
    images: Tensor, policy: tuple[str, ...], probability: float | Tensor, generator: torch.Generator
) -> Tensor:
    """Augments each image by its own draw; gradients flow to `images`.

    DiffAugment's `color` (brightness, saturation, contrast), `translation` (whole pixels, up to 1/8 of the size, zeros
    move in) and `cutout` (a square of half the size becomes zero); ADA's `blit` (mirror, quarter turns, whole-pixel
    shifts), `geometry` (scaling, turns, stretching, shifts) and `ada_color` (brightness, contrast, luma flip, hue,
    saturation). ADA's moves are composed into one bilinear resampling that mirrors at the edge; the low-pass filter of
    its authors is left out. They are applied in this order, whatever order they are named in.

    Args:
        images: float (B, C, H, W) in [-1, 1]; the result may leave that range, as its authors' does.
        policy: names out of [`DIFFAUGMENT`] and [`ADA`].
        probability: of each transformation, drawn a sample; a float or a 0-d tensor in [0, 1]. Images that drew none
            stay what they are to the bit.
        generator: on the images' device.

    Raises:
        BadInput: a policy that does not exist.
    """
    check_policy(policy)
    if isinstance(probability, float | int) and probability <= 0:
        return images
    dice = _Dice(images, probability, generator)
    if "color" in policy:
        images = _color(images, dice)
    if "translation" in policy:
        images = _translation(images, dice)
    if "cutout" in policy:
        images = _cutout(images, dice)
    if "blit" in policy or "geometry" in policy:
        images = _moves(images, dice, "blit" in policy, "geometry" in policy)
    return _ada_color(images, dice) if "ada_color" in policy else images


def check_policy(policy: tuple[str, ...]) -> None:
    """Raises [`BadInput`] for a name that [`augment`] doesn't know."""
    unknown = [name for name in policy if name not in DIFFAUGMENT + ADA]
    if unknown:
        raise BadInput(f"augmentation {unknown[0]} does not exist; there are {', '.join(DIFFAUGMENT + ADA)}")


class AdaptiveProbability:
    """The probability of augmentation, steered by how much D overfits (Karras et al. 2020, section 3.1).

    D overfits as far as it tells its training images apart with certainty: r_t = E[sign(D(real))] is near 0 for a D
    that guesses and 1 for one that knows them all. Above `target` the probability rises, below it falls, at a pace
    that leads from 0 to 1 in `ramp_images` images.

    Args:
        target: of r_t.
        ramp_images: images over which the probability could go from 0 to 1 (the authors': 500,000).
        value: to start from.

    Raises:
        BadInput: a value out of its range.
    """

    def __init__(self, target: float = 0.6, ramp_images: int = 500_000, value: float = 0.0):
        if not -1 < target < 1:
            raise BadInput(f"ADA's target {target}: the mean of D's signs lies between -1 and 1")
        if ramp_images < 1:
            raise BadInput(f"ADA's ramp of {ramp_images} images: must be at least 1")
        if not 0 <= value <= 1:
            raise BadInput(f"ADA's probability {value}: must be from 0 to 1")
        self.target, self.ramp_images, self.value = target, ramp_images, float(value)

    def update(self, sign_mean: float, images_seen: int) -> float:
        """One adjustment.

        Args:
            sign_mean: mean of sign(D(real)) over the real images since the last update, in [-1, 1].
            images_seen: how many real images D saw since then.

        Returns:
            float: the new probability, in [0, 1].
        """
        direction = (sign_mean > self.target) - (sign_mean < self.target)
        self.value = min(1.0, max(0.0, self.value + direction * images_seen / self.ramp_images))
        return self.value

    def state_dict(self) -> dict[str, float]:
        """What a resumed run goes on from."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from [`state_dict`]."""
        self.value = float(state["value"])


class _Dice:
    """Draws for one batch, a value a sample: float (B,)."""

    def __init__(self, images: Tensor, probability: float | Tensor, generator: torch.Generator):
        self.count, self.device, self.generator = len(images), images.device, generator
        self.probability = probability

    def uniform(self, low: float, high: float) -> Tensor:
        return torch.rand(self.count, generator=self.generator, device=self.device) * (high - low) + low

    def normal(self, deviation: float) -> Tensor:
        return torch.randn(self.count, generator=self.generator, device=self.device) * deviation

    def integer(self, low: int, high: int) -> Tensor:
        """int64, `high` included."""
        return torch.randint(low, high + 1, (self.count,), generator=self.generator, device=self.device)

    def hit(self, probability: float | Tensor | None = None) -> Tensor:
        """bool: who is transformed."""
        return self.uniform(0, 1) < (self.probability if probability is None else probability)

    def some(self, values: Tensor, otherwise: float) -> Tensor:
        """`values` for those who are transformed, drawn after them."""
        return torch.where(self.hit(), values, otherwise)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype)[:, None, None, None]


# ---- DiffAugment ----------------------------------------------------------------------------------------------------


def _color(images: Tensor, dice: _Dice) -> Tensor:
    """Brightness +-0.5, saturation 0 to 2 times, contrast 0.5 to 1.5 times; one decision an image."""
    brightness, saturation, contrast = dice.uniform(-0.5, 0.5), dice.uniform(0, 2), dice.uniform(0.5, 1.5)
    hit = dice.hit()
    # All three are linear in the image: x -> a x + b mean over channels + c, with the image's own mean in c.
    a = _column(torch.where(hit, saturation * contrast, 1.0), images)
    mean = images.mean((1, 2, 3), keepdim=True)
    # Neither saturation nor contrast moves the image's mean, so brightness adds what it adds.
    offset = _column(torch.where(hit, 1 - contrast, 0.0), images) * mean
    offset = offset + _column(torch.where(hit, brightness, 0.0), images)
    if images.shape[1] == 1:
        return images * _column(torch.where(hit, contrast, 1.0), images) + offset
    grey = images.mean(1, keepdim=True)
    b = _column(torch.where(hit, contrast * (1 - saturation), 0.0), images)
    return torch.addcmul(grey * b + offset, images, a)


def _translation(images: Tensor, dice: _Dice) -> Tensor:
    """Whole-pixel shifts, drawn for height and width apart."""
    height, width = images.shape[2:]
    hit = dice.hit()
    by_y, by_x = _eighth(height), _eighth(width)
    down = torch.where(hit, dice.integer(-by_y, by_y), 0)
    right = torch.where(hit, dice.integer(-by_x, by_x), 0)
    # A batch of shift matrices: exact (its entries are 0 and 1), and on a CPU its gradient is faster than a gather's.
    return _shift_matrix(down, height, images)[:, None] @ images @ _shift_matrix(right, width, images)[:, None].mT


def _eighth(size: int) -> int:
    return int(size * 0.125 + 0.5)


def _shift_matrix(shift: Tensor, size: int, like: Tensor) -> Tensor:
    """(B, size, size): row i has its 1 at column i - shift."""
    at = torch.arange(size, device=shift.device)
    return (at[None, :, None] - shift[:, None, None] == at[None, None, :]).to(like.dtype)


def _cutout(images: Tensor, dice: _Dice) -> Tensor:
    """A square of half the size, which may reach over the edge."""
    masks = []
    for size in images.shape[2:]:
        half = int(size * 0.5 + 0.5)
        begin = dice.integer(0, size - half % 2) - half // 2
        at = torch.arange(size, device=images.device)
        masks.append((at >= begin[:, None]) & (at < begin[:, None] + half))
    inside = masks[0][:, :, None] & masks[1][:, None, :] & dice.hit()[:, None, None]
    return images * (~inside)[:, None].to(images.dtype)


# ---- ADA ------------------------------------------------------------------------------------------------------------


def _moves(images: Tensor, dice: _Dice, blit: bool, geometry: bool) -> Tensor:
    """Blits and geometry, composed into one resampling; who drew none keeps its pixels."""
    height, width = images.shape[2:]
    # From an output pixel to the input pixel it shows, both counted in pixels from the centre.
    inverse = torch.eye(3, device=images.device).repeat(dice.count, 1, 1)
    if blit:
        inverse = inverse @ _scaled(dice.some(1 - 2 * dice.integer(0, 1).float(), 1.0), 1.0)
        inverse = inverse @ _turned(dice.some(dice.integer(0, 3) * (math.pi / 2), 0.0))
        hit = dice.hit()
        right, down = (dice.uniform(-0.125, 0.125).mul(size).round() for size in (width, height))
        inverse = inverse @ _shifted(torch.where(hit, -right, 0.0), torch.where(hit, -down, 0.0))
    if geometry:
        # Two turns, each drawn so that at least one happens with the probability asked for.
        turn = 1 - (1 - torch.as_tensor(dice.probability, device=images.device).clamp(0, 1)).sqrt()
        scale = dice.some(torch.exp2(dice.normal(0.2)), 1.0)
        inverse = inverse @ _scaled(1 / scale, 1 / scale)
        inverse = inverse @ _turned(torch.where(dice.hit(turn), dice.uniform(-math.pi, math.pi), 0.0))
        stretch = dice.some(torch.exp2(dice.normal(0.2)), 1.0)
        inverse = inverse @ _scaled(1 / stretch, stretch)
        inverse = inverse @ _turned(torch.where(dice.hit(turn), dice.uniform(-math.pi, math.pi), 0.0))
        hit, right, down = dice.hit(), dice.normal(0.125 * width), dice.normal(0.125 * height)
        inverse = inverse @ _shifted(torch.where(hit, -right, 0.0), torch.where(hit, -down, 0.0))
    # affine_grid counts in half widths and half heights.
    half = torch.tensor([width / 2, height / 2, 1.0], device=images.device)
    theta = (inverse * half / half[:, None])[:, :2].to(images.dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    still = (inverse == torch.eye(3, device=images.device)).flatten(1).all(1)
    return torch.where(still[:, None, None, None], images, moved)


def _matrices(rows: list[list[Tensor | float]], like: Tensor) -> Tensor:
    full = torch.full_like(like, 0.0)
    return torch.stack([torch.stack([full + value for value in row], -1) for row in rows], 1)


def _scaled(x: Tensor, y: Tensor | float) -> Tensor:
    return _matrices([[x, 0, 0], [0, y, 0], [0, 0, 1]], x)


def _turned(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return _matrices([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], angle)


def _shifted(x: Tensor, y: Tensor) -> Tensor:
    return _matrices([[1, 0, x], [0, 1, y], [0, 0, 1]], x)


def _ada_color(images: Tensor, dice: _Dice) -> Tensor:
    """Colours as points (r, g, b, 1), and one 4x4 matrix an image."""
    channels = images.shape[1]
    brightness = dice.some(dice.normal(0.2), 0.0)
    contrast = dice.some(torch.exp2(dice.normal(0.5)), 1.0)
    flip = dice.some(dice.integer(0, 1).float(), 0.0)
    if channels == 1:
        # The luma flip of a grey image is its negative; hue and saturation are those of colours.
        sign = contrast * (1 - 2 * flip)
        return images * _column(sign, images) + _column(brightness * sign, images)
    eye = torch.eye(3, device=images.device)
    luma = torch.full((3, 1), 1 / math.sqrt(3), device=images.device)
    along = luma @ luma.T
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=images.device) / math.sqrt(3)
    hue = dice.some(dice.uniform(-math.pi, math.pi), 0.0)
    saturation = dice.some(torch.exp2(dice.normal(1.0)), 1.0)
    still = (flip == 0) & (hue == 0) & (saturation == 1)
    flip, hue, saturation = (values[:, None, None] for values in (flip, hue, saturation))
    # A turn about the grey axis (Rodrigues) after a reflection along it, then saturation across it.
    matrix = (along + hue.cos() * (eye - along) + hue.sin() * across) @ (eye - 2 * flip * along)
    matrix = (along + saturation * (eye - along)) @ matrix
    matrix = torch.where(still[:, None, None], eye, matrix)  # not rounded: who drew none is not to change
    matrix = (matrix * contrast[:, None, None]).to(images.dtype)
    offset = matrix @ brightness.to(images.dtype)[:, None, None].expand(-1, 3, 1)
    return torch.baddbmm(offset, matrix, images.flatten(2)).view_as(images)
