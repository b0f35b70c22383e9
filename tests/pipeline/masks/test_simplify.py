"""Fewer points, the same outline."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.masks.contours import trace_outlines
from pipeline.masks.simplify import simplify_outlines
from tests.support.mask_examples import ellipse_logits, letterbox_of, rough_masks

VGA = letterbox_of(480, 640)


def _points(outline: shapely.Geometry) -> int:
    return sum(len(ring.coords) - 1 for part in shapely.get_parts(outline) for ring in (part.exterior, *part.interiors))


@settings(max_examples=25, deadline=None)
@given(rough_masks(), st.floats(0.1, 10))
def test_stays_within_the_tolerance(example, tolerance_px):
    """No vertex is farther from the new outline than the tolerance, none is invented, no part is lost."""
    traced = trace_outlines(example[0][None], example[1])
    outlines, simple = traced.to_shapely(), simplify_outlines(traced, tolerance_px).to_shapely()
    if outlines[0].is_empty:
        assert simple[0].is_empty
        return
    assert simple[0].is_valid
    stride = 1 + shapely.get_num_coordinates(outlines[0]) // 300
    strays = shapely.distance(shapely.points(shapely.get_coordinates(outlines[0])[::stride]), simple[0].boundary)
    assert strays.max() <= tolerance_px + 1e-6
    assert {*map(tuple, shapely.get_coordinates(simple[0]))} <= {*map(tuple, shapely.get_coordinates(outlines[0]))}
    assert shapely.get_num_geometries(simple[0]) == shapely.get_num_geometries(outlines[0])


@settings(max_examples=25, deadline=None)
@given(rough_masks(), st.integers(3, 60), st.sampled_from([0.0, 1.0]))
def test_budget_is_kept(example, max_points, tolerance_px):
    """However rough the mask, its rings together have at most `max_points` vertices, and are valid."""
    traced = trace_outlines(example[0][None], example[1])
    (outline,) = traced.to_shapely()
    (simple,) = simplify_outlines(traced, tolerance_px, max_points).to_shapely()
    assert _points(simple) <= max_points
    assert simple.is_valid
    assert simple.is_empty == outline.is_empty


def test_zero_keeps_every_vertex():
    """A tolerance of 0 changes nothing."""
    outlines = trace_outlines(ellipse_logits(VGA, (40, 30, 20, 20))[None], VGA)
    for before, after in zip(outlines, simplify_outlines(outlines, 0), strict=True):
        np.testing.assert_array_equal(before, after)


def test_small_objects_keep_their_shape():
    """One pixel is a lot to a small blob: its tolerance shrinks with it."""
    outlines = trace_outlines(ellipse_logits(VGA, (40, 30, 1.5, 1.5))[None], VGA)
    simple = simplify_outlines(outlines, 1.0)
    assert simple.areas() == pytest.approx(outlines.areas(), rel=0.02)


def test_a_larger_tolerance_gives_fewer_points():
    """The setting keeps its effect at every size."""
    outlines = trace_outlines(np.stack([ellipse_logits(VGA, (40, 30, radius, radius)) for radius in (2, 25)]), VGA)
    fine, coarse = simplify_outlines(outlines, 1.0), simplify_outlines(outlines, 8.0)
    assert [_points(a) > _points(b) for a, b in zip(fine.to_shapely(), coarse.to_shapely(), strict=True)] == [True, True]


def test_one_greedy_instance_leaves_its_neighbours_alone():
    """Only outlines over the budget get coarser."""
    masks = np.stack([ellipse_logits(VGA, (40, 30, 2, 2)), ellipse_logits(VGA, (40, 30, 30, 6), (40, 30, 6, 28), (15, 10, 9, 4))])
    outlines = trace_outlines(masks, VGA)
    free = simplify_outlines(outlines, 1.0).to_shapely()
    budget = _points(free[0])
    bounded = simplify_outlines(outlines, 1.0, budget).to_shapely()
    assert bounded[0].equals_exact(free[0])
    assert _points(bounded[1]) <= budget < _points(free[1])


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 40))
def test_an_island_goes_with_the_hole_that_did_not_fit(max_points):
    """Rings in rings: whatever the budget leaves, no part lies in another."""
    nested = ellipse_logits(VGA, (40, 30, 29, 29), (40, 30, -24, 24))
    for radius in (18, 6):
        nested = np.maximum(nested, ellipse_logits(VGA, (40, 30, radius, radius), (40, 30, -radius + 5, max(radius - 5, 1))))
    (simple,) = simplify_outlines(trace_outlines(nested[None], VGA), 0.5, max_points).to_shapely()
    assert simple.is_valid
    assert _points(simple) <= max_points
