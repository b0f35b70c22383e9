"""Outlines in all their forms; masks inside their box are the masks that pycocotools reads and writes."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask
from rtmdet_ins_client import result as client_result

from jobs.annotations.outlines import (
    OutlineError,
    box_mask_to_rle,
    combine_by_xor,
    outline_box_xywh,
    outline_to_rings,
    outline_to_rle,
    reach_beyond,
    read_outline,
    rle_to_box_mask,
)
from tests.support.mask_examples import decode_rle

MASKS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 1))
POINTS = st.lists(st.lists(st.integers(-20, 100).map(float), min_size=2, max_size=2), min_size=3, max_size=5)
FORMS = {
    "flat": lambda points: [number for point in points for number in point],
    "text": lambda points: [str(number) for point in points for number in point],
    "points": lambda points: points,
    "x and y": lambda points: [{"x": x, "y": y} for x, y in points],
    "OpenCV's contours": lambda points: [[point] for point in points],
    "in a list more": lambda points: [points],
}


@pytest.mark.parametrize("form", FORMS)
@given(rings=st.lists(POINTS, min_size=1, max_size=4))
def test_every_form_of_polygons_is_read_alike(form, rings):
    """Any number of them; a single one without a list around it, too."""
    expected = [FORMS["flat"](points) for points in rings]
    given_rings = [FORMS[form](points) for points in rings]
    assert read_outline(given_rings, (48, 64)) == (expected, 0)
    assert read_outline(given_rings[0], (48, 64)) == (expected[:1], 0)


def read_or_refused(counts, runs, size_hw):
    """Whether counts are read as these runs if they fill the photo, and else refused; `runs` is None if they are no run lengths."""
    try:
        outline, short = read_outline({"size": list(size_hw), "counts": counts}, size_hw)
    except OutlineError:
        return runs is None or min(runs) < 0 or sum(runs) != np.prod(size_hw)
    mask = np.repeat(np.arange(len(runs)) % 2, runs).reshape(size_hw[::-1]).T
    return short == 0 and (decode_rle(outline) == mask).all()


@given(st.lists(st.integers(-2, 5), min_size=1, max_size=6))
def test_run_lengths_that_do_not_fill_the_photo_are_refused(runs):
    """Negative ones too: pycocotools would take them for huge ones."""
    assert read_or_refused(runs, runs, (2, 3))


@given(MASKS, st.integers(0, 200), st.integers(46, 113).map(chr), st.integers(0, 2))
def test_damaged_counts_are_refused(mask, place, character, replaced):
    """Compressed run lengths with a character put in or exchanged are read as they are written, or not at all."""
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    place %= len(counts) + 1
    damaged = counts[:place] + character + counts[place + replaced :]
    valid = all("0" <= one <= "o" for one in damaged) and not ord(damaged[-1]) - 48 & 32
    assert read_or_refused(damaged, client_result._runs(damaged) if valid else None, mask.shape)


@given(
    st.lists(st.tuples(st.integers(-8, 16), st.integers(-8, 12), st.integers(1, 24), st.integers(1, 20)), min_size=1, max_size=3)
)
def test_rings_for_training_fill_the_pixels_of_the_polygons(boxes_xywh):
    """By the even-odd rule, those inside the photo; the box around the polygons ends at the photo's edge."""
    size_hw = height, width = 12, 16
    outline = [[float(n) for n in (x, y, x + w, y, x + w, y + h, x, y + h)] for x, y, w, h in boxes_xywh]
    united = np.zeros(size_hw, np.uint8)
    for x, y, w, h in boxes_xywh:
        united[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = 1
    rings = outline_to_rings(outline, size_hw)
    assert all(0 <= x <= width and 0 <= y <= height for ring in rings for x, y in np.reshape(ring, (-1, 2)))
    drawn = [decode_rle(rle) for rle in coco_mask.frPyObjects(rings, *size_hw)] if rings else [np.zeros_like(united)]
    np.testing.assert_array_equal(np.bitwise_xor.reduce(drawn), united)
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes_xywh])
    left, top, right, bottom = [*corners[:, :2].min(0), *corners[:, 2:].max(0)]
    beyond = max(-left, -top, right - width, bottom - height, 0)
    assert reach_beyond(outline, size_hw) == beyond / 16
    x, y, w, h = outline_box_xywh(outline, size_hw)
    assert [x, x + w] == np.clip([left, right], 0, width).tolist()
    assert [y, y + h] == np.clip([top, bottom], 0, height).tolist()


@given(MASKS)
def test_a_mask_inside_its_box_and_back(mask):
    rle = coco_mask.encode(np.asfortranarray(mask))
    box = rle_to_box_mask(rle)
    whole = np.zeros_like(mask)
    whole[box.top : box.top + box.mask.shape[0], box.left : box.left + box.mask.shape[1]] = box.mask
    assert (whole == mask).all()
    assert box_mask_to_rle(box, mask.shape) == {"size": list(mask.shape), "counts": rle["counts"].decode()}


def test_runs_of_no_length():
    """As some tools write them."""
    rle = outline_to_rle({"size": [4, 3], "counts": [2, 0, 3, 2, 0, 1, 2, 0, 2]}, (4, 3))
    box = rle_to_box_mask(rle)
    expected = np.zeros(12, np.uint8)
    expected[5:8] = 1
    whole = np.zeros((4, 3), np.uint8)
    whole[box.top : box.top + box.mask.shape[0], box.left : box.left + box.mask.shape[1]] = box.mask
    assert (whole == expected.reshape(3, 4).T).all()


def test_rings_within_rings_are_holes():
    """By XOR; a third one is an island. Rings that share no pixel stay polygons."""
    rings = [[x, x, 40 - x, x, 40 - x, 40 - x, x, 40 - x] for x in (2.0, 8.0, 14.0)]
    drawn = [decode_rle(rle) for rle in coco_mask.frPyObjects(rings, 50, 60)]
    assert (decode_rle(combine_by_xor(rings, (50, 60))) == drawn[0] ^ drawn[1] ^ drawn[2]).all()
    apart = [rings[2], [x + 30 for x in rings[2]]]
    assert combine_by_xor(apart, (80, 80)) == apart


def test_a_small_object_of_a_large_photo_needs_little_memory():
    """A mask of the photo would be 48 MB, and there may be thousands of objects."""
    size_hw = (6000, 8000)
    rle = outline_to_rle([[3000.0, 2000.0, 3030.0, 2000.0, 3015.0, 2030.0]], size_hw)
    tracemalloc.start()
    box = rle_to_box_mask(rle)
    again = box_mask_to_rle(box, size_hw)
    (ring,) = outline_to_rings({"size": list(size_hw), "counts": again["counts"]}, size_hw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert coco_mask.area(again) == coco_mask.area(rle) == box.mask.sum() > 400
    assert (min(ring[::2]), max(ring[::2])) == (3000.25, 3029.75)
    assert peak < 4e6
