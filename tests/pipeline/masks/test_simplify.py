"""Fewer points, the same outline."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.masks.outline import Outline, mask_area, to_shapely
from tests.support.mask_examples import ellipse_logits, letterbox_of, rough_masks, simplify_outline, trace_outline

VGA = letterbox_of(480, 640)


def _points(outline: shapely.Geometry) -> int:
    return sum(len(ring.coords) - 1 for part in shapely.get_parts(outline) for ring in (part.exterior, *part.interiors))


@settings(max_examples=25)
@given(rough_masks(), st.floats(0.1, 10))
def test_stays_within_the_tolerance(example, tolerance_px):
    """No vertex is farther from the new outline than the tolerance, none is invented, no part is lost."""
    traced = trace_outline(*example)
    outline, simple = to_shapely(traced), to_shapely(simplify_outline(traced, tolerance_px))
    if outline.is_empty:
        assert simple.is_empty
        return
    assert simple.is_valid
    stride = 1 + shapely.get_num_coordinates(outline) // 300
    strays = shapely.distance(shapely.points(shapely.get_coordinates(outline)[::stride]), simple.boundary)
    assert strays.max() <= tolerance_px + 1e-6
    assert {*map(tuple, shapely.get_coordinates(simple))} <= {*map(tuple, shapely.get_coordinates(outline))}
    assert shapely.get_num_geometries(simple) == shapely.get_num_geometries(outline)


@settings(max_examples=25)
@given(rough_masks(), st.integers(3, 60), st.sampled_from([0.0, 1.0]))
def test_budget_is_kept(example, max_points, tolerance_px):
    """However rough the mask, its rings together have at most `max_points` vertices, and are valid."""
    traced = trace_outline(*example)
    outline, simple = to_shapely(traced), to_shapely(simplify_outline(traced, tolerance_px, max_points))
    assert _points(simple) <= max_points
    assert simple.is_valid
    assert simple.is_empty == outline.is_empty


def test_zero_keeps_every_vertex():
    """A tolerance of 0 changes nothing."""
    outline = trace_outline(ellipse_logits(VGA, (40, 30, 20, 20)), VGA)
    for before, after in zip(outline, simplify_outline(outline, 0), strict=True):
        np.testing.assert_array_equal(before, after)


def test_small_objects_keep_their_shape():
    """One pixel is a lot to a small blob: its tolerance shrinks with it."""
    outline = trace_outline(ellipse_logits(VGA, (40, 30, 1.5, 1.5)), VGA)
    assert mask_area(simplify_outline(outline, 1.0)) == pytest.approx(mask_area(outline), rel=0.02)


def _rings(*rings: list[tuple[float, float]]) -> Outline:
    """The first ring with the others as its holes."""
    ends = np.cumsum([0, *map(len, rings)])
    return Outline(np.concatenate(rings).astype(np.float64), ends, np.array([-1] + [0] * (len(rings) - 1)))


def _square(left: float, top: float, side: float) -> list[tuple[float, float]]:
    return [(left, top), (left + side, top), (left + side, top + side), (left, top + side)]


@pytest.mark.parametrize(("side", "points"), [(400, 4), (200, 4), (100, 5)])
def test_below_a_side_of_200_px_the_tolerance_shrinks_with_the_side(side, points):
    """A corner that is 0.6 px high."""
    roof = _rings([(0, 0), (side / 2, -0.6), (side, 0), (side, side), (0, side)])
    assert len(simplify_outline(roof, 1.0).points) == points


def test_a_ring_smaller_than_the_tolerance_keeps_three_points():
    simple = simplify_outline(_rings(_square(0, 0, 400), _square(200, 200, 10)), 20.0)
    assert len(simple.parents) == 2
    assert np.diff(simple.ends).min() >= 3


def test_a_hole_stays_inside():
    """In a bump that is lower than the tolerance: without it no line would cross another, but the hole would lie outside."""
    bump = _rings([(0, 0), (190, 0), (190, -15), (210, -15), (210, 0), (400, 0), (400, 400), (0, 400)], _square(199, -9, 4))
    assert to_shapely(bump).is_valid
    assert to_shapely(simplify_outline(bump, 20.0)).is_valid


def test_a_larger_tolerance_gives_fewer_points():
    """The setting keeps its effect at every size."""
    for radius in (2, 25):
        outline = trace_outline(ellipse_logits(VGA, (40, 30, radius, radius)), VGA)
        assert len(simplify_outline(outline, 1.0).points) > len(simplify_outline(outline, 8.0).points)


def test_an_outline_within_the_budget_is_left_alone():
    """Only outlines over the budget get coarser."""
    small = trace_outline(ellipse_logits(VGA, (40, 30, 2, 2)), VGA)
    greedy = trace_outline(ellipse_logits(VGA, (40, 30, 30, 6), (40, 30, 6, 28), (15, 10, 9, 4)), VGA)
    free = simplify_outline(small, 1.0)
    budget = len(free.points)
    np.testing.assert_array_equal(simplify_outline(small, 1.0, budget).points, free.points)
    assert len(simplify_outline(greedy, 1.0, budget).points) <= budget < len(simplify_outline(greedy, 1.0).points)


@settings(max_examples=40)
@given(st.integers(3, 40))
def test_an_island_goes_with_the_hole_that_did_not_fit(max_points):
    """Rings in rings: whatever the budget leaves, no part lies in another."""
    nested = ellipse_logits(VGA, (40, 30, 29, 29), (40, 30, -24, 24))
    for radius in (18, 6):
        nested = np.maximum(nested, ellipse_logits(VGA, (40, 30, radius, radius), (40, 30, -radius + 5, max(radius - 5, 1))))
    simple = to_shapely(simplify_outline(trace_outline(nested, VGA), 0.5, max_points))
    assert simple.is_valid
    assert _points(simple) <= max_points
