"""Loading from bytes and from arrays."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ImageError, LimitExceeded
from pipeline.images.decode import DecodeLimits, decode_stored
from pipeline.images.letterbox import scale_to_fit
from pipeline.images.load import load_image
from tests.support.odd_images import exif_of, stored_with

LIMITS = DecodeLimits(max_pixels=1_000_000)
RGB = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def test_bytes_and_array_agree() -> None:
    """A lossless file and its pixels load to the same image."""
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    from_bytes, from_array = load_image(file.getvalue(), LIMITS, 320), load_image(RGB, LIMITS, 320)
    np.testing.assert_array_equal(from_bytes.pixels, from_array.pixels)
    np.testing.assert_array_equal(from_array.pixels, scale_to_fit(RGB[:, :, ::-1].copy(), (48, 64), 320).pixels)
    assert from_bytes.letterbox == from_array.letterbox


def test_grey_and_strided_arrays() -> None:
    """Grey arrays become three equal channels; slices and flips of arrays are fine."""
    grey = load_image(RGB[:, :, 0], LIMITS, 320).pixels
    assert (grey[..., 0] == grey[..., 2]).all()
    flipped = load_image(RGB[::-2, ::-1], LIMITS, 64)
    assert flipped.letterbox.original_hw == (24, 64)
    np.testing.assert_array_equal(flipped.pixels, cv2.cvtColor(RGB[::-2, ::-1].copy(), cv2.COLOR_RGB2BGR))


WRONG = {
    "float": RGB.astype(np.float32),
    "four channels": np.zeros((4, 4, 4), np.uint8),
    "batch": RGB[None],
    "channels first": np.zeros((3, 48, 64), np.uint8),
    "one dimension": np.zeros(12, np.uint8),
    "scalar": np.array(3, np.uint8),
    "no rows": np.zeros((0, 4, 3), np.uint8),
    "bool": np.zeros((4, 4), bool),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_arrays(kind: str) -> None:
    """Other dtypes and shapes are refused as the caller's fault."""
    with pytest.raises(ImageError):
        load_image(WRONG[kind], LIMITS, 320)


def test_array_over_the_pixel_cap() -> None:
    """Arrays obey the cap too."""
    with pytest.raises(LimitExceeded, match="more than 1 megapixels"):
        load_image(np.zeros((1001, 1000), np.uint8), LIMITS, 320)


def waves(width=901, height=601):
    """Smooth stripes both ways: a shift of a tenth of a pixel shows."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray((128 + 60 * np.sin(x / 11)[..., None] + 60 * np.sin(y / 11)[..., None] * [1, 0.5, 0]).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_turned_photos_are_not_shifted(orientation):
    """A JPEG decoded at 1/4 whose sides are no multiple of 4 has its partial blocks at the right and below as stored, not as turned."""
    upright, turned = (stored_with(value, "JPEG", waves(), exif=exif_of(value)) for value in (1, orientation))
    limits = DecodeLimits()
    assert decode_stored(turned, limits, 220).bgr.shape[0] in (151, 226)
    first, second = (load_image(data, limits, 220) for data in (upright, turned))
    assert first.letterbox == second.letterbox
    assert np.abs(first.pixels.astype(int) - second.pixels).mean() < 1
