"""The picture of the result."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.masks.draw import draw_overlay, text_font
from pipeline.types import SegmentedObject

SQUARE = SegmentedObject((0.3, 0.3, 0.8, 0.8), "box", 0.9, [[0.3, 0.3, 0.8, 0.3, 0.8, 0.8, 0.3, 0.8]])


def test_fills_the_object_and_leaves_the_rest():
    """The middle is tinted, the far corner untouched, the given image unchanged."""
    photo = Image.new("RGB", (400, 300), (90, 90, 90))
    picture = np.asarray(draw_overlay(photo, [SQUARE]))
    assert picture.shape == (300, 400, 3)
    assert tuple(picture[-1, -1]) == (90, 90, 90)
    assert tuple(picture[170, 220]) != (90, 90, 90)
    assert photo.getextrema() == ((90, 90), (90, 90), (90, 90))


def test_hole_stays_clear():
    """Pixels in a hole are not tinted."""
    hole = [[0.5, 0.5, 0.6, 0.5, 0.6, 0.6, 0.5, 0.6]]
    item = SegmentedObject(SQUARE.box, "box", 0.9, SQUARE.polygon, holes=hole)
    picture = np.asarray(draw_overlay(Image.new("RGB", (1000, 1000), (90, 90, 90)), [item]))
    assert tuple(picture[550, 550]) == (90, 90, 90)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (20, 400)])
def test_any_image(mode, size):
    """Any mode and tiny sizes are drawn on, also an object without outline."""
    objects = [SQUARE, SegmentedObject((0, 0, 1, 1), "box", 0.5, [])]
    assert draw_overlay(Image.new(mode, size), objects).size == size


def test_run_lengths_are_filled():
    """An object without polygon is drawn by its mask, holes stay clear, at any scale of the photo."""
    mask = np.zeros((100, 200), np.uint8, order="F")
    mask[20:80, 40:160] = 1
    mask[40:60, 80:120] = 0
    encoded = coco_mask.encode(mask)
    item = SegmentedObject((0.2, 0.2, 0.8, 0.8), "ring", 0.9, [], rle={"size": [100, 200], "counts": encoded["counts"].decode()})
    picture = np.asarray(draw_overlay(Image.new("RGB", (800, 400), (90, 90, 90)), [item]))
    assert tuple(picture[200, 240]) != (90, 90, 90)
    assert tuple(picture[200, 400]) == (90, 90, 90)
    assert tuple(picture[200, 100]) == (90, 90, 90)


def test_other_tags():
    """What is written can be chosen; without, it is label and score."""
    photo = Image.new("RGB", (400, 300), (90, 90, 90))
    plain, same, other = (np.asarray(draw_overlay(photo, [SQUARE], tags)) for tags in (None, ["box 90%"], ["box: missed"]))
    assert (plain == same).all()
    assert (plain != other).any()


@pytest.mark.parametrize("text", ["boîte", "Über", "ящик", "κουτί"])
def test_letters_beyond_ascii_are_drawn(text):
    """Not as the box of a letter that the font lacks."""
    font = text_font([text], 20)
    missing = bytes(font.getmask("\U0010ffff"))
    assert all(bytes(font.getmask(letter)) != missing for letter in text)
