"""RLE computed without the mask, compared with the mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from pycocotools import mask as coco_mask

from pipeline.masks.rle import mask_logits_to_rle, mask_logits_to_runs, rle_to_mask
from tests.support.mask_examples import (
    ellipse_logits,
    full_size_logits,
    full_size_mask,
    letterbox_of,
    mask_logits_to_mask,
    rough_masks,
)

VGA = letterbox_of(480, 640)


@settings(max_examples=60)
@given(rough_masks())
def test_equals_the_full_size_mask(example):
    """Any logits: the runs are those of the dense mask, wherever the logit is not 0 to within rounding; the text is pycocotools'."""
    logits, letterbox = example
    mask = mask_logits_to_mask(logits, letterbox)
    reference = full_size_logits(logits, letterbox)
    clear = np.abs(reference) > 1e-5 * np.abs(reference).max()
    assert np.array_equal(mask[clear], reference[clear] > 0)
    rle = mask_logits_to_rle(logits, letterbox)
    assert np.array_equal(rle_to_mask(rle), mask)
    assert rle["counts"] == coco_mask.encode(np.asfortranarray(mask))["counts"].decode()


@settings(max_examples=20)
@given(rough_masks())
def test_runs_alternate_and_fill_the_image(example):
    """No empty run but the first, and their sum is the image."""
    logits, letterbox = example
    runs = mask_logits_to_runs(logits, letterbox)
    assert runs.sum() == np.prod(letterbox.original_hw)
    assert (runs[1:] > 0).all()


@pytest.mark.parametrize("hw", [(333, 5000), (5000, 333), (1500, 2000), (60, 20)])
def test_extreme_shapes(hw):
    """Wide, tall, large and tiny images: every pixel equal."""
    letterbox = letterbox_of(*hw)
    rows, columns = letterbox.mask_grid_hw
    logits = ellipse_logits(letterbox, (columns * 0.6, rows * 0.4, columns * 0.5, rows * 0.5), steep=0.7)
    assert np.count_nonzero(mask_logits_to_mask(logits, letterbox) != full_size_mask(logits, letterbox)) <= 2


@pytest.mark.parametrize(("value", "area"), [(-1, 0), (0, 0), (2, 480 * 640)], ids=["empty", "zero", "full"])
def test_uniform_masks(value, area):
    """Nothing and everything are encodable."""
    rle = mask_logits_to_rle(np.full(VGA.mask_grid_hw, value, np.float16), VGA)
    assert rle["size"] == [480, 640]
    assert isinstance(rle["counts"], str)
    assert coco_mask.area(rle) == area


def test_nan_and_infinity_do_not_crash():
    """Broken logits cost their own cells, not the instance."""
    logits = ellipse_logits(VGA, (40, 30, 20, 20))
    logits[25, 35], logits[30, 40] = np.nan, np.inf
    assert coco_mask.area(mask_logits_to_rle(logits, VGA)) > 70_000


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_a_window_between_two_pixel_centres(side):
    """Of an image that was enlarged a hundred times a mask may hold no pixel at all: no pixel is no error."""
    letterbox = letterbox_of(side, side)
    for cell in np.ndindex(9, 9):
        logits = np.full(letterbox.mask_grid_hw, -5, np.float16)
        logits[tuple(np.array(cell) * 10 % 80)] = 5
        assert mask_logits_to_runs(logits, letterbox).sum() == side * side
