"""Augmentation by value: each image moves as its own draw says, and nothing else changes."""

import pytest
import torch

from hfgen.data import AugmentationArguments, ImageTransform
from hfgen.data.augment import affine
from hfgen.errors import BadInput


def batch(count: int = 6, channels: int = 3, height: int = 8, width: int = 8, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)
    return {"pixel_values": images, "labels": torch.arange(count)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def move(images: torch.Tensor, angle=0.0, shift_y=0.0, shift_x=0.0, scale=1.0) -> torch.Tensor:
    return affine(images, *(torch.full((len(images),), float(value)) for value in (angle, shift_y, shift_x, scale)))


def test_conversion_to_unit_range():
    inputs = batch()
    images = ImageTransform()(inputs)["pixel_values"]
    assert images.dtype == torch.float32
    exact = torch.arange(256).double() / 255
    levels = ImageTransform()({"pixel_values": torch.arange(256, dtype=torch.uint8)})["pixel_values"]
    torch.testing.assert_close(levels.double(), exact, atol=1e-7, rtol=0)
    assert levels[0] == 0 and levels[255] == 1
    assert torch.equal(images, levels[inputs["pixel_values"].long()])
    floats = {"pixel_values": images.double()}
    assert torch.equal(ImageTransform()(floats)["pixel_values"], images)


def test_nothing_is_drawn_where_nothing_is_on_and_nothing_happens_without_a_generator():
    inputs, draws = batch(), generator()
    before = draws.get_state()
    plain = ImageTransform(AugmentationArguments())(inputs, draws)["pixel_values"]
    assert torch.equal(draws.get_state(), before)
    everything = AugmentationArguments(True, True, 30, 0.2, 0.2)
    assert torch.equal(ImageTransform(everything)(inputs, None)["pixel_values"], plain)
    assert not torch.equal(ImageTransform(everything)(inputs, draws)["pixel_values"], plain)


@pytest.mark.parametrize("option, axis", [("random_flip", -1), ("random_vertical_flip", -2)])
def test_flips_are_exact_per_sample_and_their_own_inverse(option, axis):
    inputs = batch(64)
    transform = ImageTransform(AugmentationArguments(**{option: True}))
    plain = ImageTransform()(inputs)["pixel_values"]
    once = transform(inputs, generator(3))["pixel_values"]
    flipped = (once == plain.flip(axis)).flatten(1).all(1)
    kept = (once == plain).flatten(1).all(1)
    assert torch.equal(flipped, ~kept) and 16 < flipped.sum() < 48
    assert torch.equal(transform({"pixel_values": once}, generator(3))["pixel_values"], plain)


def test_both_flips_are_drawn_apart():
    inputs = {"pixel_values": torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2).repeat(64, 1, 1, 1)}
    transform = ImageTransform(AugmentationArguments(random_flip=True, random_vertical_flip=True))
    corners = (transform(inputs, generator())["pixel_values"][:, 0, 0, 0] * 255).round()
    assert set(corners.tolist()) == {0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize("height, width", [(8, 8), (7, 7)])
def test_quarter_turns_are_rot90(height, width):
    images = batch(2, 3, height, width)["pixel_values"].float() / 255
    for turns in (1, 2, 3, -1):
        torch.testing.assert_close(
            move(images, angle=90 * turns), torch.rot90(images, turns, (2, 3)), atol=1e-5, rtol=0
        )


def test_turning_an_oblong_image_does_not_shear():
    images = batch(2, 1, 6, 10)["pixel_values"].float() / 255
    half = torch.rot90(images, 2, (2, 3))
    torch.testing.assert_close(move(images, angle=180), half, atol=1e-5, rtol=0)
    middle = torch.rot90(images[:, :, :, 2:8], 1, (2, 3))  # the square in the centre turns within the canvas
    torch.testing.assert_close(move(images, angle=90)[:, :, :, 2:8], middle, atol=1e-5, rtol=0)
    # What is round stays round at any angle, as far as the image goes.
    y, x = torch.meshgrid(torch.arange(32.0) - 15.5, torch.arange(64.0) - 31.5, indexing="ij")
    disc = torch.exp(-(x**2 + y**2) / 50)[None, None]
    inside = (x**2 + y**2 < 15**2).expand(1, 1, -1, -1)
    torch.testing.assert_close(move(disc, angle=33)[inside], disc[inside], atol=0.012, rtol=0)  # bilinear: h^2 f''/8


@pytest.mark.parametrize("dy, dx", [(2, 0), (0, 3), (-1, 2)])
def test_whole_pixel_shift_is_a_roll_away_from_the_border(dy, dx):
    images = batch(2, 3, 6, 10)["pixel_values"].float() / 255
    shifted, rolled = move(images, shift_y=dy, shift_x=dx), images.roll((dy, dx), (2, 3))
    inner = (..., slice(max(dy, 0), 6 + min(dy, 0)), slice(max(dx, 0), 10 + min(dx, 0)))
    torch.testing.assert_close(shifted[inner], rolled[inner], atol=1e-5, rtol=0)


def test_what_comes_in_at_the_border_is_the_mirror_image():
    row = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 1, 1, 4).repeat(1, 1, 2, 1)
    torch.testing.assert_close(move(row, shift_x=2)[0, 0, 0], torch.tensor([0.2, 0.1, 0.1, 0.2]))


def test_scale_enlarges_about_the_centre():
    images = torch.zeros(1, 1, 8, 12)
    images[..., 3:5, 5:7] = 1
    enlarged = move(images, scale=2)
    expected = torch.zeros(1, 1, 8, 12)
    expected[..., 2:6, 4:8] = 1
    assert torch.equal(enlarged > 0.5, expected > 0.5)
    # Bilinear, from centres half as far apart: the edge is a ramp of 1/4 and 3/4.
    torch.testing.assert_close(enlarged[0, 0, 4], torch.tensor([0, 0, 0, 0.25, 0.75, 1, 1, 0.75, 0.25, 0, 0, 0]))


def test_scaling_then_turning_then_shifting():
    images = batch(1, 1, 16, 16)["pixel_values"].float() / 255
    at_once = move(images, angle=90, shift_y=1, shift_x=-2, scale=1)
    step_by_step = torch.rot90(images, 1, (2, 3)).roll((1, -2), (2, 3))
    torch.testing.assert_close(at_once[..., 1:, :-2], step_by_step[..., 1:, :-2], atol=1e-5, rtol=0)


def test_draws_are_per_sample_repeatable_and_leave_the_rest_alone():
    one = batch(1)["pixel_values"]
    inputs = {"pixel_values": one.repeat(16, 1, 1, 1), "labels": torch.arange(16), "caption": ["x"] * 16}
    before = inputs["pixel_values"].clone()
    for options in ({"random_rotation": 20.0}, {"random_translation": 0.2}, {"random_scale": 0.3}):
        transform = ImageTransform(AugmentationArguments(**options))
        first, again = transform(inputs, generator(5)), transform(inputs, generator(5))
        assert torch.equal(first["pixel_values"], again["pixel_values"])
        assert not torch.equal(first["pixel_values"], transform(inputs, generator(6))["pixel_values"])
        assert len({image.numpy().tobytes() for image in first["pixel_values"]}) == 16
        assert torch.equal(first["labels"], torch.arange(16)) and first["caption"] == ["x"] * 16
    assert torch.equal(inputs["pixel_values"], before)


def test_draws_stay_in_their_ranges():
    """A bright dot tells where it was moved to."""
    images = torch.zeros(256, 1, 41, 81)
    images[..., 20, 40] = 1
    y, x = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(81.0) - 40, indexing="ij")
    moved = ImageTransform(AugmentationArguments(random_translation=0.1))({"pixel_values": images}, generator())
    mass = moved["pixel_values"].sum((1, 2, 3))
    centre_y = (moved["pixel_values"][:, 0] * y).sum((1, 2)) / mass
    centre_x = (moved["pixel_values"][:, 0] * x).sum((1, 2)) / mass
    assert centre_y.abs().max() <= 4.1 + 1e-3 and centre_y.min() < -3.5 and centre_y.max() > 3.5
    assert centre_x.abs().max() <= 8.1 + 1e-3 and centre_x.min() < -7 and centre_x.max() > 7
    assert abs(torch.corrcoef(torch.stack([centre_x, centre_y]))[0, 1]) < 0.2


@pytest.mark.parametrize(
    "options", [{"random_rotation": 181}, {"random_rotation": -1}, {"random_translation": 1.5}, {"random_scale": 1.0}]
)
def test_ranges_are_checked(options):
    with pytest.raises(BadInput, match=f"--{next(iter(options))} {next(iter(options.values()))}: must be"):
        AugmentationArguments(**options)
