"""Masks of a result, from polygons and from run lengths, and its size."""

import numpy as np
import pytest
from matplotlib.path import Path as Path2D
from PIL import Image, ImageColor
from pycocotools import mask as coco_mask
from rtmdet_ins_client import Found, Result
from rtmdet_ins_client import result as result_module


@pytest.mark.parametrize("height_width", [(100, 200), (7, 1), (1, 7)], ids=str)
def test_run_lengths_are_masks(height_width):
    """`mask_format="rle"`: of many short runs and of few long ones."""
    for share in (0, 0.02, 0.5, 1):
        mask = (np.random.default_rng(7).random(height_width) < share).astype(np.uint8)
        rle = coco_mask.encode(np.asfortranarray(mask))
        decoded = result_module._rle_to_mask({"size": rle["size"], "counts": rle["counts"].decode()})
        np.testing.assert_array_equal(np.asarray(decoded) > 0, mask > 0)


@pytest.mark.usefixtures("supervision")
def test_run_lengths_are_drawn_and_masks_for_supervision():
    """On a picture of another scale, too."""
    mask = np.zeros((100, 200), np.uint8)
    mask[60:, 100:] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    found = Found("person", 0.9, (0.5, 0.6, 1, 1), [], [], {"size": [100, 200], "counts": rle["counts"].decode()})
    drawn = np.asarray(Result([found], (200, 100)).draw(Image.new("RGB", (400, 200), (90, 90, 90))))
    assert tuple(drawn[180, 380]) != (90, 90, 90)
    assert tuple(drawn[180, 100]) == (90, 90, 90)
    np.testing.assert_array_equal(Result([found], (200, 100)).to_supervision().mask[0], mask > 0)


@pytest.mark.parametrize("radius", [3, 8, 40])
def test_polygons_fill_the_pixels_whose_centres_they_hold(radius):
    """Neither more nor fewer, over the picture's edge too: matplotlib's test of each centre."""
    random = np.random.default_rng(radius)
    for middle in ((50, 40), (2, 78), (98, 1)):
        angles, distances = np.sort(random.random(14)) * 2 * np.pi, radius * (0.5 + random.random(14))
        ring = np.array(middle) + random.random(2) + np.column_stack([np.cos(angles), np.sin(angles)]) * distances[:, None]
        hole = np.array(middle) + (ring - ring.mean(axis=0)) / 3
        found = Found("a", 0.9, (0, 0, 1, 1), [(ring / (100, 80)).ravel().tolist()], [(hole / (100, 80)).ravel().tolist()])
        y, x = np.mgrid[0:80, 0:100] + 0.5
        inside, in_hole = (
            Path2D(np.vstack([edge, edge[:1]])).contains_points(np.column_stack([x.ravel(), y.ravel()])) for edge in (ring, hole)
        )
        mask = np.asarray(Result([found], (100, 80))._mask(found)) > 0
        np.testing.assert_array_equal(mask, (inside & ~in_hole).reshape(80, 100))


def test_a_square_has_its_pixels():
    """Between pixels 10 and 20 there are ten."""
    found = Found("a", 0.9, (0, 0, 1, 1), [[0.1, 0.1, 0.2, 0.1, 0.2, 0.2, 0.1, 0.2, 0.1, 0.1]], [])
    mask = np.asarray(Result([found], (100, 100))._mask(found)) > 0
    assert mask.sum() == 100
    assert mask[10:20, 10:20].all()


def test_a_picture_has_outlines_and_tags():
    """In the colour of each object, the one with the highest score on top; the tag of an object at the photo's edge is in the photo."""
    rings = [[0.4, 0, 0.9, 0, 0.9, 0.5, 0.4, 0.5], [0.1, 0.3, 0.6, 0.3, 0.6, 0.8, 0.1, 0.8]]
    first, second = (
        Found("a", score, (*ring[:2], *ring[4:6]), [ring], []) for ring, score in zip(rings, (0.9, 0.8), strict=True)
    )
    drawn = Result([first, second], (200, 160)).draw(Image.new("RGB", (400, 320), (90, 90, 90)))
    assert drawn.size == (400, 320)
    colours = [ImageColor.getrgb(name) for name in result_module.COLOURS[:2]]
    assert [drawn.getpixel(at) for at in ((360, 100), (160, 120), (40, 200))] == [colours[0], colours[0], colours[1]]
    tags = [drawn.crop((*corner, corner[0] + 30, corner[1] + 10)) for corner in ((160, 0), (40, 96 - 14))]
    for tag, colour in zip(tags, colours, strict=True):
        assert dict(map(reversed, tag.getcolors()))[colour] > 50
        assert np.asarray(tag).sum(axis=-1).min() < 150
    alone = np.array(Result([first], (200, 160)).draw(Image.new("RGB", (400, 320), (90, 90, 90))))
    np.testing.assert_array_equal(np.array(drawn)[:80, 160:], alone[:80, 160:])


def test_an_unknown_size_is_reported():
    """Not taken for zero pixels; an answer without objects needs none."""
    found = Found("person", 0.9, (0, 0, 1, 1), [[0, 0, 1, 0, 1, 1]], [])
    assert Result([], (0, 0)).to_coco(1, {"person": 1}) == []
    with pytest.raises(ValueError, match="size of the photo is not known"):
        Result([found], (0, 0)).to_coco(1, {"person": 1})
