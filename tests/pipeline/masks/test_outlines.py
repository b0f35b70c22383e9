"""Flat arrays against shapely's own geometry."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import shapely
from hypothesis import given, settings

from pipeline.masks.contours import trace_outlines
from pipeline.masks.outlines import Outlines
from tests.support.mask_examples import rough_masks


def _square(left: float, top: float, side: float) -> list[tuple[float, float]]:
    return [(left, top), (left + side, top), (left + side, top + side), (left, top + side)]


@pytest.fixture
def outlines() -> Outlines:
    """Three masks: a square with two holes and a small square beside it; nothing; a triangle."""
    rings = [_square(0, 0, 10), _square(1, 1, 2), _square(5, 5, 3), _square(20, 0, 1), [(0, 0), (4, 0), (0, 4)]]
    counts = [len(ring) for ring in rings]
    return Outlines(
        np.concatenate([np.array(ring, float) for ring in rings]),
        np.cumsum([0, *counts]),
        np.array([0, 3, 4, 5]),
        np.array([0, 2, 2, 3]),
    )


def test_shapely_sees_the_same_geometry(outlines):
    """Parts, holes, empty masks and areas."""
    first, nothing, triangle = outlines.to_shapely()
    square = shapely.Polygon(_square(0, 0, 10), [_square(1, 1, 2), _square(5, 5, 3)])
    assert first.equals(shapely.MultiPolygon([square, shapely.Polygon(_square(20, 0, 1))]))
    assert nothing.is_empty
    assert triangle.equals(shapely.MultiPolygon([shapely.Polygon([(0, 0), (4, 0), (0, 4)])]))
    assert outlines.areas() == pytest.approx(shapely.area(outlines.to_shapely()))
    assert outlines.ring_areas() == pytest.approx([100, 4, 9, 1, 8])


def test_closed_rings_end_where_they_begin(outlines):
    """Every point of a ring in order, then its first again."""
    around, ends = outlines.closed()
    rings = [around[first:end].tolist() for first, end in itertools.pairwise(ends)]
    assert rings[-2:] == [[12, 13, 14, 15, 12], [16, 17, 18, 16]]


def test_take_keeps_the_order_asked_for(outlines):
    """Masks come as asked, with the places of their points."""
    taken, points = outlines.take(np.array([2, 1, 0]))
    for one, expected in zip(taken.to_shapely(), outlines.to_shapely()[::-1], strict=True):
        assert one.equals(expected)
    np.testing.assert_array_equal(outlines.points[points], taken.points)


def test_a_ring_without_points_is_gone(outlines):
    """A hole alone goes alone; a part goes with its outer ring, its holes too; the mask stays, empty."""
    kept = np.ones(len(outlines.points), dtype=bool)
    kept[4:8] = False  # the first hole
    kept[16:] = False  # the triangle
    first, _, triangle = outlines.keep(kept).to_shapely()
    assert [len(part.interiors) for part in first.geoms] == [1, 0]
    assert triangle.is_empty
    kept[:] = True
    kept[:4] = False  # the large square, but not its holes
    assert outlines.keep(kept).areas() == pytest.approx([1, 0, 8])


@settings(max_examples=40, deadline=None)
@given(rough_masks())
def test_filled_covers_the_outer_rings_and_no_more(example):
    """However rough the masks: no hole left, no part in another, and the same area as all outer rings together."""
    logits, letterbox = example
    traced = trace_outlines(np.stack([logits, logits[::-1], np.full_like(logits, -1)]), letterbox)
    before, after = traced.to_shapely(), traced.filled().to_shapely()
    assert shapely.is_valid(after).all()
    for one, filled in zip(before, after, strict=True):
        outers = [shapely.Polygon(part.exterior) for part in one.geoms]
        assert all(not part.interiors for part in filled.geoms)
        assert filled.area == pytest.approx(shapely.union_all(outers).area)


def test_filled_leaves_other_masks_alone(outlines):
    """What lies in another mask's hole stays."""
    small = Outlines(np.array(_square(6, 6, 1), float), np.array([0, 4]), np.array([0, 1]), np.array([0, 1]))
    both = Outlines(
        np.concatenate([outlines.points, small.points]),
        np.append(outlines.ring_ends, outlines.ring_ends[-1] + 4),
        np.append(outlines.part_ends, outlines.part_ends[-1] + 1),
        np.append(outlines.mask_ends, outlines.mask_ends[-1] + 1),
    )
    assert both.filled().areas() == pytest.approx([101, 0, 8, 1])


def test_nothing_at_all():
    """No masks, or masks without parts, are no special case."""
    zero = np.zeros(1, np.int64)
    empty = Outlines(np.empty((0, 2)), zero, zero, np.zeros(3, np.int64))
    assert empty.areas().tolist() == [0, 0]
    assert [one.is_empty for one in empty.to_shapely()] == [True, True]
    taken, points = empty.take(np.array([1]))
    assert (len(taken.mask_ends), len(points)) == (2, 0)
    assert len(empty.keep(np.empty(0, bool)).mask_ends) == 3
    assert len(empty.filled().mask_ends) == 3
    assert len(Outlines(np.empty((0, 2)), zero, zero, zero).to_shapely()) == 0
