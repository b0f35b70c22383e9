"""Rings in flat arrays against shapely's own geometry."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from pipeline.masks.outline import Outline, find_holes, fit_rings, keep_rings, mask_area, ring_areas, to_shapely


def _square(left: float, top: float, side: float) -> list[tuple[float, float]]:
    return [(left, top), (left + side, top), (left + side, top + side), (left, top + side)]


def _outline(rings: list[list[tuple[float, float]]], parents: list[int]) -> Outline:
    points = np.array([point for ring in rings for point in ring], np.float64).reshape(-1, 2)
    return Outline(points, np.cumsum([0, *map(len, rings)]), np.array(parents, np.int64))


@pytest.fixture
def outline() -> Outline:
    """A square with two holes, in the second of which lies a smaller square with a hole; and a triangle beside it."""
    rings = [
        _square(0, 0, 20),
        _square(1, 1, 2),
        _square(5, 5, 9),
        _square(6, 6, 6),
        _square(7, 7, 1),
        [(30, 0), (34, 0), (30, 4)],
    ]
    return _outline(rings, [-1, 0, 0, 2, 3, -1])


NOTHING = _outline([], [])


def test_shapely_sees_the_same_geometry(outline):
    """Parts, holes, parts in holes, areas."""
    expected = shapely.MultiPolygon(
        [
            (_square(0, 0, 20), [_square(1, 1, 2), _square(5, 5, 9)]),
            (_square(6, 6, 6), [_square(7, 7, 1)]),
            ([(30, 0), (34, 0), (30, 4)], []),
        ]
    )
    assert to_shapely(outline).equals(expected)
    assert find_holes(outline.parents).tolist() == [False, True, True, False, True, False]
    assert ring_areas(outline) == pytest.approx([400, 4, 81, 36, 1, 8])
    assert mask_area(outline) == pytest.approx(expected.area)


def test_what_lies_in_a_dropped_ring_goes_with_it(outline):
    """A hole alone goes alone; a part goes with its holes and what lies in them."""
    stays = np.ones(6, dtype=bool)
    stays[1] = False
    assert ring_areas(keep_rings(outline, stays)) == pytest.approx([400, 81, 36, 1, 8])
    stays[2] = False
    assert ring_areas(keep_rings(outline, stays)) == pytest.approx([400, 8])
    stays[:] = True
    stays[0] = False
    kept = keep_rings(outline, stays)
    assert ring_areas(kept) == pytest.approx([8])
    assert kept.parents.tolist() == [-1]


def test_parents_are_numbered_anew(outline):
    """After a ring that went the others still know what is around them."""
    stays = np.ones(6, dtype=bool)
    stays[1] = False
    kept = keep_rings(outline, stays)
    assert kept.parents.tolist() == [-1, 0, 1, 2, -1]
    assert to_shapely(kept).is_valid


@pytest.mark.parametrize(
    ("budget", "areas"), [(23, [400, 4, 81, 36, 1, 8]), (19, [400, 81, 36, 8, 4]), (8, [400, 81]), (4, [400])]
)
def test_the_largest_rings_that_fit(outline, budget, areas):
    """Holes and parts alike, but none without what is around it."""
    assert sorted(ring_areas(fit_rings(outline, budget))) == pytest.approx(sorted(areas))


def test_a_ring_over_the_budget_is_a_triangle(outline):
    """Its three points are the ring's own."""
    triangle = fit_rings(outline, 3)
    assert ring_areas(triangle) == pytest.approx([200])
    assert {*map(tuple, triangle.points)} < {*map(tuple, outline.points)}


def test_nothing_at_all():
    """No rings are no special case."""
    assert to_shapely(NOTHING).is_empty
    assert mask_area(NOTHING) == 0
    assert len(keep_rings(NOTHING, np.zeros(0, dtype=bool)).points) == 0
    assert len(fit_rings(NOTHING, 3).points) == 0
