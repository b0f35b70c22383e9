"""Pixels that are decoded here are those that the service decodes from the same file."""

import numpy as np
from PIL import Image

from jobs.score_by_handle import read_image


def test_pixels_are_upright(tmp_path):
    """A photo stored sideways is turned as its EXIF orientation says; red stays red."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (20, 10), (200, 20, 10)).save(tmp_path / "turned.png", exif=turned)
    pixels = read_image(str(tmp_path / "turned.png"), as_pixels=True)
    assert pixels.shape == (20, 10, 3)
    assert pixels[0, 0].tolist() == [200, 20, 10]


def test_pixels_of_16_bits_are_scaled(tmp_path):
    """40000 of 65535 is a light grey, not white."""
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "deep.png")
    assert 150 < read_image(str(tmp_path / "deep.png"), as_pixels=True)[0, 0, 0] < 162
