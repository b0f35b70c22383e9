"""More than 8 bits a channel: one rule for grey and colours, and one white for a series where that is set."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.errors import ImageError
from pipeline.images.decode import DecodeLimits, decode_image
from tests.support.odd_images import HEIGHT, WIDTH, tiff


def encode(values, suffix=".png"):
    return cv2.imencode(suffix, values)[1].tobytes()


def frame(highest, channels):
    """From 0 to this value, 16 bits."""
    ramp = np.linspace(0, highest, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    return ramp if channels == 1 else np.repeat(ramp[..., None], channels, axis=2)


BY_THE_RULE = [(4095, None, 255), (4096, None, 16), (65535, None, 255), (255, None, 255), (256, None, 16), (0, None, 0)]
WITH_A_SET_WHITE = [
    (4095, 4095, 255),
    (9000, 4095, 255),
    (2047, 4095, 127),
    (4095, 65535, 16),
    (16383, 16383, 255),
    (1023, 1023, 255),
]


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colours"])
@pytest.mark.parametrize(
    ("highest", "white_level", "brightest"),
    [*BY_THE_RULE, *WITH_A_SET_WHITE],
)
def test_white(highest, white_level, brightest, channels):
    """12 bits in 16 are no dark picture; frames below and above 4095 differ sixteenfold unless a white is set."""
    bgr, _ = decode_image(encode(frame(highest, channels)), DecodeLimits(white_level=white_level))
    assert abs(int(bgr.max()) - brightest) <= 1
    assert bgr.min() == 0


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("white_level", [None, 4095, 65535])
def test_grey_and_colours_are_scaled_alike(white_level, suffix):
    """A coloured image whose channels are equal is the grey one."""
    for highest in (4095, 65535):
        grey, coloured = (
            decode_image(encode(frame(highest, channels), suffix), DecodeLimits(white_level=white_level))[0].astype(int)
            for channels in (1, 3)
        )
        assert np.abs(grey - coloured).max() <= 1


def test_lower_bits_that_cannot_be_read_are_reported():
    """Pillow returns the upper bytes alone: of 12 bits, 16 grey levels would be left."""
    data = tiff([np.full((HEIGHT, WIDTH), 4000, "<u2")] * 3, photometric=2, planar=2, deflated=True)
    for white_level in (None, 4095):
        with pytest.raises(ImageError, match="one after the other") as caught:
            decode_image(data, DecodeLimits(white_level=white_level))
        assert caught.value.code == "unsupported_image_format"
    assert decode_image(data, DecodeLimits(white_level=65535))[0].max() == 4000 // 256


def test_images_of_8_bits_have_one_white():
    """The setting is for wider ones."""
    values = frame(255, 3).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(encode(values), DecodeLimits(white_level=4095))[0], values)
