"""Every kind of file becomes the pixels that one sees in a viewer."""

from io import BytesIO

import numpy as np
import PIL.Image
import pytest

from hfgen.data.decode import PixelFormat, UnreadableImage, decode, open_image
from hfgen.errors import BadInput


def stored(image: PIL.Image.Image, format: str = "PNG", **options) -> dict:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def own_size(image: PIL.Image.Image, channels: int) -> PixelFormat:
    return PixelFormat((image.height, image.width), channels, "exact")


def gradient(height: int = 4, width: int = 6) -> np.ndarray:
    return (np.arange(height)[:, None] * 40 + np.arange(width)[None] * 5).astype(np.uint8)


def test_grey_and_colour_keep_their_bytes():
    grey = PIL.Image.fromarray(gradient())
    np.testing.assert_array_equal(decode(stored(grey), own_size(grey, 1), "x"), gradient()[None])
    colour = np.stack([gradient(), gradient() + 1, 255 - gradient()], -1)
    image = PIL.Image.fromarray(colour)
    np.testing.assert_array_equal(decode(stored(image), own_size(image, 3), "x"), colour.transpose(2, 0, 1))


def test_grey_becomes_colour_by_repetition_and_colour_grey_by_luma():
    grey = PIL.Image.fromarray(gradient())
    np.testing.assert_array_equal(decode(stored(grey), own_size(grey, 3), "x"), np.stack([gradient()] * 3))
    red = PIL.Image.new("RGB", (2, 2), (255, 0, 0))
    assert decode(stored(red), own_size(red, 1), "x").tolist() == [[[76, 76], [76, 76]]]  # 0.299 * 255


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 32896], [65535, 40000, 128]], np.uint16)
    image = PIL.Image.fromarray(values)
    assert image.mode == "I;16"
    expected = np.round(values / 257).astype(np.uint8)
    assert expected.max() == 255
    np.testing.assert_array_equal(decode(stored(image), own_size(image, 1), "x")[0], expected)
    np.testing.assert_array_equal(decode(stored(image, "TIFF"), own_size(image, 3), "x"), np.stack([expected] * 3))


def test_transparency_is_laid_on_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [255, 0, 128]  # opaque, transparent and half transparent black
    image = PIL.Image.fromarray(rgba)
    assert decode(stored(image), own_size(image, 3), "x")[0].tolist() == [[0, 255, 127]]
    grey_alpha = image.convert("LA")
    assert decode(stored(grey_alpha), own_size(image, 1), "x").tolist() == [[[0, 255, 127]]]


def test_palette_with_a_transparent_colour():
    image = PIL.Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    value = stored(image, transparency=1)
    assert open_image(value, own_size(image, 3)).mode == "P"
    assert decode(value, own_size(image, 3), "x")[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]


def test_exif_orientation_turns_the_image_upright():
    image = PIL.Image.fromarray(gradient())
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was held with its right side down: show it turned clockwise
    value = stored(image, exif=exif)
    turned = decode(value, PixelFormat((6, 4), 1, "exact"), "x")
    np.testing.assert_array_equal(turned[0], np.rot90(gradient(), -1))


def test_crop_covers_the_target_and_cuts_the_centre():
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 200
    image = PIL.Image.fromarray(wide)
    assert (decode(stored(image), PixelFormat((4, 4), 1, "crop"), "x") == 200).all()
    assert decode(stored(image), PixelFormat((2, 4), 1, "crop"), "x").shape == (1, 2, 4)


def test_pad_fits_inside_with_black_around():
    image = PIL.Image.new("L", (8, 4), 100)
    padded = decode(stored(image), PixelFormat((8, 8), 1, "pad"), "x")[0]
    assert (padded[2:6] == 100).all() and (padded[:2] == 0).all() and (padded[6:] == 0).all()


def test_stretch_ignores_the_aspect_ratio():
    image = PIL.Image.fromarray(np.repeat([[0, 255]], 2, 0).astype(np.uint8))
    tall = decode(stored(image), PixelFormat((6, 2), 1, "stretch"), "x")[0]
    assert tall.tolist() == [[0, 255]] * 6


def test_large_jpeg_at_reduced_size_looks_like_full_decoding():
    smooth = np.add.outer(np.linspace(0, 120, 640), np.linspace(0, 120, 960)).astype(np.uint8)
    value = stored(PIL.Image.fromarray(smooth), "JPEG", quality=95)
    pixels = PixelFormat((32, 32), 1, "crop")
    assert open_image(value, pixels).size == (120, 80)  # decoded at an eighth
    full = PIL.Image.open(BytesIO(value["bytes"])).resize(
        (32, 32), PIL.Image.Resampling.BICUBIC, box=(160, 0, 800, 640)
    )
    difference = np.abs(decode(value, pixels, "x")[0].astype(int) - np.asarray(full))
    assert difference.max() <= 2
    assert open_image(value, PixelFormat((200, 300), 1, "crop")).size == (960, 640)  # less than four times: in full


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"not an image", lambda b: b""])
def test_damaged_files_are_unreadable(damage):
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8))
    with pytest.raises(UnreadableImage):
        decode({"bytes": damage(stored(image)["bytes"]), "path": None}, own_size(image, 1), "x")


def test_float_pixels_have_no_known_range():
    image = PIL.Image.fromarray(np.ones((2, 2), np.float32))
    with pytest.raises(UnreadableImage, match="8 or 16 bits"):
        decode(stored(image, "TIFF"), own_size(image, 1), "x")


def test_colour_after_a_grey_first_image_is_refused():
    pixels = PixelFormat(None, None, "crop").completed_by(1, 2, 2)
    assert pixels == PixelFormat((2, 2), 1, "exact", only_grey=True)
    with pytest.raises(BadInput, match="colour.*--channels"):
        decode(stored(PIL.Image.new("RGB", (2, 2))), pixels, "x")
