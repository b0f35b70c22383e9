"""The picture of the result."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.masks.draw import _colour, _readable_on, _tag_position, draw_overlay, text_font
from pipeline.types import SegmentedObject

GREY = (90, 90, 90)


def _square(left, top, right, bottom):
    return SegmentedObject((left, top, right, bottom), "box", 0.9, [[left, top, right, top, right, bottom, left, bottom]])


def _drawn(side_px, objects, tags=None, colour=GREY):
    return np.asarray(draw_overlay(Image.new("RGB", (side_px, side_px), colour), objects, tags)).astype(int)


SQUARE = _square(0.3, 0.3, 0.8, 0.8)


def test_fills_the_object_and_leaves_the_rest():
    """The object is tinted up to the line around its edge, the rest and the given image are unchanged."""
    photo = Image.new("RGB", (1200, 960), GREY)
    picture = np.asarray(draw_overlay(photo, [_square(0.25, 0.25, 0.5, 0.75)], [" "]))
    assert picture.shape == (960, 1200, 3)
    colour = np.array(_colour(0))
    where = np.full((960, 1200), "out", object)
    where[240 - 5 : 720 + 5, 300 - 5 : 600 + 5] = "edge"
    where[240 + 5 : 720 - 5, 300 + 5 : 600 - 5] = "in"
    where[240 - 1 : 240 + 1, 300:600] = where[720 - 1 : 720 + 1, 300:600] = "line"
    where[240:720, 300 - 1 : 300 + 1] = where[240:720, 600 - 1 : 600 + 1] = "line"
    where[:250] = "tag"
    for place, wanted in (("out", GREY), ("in", np.round(GREY + (colour - GREY) * 0.38)), ("line", colour)):
        assert (picture[where == place] == wanted).all(), place
    assert picture[500, 600:606].max(1).max() > 245  # the white edge of the line
    assert photo.getextrema() == ((90, 90), (90, 90), (90, 90))


def test_lines_lie_on_the_edge():
    """Not half a pixel beside it: a square in the middle looks the same from both sides."""
    for item in (_square(0.25, 0.25, 0.75, 0.75), _run_lengths(mask=np.ones((50, 50)), around=25)):
        picture = _drawn(800, [item], [" "])[210:]
        assert np.abs(picture - picture[:, ::-1]).max() <= 8


def test_the_highest_score_is_on_top():
    picture = _drawn(960, [_square(0.25, 0.25, 0.75, 0.75)] * 2, [" ", " "])
    assert tuple(picture[500, 719]) == _colour(0)


def test_lines_and_text_grow_with_the_image():
    """An object without an area: with four times as many pixels, lines and text have four times as many."""
    box = SegmentedObject((0.25, 0.25, 0.75, 0.75), "box", 0.9, [])
    sizes = [(_drawn(side_px, [box]) != GREY).any(2) for side_px in (960, 1920)]
    for part in (slice(0.0, 0.24), slice(0.26, 1.0)):
        few, many = (size[int(part.start * len(size)) : int(part.stop * len(size))].sum() for size in sizes)
        assert 3 < many / few < 5


def test_colours_are_told_apart():
    colours = np.array([_colour(n) for n in range(8)])
    assert ((colours >= 0) & (colours <= 255)).all()
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=2) + 1000 * np.eye(8)
    assert apart.min() > 90
    assert np.diag(apart, 1).min() > 250


def test_text_is_readable_on_every_colour():
    """A contrast of at least 4.5, as WCAG 2 asks for."""

    def luminance(colour):
        return np.dot(np.power(np.divide(colour, 255), 2.2), (0.2126, 0.7152, 0.0722)) + 0.05

    for colour in map(_colour, range(100)):
        light = sorted([luminance(colour), luminance(_readable_on(colour))])
        assert light[1] / light[0] > 4.5


def test_a_tag_lies_above_its_object_around_its_text():
    picture = _drawn(960, [_square(0.25, 0.5, 0.75, 0.75)], ["MOM"], colour=(254, 254, 254))[: 480 - 5]
    (top, bottom), (left, right) = (
        (line.min(), line.max()) for line in np.nonzero((picture != 254).any(2) & (picture != 255).any(2))
    )
    assert (left - 240, 480 - bottom) == pytest.approx((0, 0), abs=6)
    rows, columns = np.nonzero((picture < 60).all(2))
    assert columns.min() - left == pytest.approx(right - columns.max(), abs=3)
    assert rows.min() - top == pytest.approx(bottom - rows.max(), abs=3)
    assert 6 <= columns.min() - left <= 14


sides = st.floats(1, 60)


@given(st.lists(st.tuples(sides, sides, st.floats(-50, 250), st.floats(-50, 450)), max_size=8), st.integers(100, 5000))
def test_tags_do_not_overlap(tags, height):
    """As long as the picture has room below, and always inside it; one alone lies at its object's corner."""
    taken = []
    for tag_width, tag_height, x, y in tags:
        tag = _tag_position((tag_width, tag_height), (x, y), (200, height), taken)
        left, top, right, bottom = tag
        assert (right - left, bottom - top) == pytest.approx((tag_width, tag_height))
        assert 0 <= left <= right <= 200 + 1e-6
        assert 0 <= top <= bottom <= height + 1e-6
        assert left == pytest.approx(min(max(x, 0), 200 - tag_width))
        wanted = min(max(y - tag_height, 0), height - tag_height)
        overlapped = [other for other in taken if shapely.box(*tag).intersection(shapely.box(*other)).area > 1e-6]
        if overlapped:
            assert max(bottom for *_, bottom in overlapped) + 1 + tag_height > height - 1e-6
        assert top == pytest.approx(wanted) or any(top == pytest.approx(other[3] + 1) for other in taken)
        taken.append(tag)


@pytest.mark.parametrize(("count", "width", "has_tags"), [(20, 0.02, True), (21, 0.02, False), (21, 0.9, True)])
def test_many_objects_have_tags_only_where_they_are_as_wide(count, width, has_tags):
    picture = _drawn(960, [_square(0.05, 0.5, 0.05 + width, 0.9)] * count)
    assert (picture[:470] != GREY).any() == has_tags


def test_an_empty_picture():
    """No objects, as above a threshold that none reaches."""
    assert (_drawn(100, []) == GREY).all()


def test_hole_stays_clear():
    """Pixels in a hole are not tinted."""
    hole = [[0.5, 0.5, 0.6, 0.5, 0.6, 0.6, 0.5, 0.6]]
    item = SegmentedObject(SQUARE.box, "box", 0.9, SQUARE.polygon, holes=hole)
    picture = np.asarray(draw_overlay(Image.new("RGB", (1000, 1000), GREY), [item]))
    assert tuple(picture[550, 550]) == GREY


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (20, 400)])
def test_any_image(mode, size):
    """Any mode and tiny sizes are drawn on, also an object without outline."""
    objects = [SQUARE, SegmentedObject((0, 0, 1, 1), "box", 0.5, [])]
    assert draw_overlay(Image.new(mode, size), objects).size == size


def _run_lengths(mask, around=0):
    mask = np.asfortranarray(np.pad(mask, around).astype(np.uint8))
    encoded = coco_mask.encode(mask)
    rle = {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    return SegmentedObject((0.2, 0.2, 0.8, 0.8), "ring", 0.9, [], rle=rle)


def test_run_lengths_are_filled():
    """An object without polygon is drawn by its mask, holes stay clear, at any scale of the photo."""
    mask = np.zeros((100, 200))
    mask[20:80, 40:160] = 1
    mask[40:60, 80:120] = 0
    picture = np.asarray(draw_overlay(Image.new("RGB", (800, 400), GREY), [_run_lengths(mask)]))
    assert tuple(picture[200, 240]) != GREY
    assert tuple(picture[200, 400]) == GREY
    assert tuple(picture[200, 100]) == GREY


def test_other_tags():
    """What is written can be chosen; without, it is label and score."""
    photo = Image.new("RGB", (400, 300), GREY)
    plain, same, other = (np.asarray(draw_overlay(photo, [SQUARE], tags)) for tags in (None, ["box 90%"], ["box: missed"]))
    assert (plain == same).all()
    assert (plain != other).any()


@pytest.mark.parametrize("text", ["boîte", "Über", "ящик", "κουτί"])
def test_letters_beyond_ascii_are_drawn(text):
    """Not as the box of a letter that the font lacks."""
    font = text_font([text], 20)
    missing = bytes(font.getmask("\U0010ffff"))
    assert all(bytes(font.getmask(letter)) != missing for letter in text)
