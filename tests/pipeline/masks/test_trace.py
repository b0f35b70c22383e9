"""Outlines traced from logits, against the full-size mask."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.raster import rings_to_mask
from pipeline.errors import ShapeError
from pipeline.masks.outline import find_holes, mask_area, to_shapely
from tests.support.mask_examples import (
    all_rings,
    ellipse_logits,
    full_size_mask,
    iou,
    letterbox_of,
    mask_logits_to_rings,
    rough_masks,
    trace_outline,
)

VGA = letterbox_of(480, 640)


@settings(max_examples=40)
@given(rough_masks(), st.sampled_from([0.0, 0.5, 2.0, 20.0]))
def test_any_logits_give_valid_rings_inside_the_image(example, tolerance_px):
    """Noise, exact zeros and saddles: rings are simple, hold their holes, do not cross, and stay in the image."""
    logits, letterbox = example
    rings = mask_logits_to_rings(logits, letterbox, tolerance_px)
    polygons = [shapely.Polygon(ring.points, ring.holes) for ring in rings]
    assert all(shapely.is_valid(polygons))
    assert shapely.MultiPolygon(polygons).is_valid
    for points in all_rings(rings):
        assert len(points) >= 3
        assert points.dtype == np.float64
        assert (points >= 0).all()
        assert (points <= letterbox.original_hw[::-1]).all()


@pytest.mark.parametrize("corners", list(itertools.permutations([-64, 64, 1.2e-6, -1e-6])))
def test_parts_that_touch_at_a_corner(corners):
    """The sum of these four logits depends on their order; a ring once never came back to its start, and the process ended."""
    letterbox = letterbox_of(170, 170, 176)
    logits = np.full(letterbox.mask_grid_hw, -1, np.float16)
    logits[2:11, 11:20] = logits[11:20, 2:11] = 1
    logits[10:12, 10:12] = np.reshape(corners, (2, 2))
    outline = to_shapely(trace_outline(logits, letterbox))
    assert outline.is_valid
    assert outline.area == pytest.approx(2 * 72 * 72, rel=0.15)


@settings(max_examples=25)
@given(
    st.tuples(*(st.floats(0, 80), st.floats(0, 60), st.floats(2, 30), st.floats(2, 30))),
    st.sampled_from([(480, 640), (1200, 1600), (375, 500), (64, 640), (640, 64)]),
)
def test_blob_matches_the_full_size_mask(ellipse, hw):
    """One blob anywhere, over any border: IoU with the full-size mask and area agree."""
    letterbox = letterbox_of(*hw)
    logits = ellipse_logits(letterbox, ellipse)
    mask = full_size_mask(logits, letterbox)
    if mask.sum() < 200:
        return
    rings = mask_logits_to_rings(logits, letterbox)
    assert iou(rings_to_mask(all_rings(rings), hw), mask) >= 0.99
    outline = shapely.MultiPolygon([shapely.Polygon(ring.points, ring.holes) for ring in rings])
    network_pixel = max(*letterbox.to_original_xy, 1.0)  # off by a fifth of it along the whole edge, at most
    assert outline.area == pytest.approx(mask.sum(), abs=0.2 * network_pixel * outline.length + 2)


@pytest.mark.parametrize("hw", [(480, 640), (312, 645), (315, 722)], ids=str)
def test_full_image_is_one_rectangle(hw):
    """A mask everywhere positive is the image itself, corner to corner, whatever rounding the scale causes; no point comes twice."""
    letterbox, (height, width) = letterbox_of(*hw), hw
    logits = np.full(letterbox.mask_grid_hw, 3, np.float16)
    traced = trace_outline(logits, letterbox).points
    assert len(traced) == len(np.unique(traced, axis=0))
    (ring,) = mask_logits_to_rings(logits, letterbox, tolerance_px=0.5)
    assert sorted(map(tuple, ring.points.tolist())) == [(0, 0), (0, height), (width, 0), (width, height)]


@pytest.mark.parametrize("hw", [(480, 640), (3000, 4000), (333, 5000), (5000, 333), (100, 30)])
def test_ring_closes_exactly_at_the_border(hw):
    """A band across the image touches the left and right border exactly, whatever the scale rounds to."""
    letterbox = letterbox_of(*hw)
    rows, columns = letterbox.mask_grid_hw
    logits = np.full((rows, columns), -4, np.float16)
    logits[: max(rows // 2, 1)] = 4
    (ring,) = mask_logits_to_rings(logits, letterbox)
    assert ring.points[:, 0].min() == 0
    assert ring.points[:, 0].max() == hw[1]
    assert ring.points[:, 1].min() == 0


def test_hole_is_a_hole():
    """A ring-shaped mask gives one part with one hole."""
    logits = ellipse_logits(VGA, (40, 30, 20, 20), (40, 30, -8, 8))
    (ring,) = mask_logits_to_rings(logits, VGA)
    (hole,) = ring.holes
    assert shapely.Polygon(ring.points).contains(shapely.Polygon(hole))
    assert iou(rings_to_mask(all_rings([ring]), (480, 640)), full_size_mask(logits, VGA)) > 0.995


def test_parts_come_largest_first():
    """Several parts are ordered by the area of their outer ring."""
    logits = ellipse_logits(VGA, (8, 8, 3, 3), (50, 30, 12, 12), (20, 45, 6, 6))
    areas = [shapely.Polygon(ring.points).area for ring in mask_logits_to_rings(logits, VGA, 1.0)]
    assert len(areas) == 3
    assert areas == sorted(areas, reverse=True)


def test_one_cell_is_a_diamond():
    """A single positive cell has an outline around its centre."""
    logits = np.full(VGA.mask_grid_hw, -2, np.float16)
    logits[10, 20] = 2
    (ring,) = mask_logits_to_rings(logits, VGA)
    assert ring.points.mean(axis=0) == pytest.approx([20.5 * 8, 10.5 * 8], abs=0.5)


@pytest.mark.parametrize("value", [-3.0, 0.0, np.nan, -np.inf], ids=["negative", "zero", "nan", "minus infinity"])
def test_nothing_inside_gives_no_ring(value):
    """Only logits above zero are inside."""
    assert mask_logits_to_rings(np.full(VGA.mask_grid_hw, value, np.float16), VGA) == []


def test_nan_and_infinity_do_not_crash():
    """Broken logits cost their own cells, not the instance."""
    logits = ellipse_logits(VGA, (40, 30, 20, 20))
    logits[25, 35], logits[30, 40], logits[2, 2] = np.nan, np.inf, -np.inf
    (ring,) = mask_logits_to_rings(logits, VGA)
    assert np.isfinite(ring.points).all()


def test_part_below_one_pixel_is_dropped():
    """What no pixel mask could show is not an object."""
    logits = np.full(VGA.mask_grid_hw, -60, np.float16)
    logits[10, 20] = 0.5
    assert mask_logits_to_rings(logits, VGA) == []


def test_large_and_small_masks_keep_their_places():
    """Fine and coarse windows, holes and empty masks."""
    grid = np.full((5, *VGA.mask_grid_hw), -4, np.float16)
    grid[0, 5:50, 5:70] = 4
    grid[0, 20:30, 20:40] = -4
    grid[1, 2:5, 70:74] = 4
    grid[3, 40:60, 30:79] = 4
    grid[4, 0:1, 0:1] = 4
    outlines = [trace_outline(logits, VGA) for logits in grid]
    areas = np.array([mask_area(outline) for outline in outlines]) / 64
    assert areas == pytest.approx([45 * 65 - 200, 12, 0, 20 * 49, 1], rel=0.05, abs=0.5)
    assert [find_holes(outline.parents).tolist() for outline in outlines] == [[False, True], [False], [], [False], [False]]


def _trace(logits, letterbox, fill_holes=False):
    return to_shapely(trace_outline(logits, letterbox, fill_holes=fill_holes))


@settings(max_examples=40)
@given(rough_masks())
def test_filled_covers_the_outer_rings_and_no_more(example):
    """However rough the mask: no hole left, no part in another, and the same area as all outer rings together."""
    logits, letterbox = example
    for one in (logits, logits[::-1], np.full_like(logits, -1), logits[:, ::-1]):
        one = np.ascontiguousarray(one)
        traced, filled = _trace(one, letterbox), _trace(one, letterbox, fill_holes=True)
        assert traced.is_valid
        assert filled.is_valid
        assert not any(part.interiors for part in filled.geoms)
        assert filled.area == pytest.approx(shapely.union_all([shapely.Polygon(part.exterior) for part in traced.geoms]).area)


def test_a_hole_across_a_corner_is_filled_too():
    """A hole whose end touches, at the corner of a sample only, a bay that is open to the outside."""
    logits = np.full(VGA.mask_grid_hw, -4, np.float16)
    logits[5:50, 5:70] = 4
    logits[20, 20:40] = -0.1
    logits[5:20, 40] = -0.1
    traced, filled = _trace(logits, VGA), _trace(logits, VGA, fill_holes=True)
    assert [len(part.interiors) for part in traced.geoms] == [1]
    assert [len(part.interiors) for part in filled.geoms] == [0]
    assert filled.area == pytest.approx(shapely.Polygon(traced.geoms[0].exterior).area)


def test_rings_know_what_is_around_them():
    """Rings in rings, two steps deep, and two parts beside each other."""
    logits = ellipse_logits(VGA, (30, 30, 28, 28), (30, 30, -20, 20))
    logits = np.maximum(logits, ellipse_logits(VGA, (30, 30, 12, 12), (30, 30, -6, 6), (70, 30, 5, 5)))
    outline = trace_outline(logits, VGA)
    assert sorted(outline.parents.tolist()) == [-1, -1, 0, 1, 2] or sorted(outline.parents.tolist()) == [-1, -1, 0, 2, 3]
    assert find_holes(outline.parents).sum() == 2
    assert to_shapely(outline).is_valid


@pytest.mark.parametrize("logits", [np.zeros((5, 5), np.float16), np.zeros(VGA.mask_grid_hw, np.float32)], ids=["shape", "dtype"])
def test_wrong_grid_is_refused(logits):
    """The message prints what was expected and what came."""
    with pytest.raises(ShapeError, match="expected float16"):
        mask_logits_to_rings(logits, VGA)
