"""Crossing, touching and misplaced rings are found; any other outline is valid for GEOS."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.masks.crossings import encloses, find_crossings, find_misplaced, is_tangled
from pipeline.masks.outline import Outline, to_shapely

SQUARE = [(0, 0), (8, 0), (8, 8), (0, 8)]


def _outline(*rings: list[tuple[float, float]], parents: tuple[int, ...] = ()) -> Outline:
    points = np.array([point for ring in rings for point in ring], np.float64)
    return Outline(points, np.cumsum([0, *map(len, rings)]), np.array(parents or [-1] * len(rings), np.int64))


@pytest.mark.parametrize(
    ("outline", "tangled"),
    [
        (_outline(SQUARE), False),
        (_outline([(0, 0), (8, 8), (8, 0), (0, 8)]), True),
        (_outline([(0, 0), (8, 0), (8, 8), (4, 0), (0, 8)]), True),
        (_outline([(0, 0), (8, 0), (3, 0), (3, 8)]), True),
        (_outline([(0, 0), (4, 0), (4, 4), (8, 4), (4, 4), (0, 4)]), True),
        (_outline(SQUARE, [(8, 8), (12, 8), (12, 12)]), True),
        (_outline(SQUARE, [(9, 8), (12, 8), (12, 12)]), False),
        (_outline(SQUARE, [(1, 1), (2, 1), (2, 2)]), True),
        (_outline(SQUARE, [(1, 1), (2, 1), (2, 2)], parents=(-1, 0)), False),
        (_outline(SQUARE, [(11, 1), (12, 1), (12, 2)], parents=(-1, 0)), True),
        (_outline(SQUARE, [(20, 0), (28, 0), (24, 8)], [(23, 1), (25, 1), (24, 2)], parents=(-1, -1, 0)), True),
    ],
    ids="square bow-tie corner-on-edge folded-back spike corners-meet apart nested hole hole-outside hole-of-another".split(),
)
def test_tangled(outline, tangled):
    """Crossing, touching and lying in the wrong ring, each for itself."""
    assert is_tangled(outline) == tangled


def test_the_segments_are_named():
    """Those that cross, and no others."""
    crossing = find_crossings(_outline([(0, 0), (8, 8), (8, 0), (0, 8)], [(20, 0), (28, 0), (24, 8)]))
    assert crossing.tolist() == [True, False, True, False, False, False, False]


def test_the_rings_are_named():
    """The one that lies wrong, and the one in which it does or should."""
    inner = [(1, 1), (2, 1), (2, 2)]
    assert find_misplaced(_outline(SQUARE, inner)) == [(1, 0)]
    assert find_misplaced(_outline(inner, SQUARE)) == [(0, 1)]


@st.composite
def small_outlines(draw: st.DrawFn) -> Outline:
    """Up to four rings on a coarse grid or off it, holes among them: most cross or touch, some do not."""
    on_grid = draw(st.booleans())
    coordinate = st.integers(0, 9) if on_grid else st.floats(0, 9, allow_subnormal=False)
    rings, parents = [], []
    for ring in range(draw(st.integers(1, 4))):
        left, top, size = draw(st.integers(0, 20)), draw(st.integers(0, 3)), draw(st.sampled_from([0.1, 0.5, 2.0]))
        points = draw(st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=6, unique=True))
        rings.append([(left + x * size, top + y * size) for x, y in points])
        parents.append(draw(st.integers(-1, ring - 1)))
    return _outline(*rings, parents=tuple(parents))


@settings(max_examples=400)
@given(small_outlines())
def test_untangled_is_valid(outline):
    """GEOS finds nothing wrong with it, and each ring lies in those that are around it."""
    if not is_tangled(outline):
        assert to_shapely(outline).is_valid


GRID = st.tuples(st.integers(0, 9), st.integers(0, 9))
RINGS_ON_GRID = st.lists(st.lists(GRID, min_size=3, max_size=6, unique=True), min_size=1, max_size=3)


@settings(max_examples=100)
@given(RINGS_ON_GRID)
def test_segments_cross_where_geos_says(rings):
    """Also those of one ring, whose ends lie on each other; consecutive ones only if they overlap."""
    outline = _outline(*rings)
    following = np.concatenate([np.roll(np.arange(*ends), -1) for ends in itertools.pairwise(outline.ends)])
    segments = shapely.linestrings(np.stack([outline.points, outline.points[following]], axis=1))
    meet = shapely.intersects(segments[:, None], segments)
    for k, after in enumerate(following):
        meet[k, after] = meet[after, k] = shapely.length(shapely.intersection(segments[k], segments[after])) > 0
    np.fill_diagonal(meet, False)
    np.testing.assert_array_equal(find_crossings(outline), meet.any(axis=1))


@settings(max_examples=100)
@given(RINGS_ON_GRID, GRID)
def test_a_ring_encloses_what_geos_says(rings, cell):
    """By the even-odd rule, as `make_valid`."""
    point = shapely.Point(cell[0] + 0.51, cell[1] + 0.53)
    for ring in rings:
        assume(shapely.LinearRing(ring).distance(point) > 1e-6)
        expected = shapely.make_valid(shapely.Polygon(ring)).contains(point)
        assert encloses(np.array(ring, np.float64), point.x, point.y) == expected


SHAPES = [[(-1, -1), (1, -1), (1, 1), (-1, 1)], [(0, -1), (1, 0), (0, 1), (-1, 0)], [(-1, -1), (1, 0), (0, 1)]]


@st.composite
def apart(draw: st.DrawFn) -> Outline:
    """Rings that do not touch, one in another or beside it, with any parents."""
    rings, parents, taken = [], [], shapely.Polygon()
    for x, y, radius in draw(
        st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8), st.floats(0.5, 9)), min_size=1, max_size=8)
    ):
        corners = draw(st.sampled_from(SHAPES))
        ring = [(x + radius * right, y + radius * down) for right, down in corners]
        if not rings or shapely.LinearRing(ring).distance(taken) > 1e-6:
            taken = taken.union(shapely.LinearRing(ring))
            parents.append(draw(st.integers(-1, len(rings) - 1)))
            rings.append(ring)
    return _outline(*rings, parents=tuple(parents))


@settings(max_examples=100)
@given(apart())
def test_rings_are_misplaced_where_geos_says(outline):
    polygons = [shapely.Polygon(outline.points[slice(*ends)]) for ends in itertools.pairwise(outline.ends)]
    around = [[]] * len(polygons)
    for ring, parent in enumerate(outline.parents):
        around[ring] = [] if parent < 0 else [parent, *around[parent]]
    pairs = [
        (ring, other)
        for ring, other in itertools.permutations(range(len(polygons)), 2)
        if polygons[other].contains(polygons[ring]) != (other in around[ring])
    ]
    assert not find_crossings(outline).any()
    assert find_misplaced(outline) == pairs
