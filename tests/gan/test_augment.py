"""Augmentation for D by value: who drew nothing keeps its pixels, who drew something moves as the papers say."""

import math

import pytest
import torch

from hfgen.errors import BadInput
from hfgen.gan.augment import ADA, DIFFAUGMENT, AdaptiveProbability, _shift_matrix, augment

EVERYTHING = DIFFAUGMENT + ADA


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 32, channels: int = 3, height: int = 16, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=dice(seed)) * 2 - 1


@pytest.mark.parametrize("probability", [0, 0.0, torch.tensor(0.0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_changes_at_probability_0(probability, channels):
    images = pictures(channels=channels)
    assert torch.equal(augment(images, EVERYTHING, probability, dice()), images)
    assert torch.equal(augment(images, (), 1.0, dice()), images)


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_share_of_the_images_changes_and_the_others_stay_to_the_bit(name, channels):
    images = pictures(2000, channels, 8, 8)
    changed = (augment(images, (name,), 0.1, dice()) != images).flatten(1).any(1).float().mean().item()
    # What `name` consists of, as the chance that an image drew at least one (half the flips and a quarter of the
    # quarter turns change nothing, and of the shifts by -1, 0 or 1 pixel one in four).
    flip = 1 - 0.1 / 2
    keeps = {
        "color": 0.9,
        "translation": 1 - 0.1 * 8 / 9,
        "cutout": 0.9,
        "blit": flip * (1 - 0.1 * 3 / 4) * (1 - 0.1 * 3 / 4),
        "geometry": 0.9**4,
        "ada_color": 0.9**2 * flip * (0.9**2 if channels == 3 else 1),
    }
    assert changed == pytest.approx(1 - keeps[name], abs=0.03)


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_image_has_its_own_draw_and_the_generator_tells_which(name):
    images = pictures(1).repeat(24, 1, 1, 1)
    once, again = augment(images, (name,), 1.0, dice(3)), augment(images, (name,), 1.0, dice(3))
    assert torch.equal(once, again) and once.shape == images.shape and once.dtype == images.dtype
    assert not torch.equal(once, augment(images, (name,), 1.0, dice(4)))
    assert len({image.numpy().tobytes() for image in once}) > 12
    as_tensor = augment(images, (name,), torch.tensor(1.0), dice(3))
    assert torch.equal(once, as_tensor)


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_are_those_of_the_transformation(name, channels):
    images = pictures(4, channels, 6, 6).double().requires_grad_()
    out = torch.autograd.gradcheck(lambda x: augment(x, (name,), 0.7, dice(1)), images, atol=1e-6)
    assert out
    gradient = torch.autograd.grad(augment(images, (name,), 0.7, dice(1)).square().sum(), images)[0]
    assert gradient.flatten(1).abs().sum(1).min() > 0


def test_translation_is_by_whole_pixels_and_zeros_move_in():
    images = torch.rand(400, 2, 16, 24, generator=dice()) + 1
    moved = augment(images, ("translation",), 1.0, dice(1))
    shifts = set()
    for image, result in zip(images, moved, strict=True):
        # A row (column) of zeros on one side tells the shift.
        rows, columns = (result.abs().sum(axes) > 0 for axes in ((0, 2), (0, 1)))
        y = -int((~rows).sum()) if not rows[-1] else int((~rows).sum())
        x = -int((~columns).sum()) if not columns[-1] else int((~columns).sum())
        rolled = image.roll((y, x), (1, 2)) * (rows[:, None] & columns)
        assert torch.equal(result, rolled)
        shifts.add((y, x))
    assert {y for y, _ in shifts} == set(range(-2, 3)) and {x for _, x in shifts} == set(range(-3, 4))


def test_a_shift_matrix_moves_towards_the_end():
    column = torch.tensor([[1.0, 2, 3, 4]]).T
    matrix = _shift_matrix(torch.tensor([1, -2]), 4, column)
    assert torch.equal((matrix @ column)[..., 0], torch.tensor([[0.0, 1, 2, 3], [3, 4, 0, 0]]))


@pytest.mark.parametrize("size", [8, 9])
def test_cutout_zeroes_a_square_of_half_the_size_that_may_reach_over_the_edge(size):
    images = torch.ones(600, 3, size, size)
    cut = augment(images, ("cutout",), 1.0, dice())
    gone = cut[:, 0] == 0
    assert torch.equal(cut, (~gone)[:, None].expand(-1, 3, -1, -1).float())
    heights, widths = gone.any(2).sum(1), gone.any(1).sum(1)
    assert torch.equal(heights * widths, gone.sum((1, 2)))  # a rectangle
    half = int(size * 0.5 + 0.5)
    assert heights.max() == widths.max() == half and heights.min() == half - half // 2
    assert (gone.float().mean(0) > 0).all()


def test_color_is_brightness_saturation_contrast_in_that_order():
    images = pictures(64)
    changed = augment(images, ("color",), 1.0, dice(2))
    generator = dice(2)
    b, s, k = (torch.rand(64, generator=generator).view(-1, 1, 1, 1) for _ in range(3))
    x = images + (b - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (s * 2) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (k + 0.5) + mean
    torch.testing.assert_close(changed, x)


def test_blits_are_mirrors_quarter_turns_and_whole_pixel_shifts():
    """Of a square image, up to the edge that mirrors: one of 8 turns, shifted by up to 1/8."""
    images = pictures(48, 2)
    moved = augment(images, ("blit",), 1.0, dice())
    found = set()
    for image, result in zip(images, moved, strict=True):
        for turned in range(8):
            candidate = torch.rot90(image.flip(-1) if turned > 3 else image, turned % 4, (1, 2))
            for y in range(-2, 3):
                for x in range(-2, 3):
                    rolled = candidate.roll((y, x), (1, 2))[:, 2:-2, 2:-2]
                    if torch.allclose(result[:, 2:-2, 2:-2], rolled, atol=1e-4):
                        found.add((turned, y, x))
                        break
    assert len(found) > 24 and {turned for turned, *_ in found} == set(range(8))
    assert max(abs(y) for _, y, _ in found) == 2


def test_geometry_keeps_a_flat_image_flat_and_turns_without_a_shear():
    flat = torch.full((16, 1, 12, 20), 0.3)
    torch.testing.assert_close(augment(flat, ("geometry",), 1.0, dice()), flat)
    y, x = torch.meshgrid(torch.arange(128.0) - 63.5, torch.arange(128.0) - 63.5, indexing="ij")
    disc = torch.exp(-(x**2 + y**2) / 20)[None, None].repeat(400, 1, 1, 1)
    moved = augment(disc, ("geometry",), 1.0, dice())[:, 0]
    top = moved.flatten(1).argmax(1)
    x, y = x - (top % 128 - 63.5)[:, None, None], y - (top // 128 - 63.5)[:, None, None]
    # Shifts are normal with deviation 1/8 of the size; what would leave comes back mirrored.
    assert (top % 128 - 63.5).std() == pytest.approx(16, rel=0.2)
    assert (top // 128 - 63.5).std() == pytest.approx(16, rel=0.2)
    # The covariance of what is around the top has det = (10 scale^2)^2, whatever the turns and stretches.
    weight = moved * (x**2 + y**2 < 16**2)
    weight = weight / weight.sum((1, 2), keepdim=True)
    mean_x, mean_y = (weight * x).sum((1, 2)), (weight * y).sum((1, 2))
    xx, yy = (weight * x**2).sum((1, 2)) - mean_x**2, (weight * y**2).sum((1, 2)) - mean_y**2
    xy = (weight * x * y).sum((1, 2)) - mean_x * mean_y
    scale, stretched = (xx * yy - xy**2).pow(0.25) / math.sqrt(10), (xx + yy) ** 2 / 4 / (xx * yy - xy**2)
    assert scale.log2().median().abs() < 0.05 and scale.log2().std() == pytest.approx(0.2, rel=0.2)
    # Eigenvalues 10 scale^2 r^(+-2): half their sum over the root of their product is cosh(2 ln r).
    assert stretched.sqrt().acosh().div(2 * math.log(2)).square().mean().sqrt() == pytest.approx(0.2, rel=0.2)


def test_ada_color_moves_points_rigidly_along_and_about_the_grey_axis():
    """Differences between colours of one image: their part across the grey axis is scaled by contrast x saturation,
    the part along it by contrast (its sign by the luma flip)."""
    images = torch.zeros(400, 3, 2, 2)
    images[..., 0, 1] = torch.tensor([1.0, 1, 1])  # along
    images[..., 1, 0] = torch.tensor([1.0, -1, 0])  # across
    changed = augment(images, ("ada_color",), 1.0, dice())
    origin = changed[..., 0, 0]
    along, across = changed[..., 0, 1] - origin, changed[..., 1, 0] - origin
    assert (along.std(1) < 1e-5).all()
    assert (across.sum(1).abs() < 1e-4 * across.norm(dim=1).clamp_min(1)).all()
    contrast = along.mean(1)
    assert 0.4 < (contrast < 0).float().mean() < 0.6
    assert contrast.abs().log2().std() == pytest.approx(0.5, rel=0.15)
    saturation = across.norm(dim=1) / math.sqrt(2) / contrast.abs()
    assert saturation.log2().std() == pytest.approx(1.0, rel=0.15)
    brightness = (origin / contrast[:, None]).mean(1)
    assert brightness.std() == pytest.approx(0.2, rel=0.15) and (origin.std(1) < 1e-4).all()
    angle = torch.atan2(
        across @ torch.tensor([1.0, 1, -2]) / math.sqrt(6), across @ torch.tensor([1.0, -1, 0]) / 1.4142
    )
    assert angle.cos().mean().abs() < 0.15 and angle.std() == pytest.approx(math.pi / math.sqrt(3), rel=0.1)


def test_ada_color_of_grey_images_flips_and_stretches():
    images = torch.zeros(400, 1, 1, 2)
    images[..., 1] = 1
    changed = augment(images, ("ada_color",), 1.0, dice())
    slope = (changed[..., 1] - changed[..., 0]).flatten()
    assert 0.4 < (slope < 0).float().mean() < 0.6 and slope.abs().log2().std() == pytest.approx(0.5, rel=0.15)
    assert (changed[..., 0].flatten() / slope).std() == pytest.approx(0.2, rel=0.15)


def test_an_unknown_policy_is_named():
    with pytest.raises(BadInput, match="augmentation colour does not exist; there are color, translation, cutout"):
        augment(pictures(), ("color", "colour"), 1.0, dice())


def test_the_probability_follows_the_sign_of_the_overfitting():
    ada = AdaptiveProbability(target=0.6, ramp_images=1000)
    assert ada.value == 0
    assert ada.update(0.9, 256) == pytest.approx(0.256)  # D is too sure: up by images / ramp
    assert ada.update(0.61, 100) == pytest.approx(0.356)
    assert ada.update(0.6, 100) == pytest.approx(0.356)
    assert ada.update(0.2, 56) == pytest.approx(0.3)
    assert ada.update(-1.0, 10_000) == 0
    assert ada.update(1.0, 10_000) == 1
    other = AdaptiveProbability(target=0.6, ramp_images=1000)
    ada.update(0.0, 400)
    other.load_state_dict(ada.state_dict())
    assert other.update(1.0, 10) == ada.update(1.0, 10) == pytest.approx(0.61)


@pytest.mark.parametrize("options", [{"target": 1.0}, {"ramp_images": 0}, {"value": 1.5}])
def test_ada_checks_its_ranges(options):
    with pytest.raises(BadInput, match="ADA's .* must be|ADA's target .* lies between"):
        AdaptiveProbability(**options)
