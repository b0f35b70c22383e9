"""Masks inside their box are the masks that pycocotools reads and writes."""

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from jobs.annotations.outlines import box_mask_to_rle, combine_by_xor, outline_to_rings, outline_to_rle, rle_to_box_mask
from tests.support.mask_examples import decode_rle

MASKS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 1))


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
    """By XOR; a third one is an island."""
    rings = [[x, x, 40 - x, x, 40 - x, 40 - x, x, 40 - x] for x in (2.0, 8.0, 14.0)]
    drawn = [decode_rle(rle) for rle in coco_mask.frPyObjects(rings, 50, 60)]
    assert (decode_rle(combine_by_xor(rings, (50, 60))) == drawn[0] ^ drawn[1] ^ drawn[2]).all()


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
