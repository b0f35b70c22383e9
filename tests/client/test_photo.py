"""A photo as the bytes of an image file: images of every mode; what is no photo is refused."""

import base64
import io

import numpy as np
import pytest
from rtmdet_ins_client.photo import bytes_of, file_of, is_url

from pipeline.images.decode import DecodeLimits, decode_image
from tests.support.odd_images import picture


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_files_of_every_mode(mode):
    """The service reads them, with the colours that Pillow sees."""
    image = picture().convert("RGBA").convert("RGBa") if mode == "RGBa" else picture().convert("P" if mode == "PA" else mode)
    image = image.convert(mode)
    pixels, _ = decode_image(file_of(image), DecodeLimits())
    seen = image.convert("RGBA") if mode == "RGBa" else image
    assert np.abs(pixels[..., ::-1].astype(int) - np.asarray(seen.convert("RGB"))).mean() < 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (np.zeros((9, 9, 3), np.uint8), "Image.fromarray.*not ndarray"),
        (io.BytesIO(), "not BytesIO"),
        (None, "not NoneType"),
        (base64.b64encode(bytes(9000)).decode(), "base64.b64decode"),
    ],
)
def test_what_is_not_a_photo_is_refused(given, says):
    """The message names its type and what to give instead."""
    with pytest.raises((TypeError, ValueError), match=says) as caught:
        bytes_of(given)
    assert len(str(caught.value)) < 200


def test_bytes_of_files_and_buffers(tmp_path):
    """A path as text or Path; any buffer."""
    (tmp_path / "a.jpg").write_bytes(b"photo")
    for given in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), b"photo", bytearray(b"photo"), memoryview(b"photo")):
        assert bytes_of(given) == b"photo"


@pytest.mark.parametrize(("text", "expected"), [("https://a/b", True), ("HTTP://a", True), ("a/http://", False), ("", False)])
def test_urls(text, expected):
    """By their scheme, in any case of letters."""
    assert is_url(text) is expected
